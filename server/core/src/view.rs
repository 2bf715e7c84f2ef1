//! The results of the getters of `Space`.

use std::{sync::Arc, time::Duration};

use crate::{Abandonment, Cycle, Holder, Label, ObjectKey, Party, Process, SessionId};

/// The totals of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Open sessions, connected or not.
    pub sessions: usize,
    /// Objects, named and anonymous.
    pub objects: usize,
    /// Owned permits.
    pub holds: usize,
    /// Waiting requests.
    pub waiters: usize,
    /// The number of the last record.
    pub last_number: u64,
    /// Bytes of unacknowledged messages.
    pub unacknowledged: usize,
    /// Abandonments that no owner was told of yet.
    pub untold: usize,
}

/// One object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectView {
    /// Name and id.
    pub label: Label,
    /// "Lock", "Condition", ...
    pub kind: &'static str,
    /// Free permits; 1 for an event that is set; parties that have arrived.
    pub value: u32,
    /// The most that `value` can be; a barrier's parties.
    pub max: u32,
    /// Owned permits.
    pub holders: u32,
    /// Unowned permits.
    pub unowned: u32,
    /// The number of waiters.
    pub waiters: u32,
    /// References by sessions, and by conditions to their lock.
    pub references: u32,
    /// Whether it stays without references.
    pub keep: bool,
    /// Whether an owner's death can poison it.
    pub poison: bool,
    /// The oldest abandonments that no owner was told of, or that poisoned it.
    pub abandonments: Vec<Arc<Abandonment>>,
    /// Whether a lock is poisoned, or a barrier broken.
    pub broken: bool,
    /// The oldest holder.
    pub holder: Option<Holder>,
    /// The key by which a session attaches.
    pub key: ObjectKey,
}

/// One object in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectDetail {
    /// As in a list.
    pub object: ObjectView,
    /// The holders, oldest first.
    pub holders: Vec<Holder>,
    /// The waiters, in the order of the queue.
    pub waiters: Vec<WaiterView>,
    /// A condition's lock.
    pub lock: Option<Label>,
    /// The cycle through the object, if it is part of one.
    pub deadlock: Option<Cycle>,
}

/// The holders of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders {
    /// The number of owned permits.
    pub count: u32,
    /// The oldest holders, at most 1,000.
    pub first: Vec<Holder>,
}

/// A waiting request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaiterView {
    /// Its owner.
    pub party: Party,
    /// How long it has waited.
    pub waited: Duration,
    /// The time until it times out; `None`: never.
    pub timeout_in: Option<Duration>,
    /// "acquire", "wait", "reacquire", "event" or "barrier".
    pub what: &'static str,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// Its process.
    pub process: Arc<Process>,
    /// The time since it was opened.
    pub age: Duration,
    /// False: disconnected, in its grace.
    pub connected: bool,
    /// The number of holds.
    pub holds: usize,
    /// The number of waiting requests.
    pub waits: usize,
    /// The number of objects that it is attached to.
    pub references: usize,
    /// The first objects that it holds.
    pub holding: Vec<Label>,
    /// The first objects that it waits for.
    pub waiting: Vec<Label>,
}
