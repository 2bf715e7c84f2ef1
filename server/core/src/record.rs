//! Log records: everything that happens in a namespace, in one ordered stream.

use crate::{Cause, Cycle, FencingToken, Label, Party, Time};

/// One thing that happened. Numbers rise strictly; a grant's is its fencing token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Unique in the namespace.
    pub number: u64,
    /// The time of the call.
    pub at: Time,
    /// What happened.
    pub kind: RecordKind,
    /// The object concerned.
    pub object: Option<Label>,
    /// The owner that caused it, or that it concerns.
    pub party: Option<Party>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordKind {
    Created,
    /// The object was removed.
    Removed,
    Unlinked,
    /// A request waits for a permit.
    Queued,
    /// `number` is the token, except for a recursive grant (`depth` > 1), which has the token of
    /// the first.
    Granted {
        token: FencingToken,
        depth: u32,
    },
    /// `token`: the hold, `None` for an unowned permit. `depth`: what is left of an RLock's
    /// recursion; 0 is free.
    Released {
        token: Option<FencingToken>,
        depth: u32,
    },
    /// An owned permit became unowned.
    Forgotten {
        token: FencingToken,
    },
    /// A request waits for a notify, an event or a barrier.
    Waiting,
    Notified,
    TimedOut,
    Cancelled,
    Abandoned {
        token: FencingToken,
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
        cycle: Cycle,
    },
    SessionOpened,
    SessionDisconnected,
    SessionResumed,
    /// Ended without a Goodbye.
    SessionLost {
        cause: Cause,
    },
    SessionClosed,
}

impl RecordKind {
    /// The name in `WatchEvent.kind` and `syncctl watch`.
    pub fn as_str(&self) -> &'static str {
        match self {
            RecordKind::Created => "created",
            RecordKind::Removed => "removed",
            RecordKind::Unlinked => "unlinked",
            RecordKind::Queued => "queued",
            RecordKind::Granted { .. } => "granted",
            RecordKind::Released { .. } => "released",
            RecordKind::Forgotten { .. } => "forgotten",
            RecordKind::Waiting => "waiting",
            RecordKind::Notified => "notified",
            RecordKind::TimedOut => "timed_out",
            RecordKind::Cancelled => "cancelled",
            RecordKind::Abandoned { .. } => "abandoned",
            RecordKind::Poisoned => "poisoned",
            RecordKind::Consistent => "consistent",
            RecordKind::Set => "set",
            RecordKind::Cleared => "cleared",
            RecordKind::BarrierPassed => "barrier_passed",
            RecordKind::BarrierBroken => "barrier_broken",
            RecordKind::BarrierReset => "barrier_reset",
            RecordKind::Deadlock { .. } => "deadlock",
            RecordKind::SessionOpened => "session_opened",
            RecordKind::SessionDisconnected => "session_disconnected",
            RecordKind::SessionResumed => "session_resumed",
            RecordKind::SessionLost { .. } => "session_lost",
            RecordKind::SessionClosed => "session_closed",
        }
    }
}
