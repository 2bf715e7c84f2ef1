//! Records: all that happens, in one ordered, numbered stream. Values only.

use crate::{Cause, Cycle, FencingToken, Label, Party, Time};

/// One thing that happened. Numbers rise strictly; a grant's is its fencing token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Unique in the namespace.
    pub number: u64,
    /// When, on the monotonic clock of the calls.
    pub at: Time,
    /// What.
    pub kind: RecordKind,
    /// To which object.
    pub object: Option<Label>,
    /// By whom or to whom.
    pub party: Option<Party>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordKind {
    Created,
    /// The last reference went.
    Removed,
    Unlinked,
    /// Waits for a permit.
    Queued,
    /// `number` is the token, but for a recursive grant (`depth` > 1), which keeps
    /// the first one's.
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
    /// Waits for a notify, an event or a barrier.
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
    /// Ended by anything but Goodbye.
    SessionLost {
        cause: Cause,
    },
    SessionClosed,
}

impl RecordKind {
    /// As `syncctl watch` and `WatchEvent.kind` write it.
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
