//! Events: all that happens, in one ordered, numbered stream. Values only.

use crate::{Cause, Edge, Label, Party, Time, Token};

/// One thing that happened. Numbers rise strictly; a grant's is its fencing token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique in the namespace.
    pub number: u64,
    /// When, on the monotonic clock of the calls.
    pub at: Time,
    /// What.
    pub kind: EventKind,
    /// To which object.
    pub object: Option<Label>,
    /// By whom or to whom.
    pub party: Option<Party>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EventKind {
    Created,
    /// The last reference went.
    Removed,
    Unlinked,
    /// Waits for a permit.
    Queued,
    /// `number` is the token, but for a recursive grant (`depth` > 1), which keeps
    /// the first one's.
    Granted {
        token: Token,
        depth: u32,
    },
    /// `token`: the hold, `None` for a loose permit. `depth`: what is left of an RLock's
    /// recursion; 0 is free.
    Released {
        token: Option<Token>,
        depth: u32,
    },
    /// An owned permit became loose.
    Forgotten {
        token: Token,
    },
    /// Waits for a notify, an event or a barrier.
    Waiting,
    Notified,
    TimedOut,
    Cancelled,
    Abandoned {
        token: Token,
        cause: Cause,
    },
    Poisoned,
    Consistent,
    Set,
    Cleared,
    BarrierPassed,
    BarrierBroken,
    BarrierReset,
    Deadlock {
        cycle: Vec<Edge>,
    },
    SessionOpened,
    SessionDisconnected,
    SessionResumed,
    /// Ended by anything but Goodbye.
    SessionLost {
        cause: Cause,
    },
    SessionClosed,
}

impl EventKind {
    /// As `syncctl watch` and `WatchEvent.kind` write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::Removed => "removed",
            EventKind::Unlinked => "unlinked",
            EventKind::Queued => "queued",
            EventKind::Granted { .. } => "granted",
            EventKind::Released { .. } => "released",
            EventKind::Forgotten { .. } => "forgotten",
            EventKind::Waiting => "waiting",
            EventKind::Notified => "notified",
            EventKind::TimedOut => "timed_out",
            EventKind::Cancelled => "cancelled",
            EventKind::Abandoned { .. } => "abandoned",
            EventKind::Poisoned => "poisoned",
            EventKind::Consistent => "consistent",
            EventKind::Set => "set",
            EventKind::Cleared => "cleared",
            EventKind::BarrierPassed => "barrier_passed",
            EventKind::BarrierBroken => "barrier_broken",
            EventKind::BarrierReset => "barrier_reset",
            EventKind::Deadlock { .. } => "deadlock",
            EventKind::SessionOpened => "session_opened",
            EventKind::SessionDisconnected => "session_disconnected",
            EventKind::SessionResumed => "session_resumed",
            EventKind::SessionLost { .. } => "session_lost",
            EventKind::SessionClosed => "session_closed",
        }
    }
}
