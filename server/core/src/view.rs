//! What inspection sees: copies, made by the getters of `Space`. Values only.

use std::{sync::Arc, time::Duration};

use crate::{Abandonment, Cycle, Holder, Label, ObjectKey, Party, Process, SessionId};

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Open, connected or not.
    pub sessions: usize,
    /// Named and anonymous.
    pub objects: usize,
    /// Owned permits.
    pub holds: usize,
    /// Requests that wait.
    pub waiters: usize,
    /// The number of the last record.
    pub last_number: u64,
    /// Bytes of messages that wait for their acknowledgement.
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
    /// Free permits; 1 for an event that is set; parties that have come.
    pub value: u32,
    /// The most that `value` can be; a barrier's parties.
    pub max: u32,
    /// Owned permits out.
    pub holders: u32,
    /// Unowned permits out.
    pub unowned: u32,
    /// Requests in its queue.
    pub waiters: u32,
    /// By sessions, and by conditions on their lock.
    pub references: u32,
    /// Stays without references.
    pub keep: bool,
    /// Refuses after an owner's death until marked consistent.
    pub poison: bool,
    /// Owners that left it while holding, of whom the next is yet to be told: the first of them.
    pub abandonments: Vec<Arc<Abandonment>>,
    /// A poisoned lock, a broken barrier.
    pub broken: bool,
    /// The oldest hold.
    pub holder: Option<Holder>,
    /// What a program attaches by.
    pub key: ObjectKey,
}

/// One object in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectDetail {
    /// As in a list.
    pub object: ObjectView,
    /// Oldest first.
    pub holders: Vec<Holder>,
    /// In the order of the queue.
    pub waiters: Vec<WaiterView>,
    /// A condition's lock.
    pub lock: Option<Label>,
    /// The cycle through the object, if it is part of one.
    pub deadlock: Option<Cycle>,
}

/// Who holds an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders {
    /// How many permits are owned.
    pub count: u32,
    /// The oldest, at most 1,000.
    pub first: Vec<Holder>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaiterView {
    /// Whose.
    pub party: Party,
    /// For how long so far.
    pub waited: Duration,
    /// How long until it times out; `None`: never.
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
    /// Since it was opened.
    pub age: Duration,
    /// False: disconnected, in its grace.
    pub connected: bool,
    /// How many holds.
    pub holds: usize,
    /// How many requests wait.
    pub waits: usize,
    /// How many objects it is attached to.
    pub references: usize,
    /// The first of what it holds.
    pub holding: Vec<Label>,
    /// The first of what it waits for.
    pub waiting: Vec<Label>,
}
