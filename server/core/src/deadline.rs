//! Deadlines: a time and a reason, earliest first.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{ObjectId, RequestId, SessionId, Time};

/// When [`Space::handle_timeout`](crate::Space::handle_timeout) wants to be called, and
/// what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deadline {
    /// Not before.
    pub at: Time,
    /// What is due.
    pub reason: Reason,
}

/// What becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// An earlier call has left something to do: due at once.
    Work,
    /// A request's time-out.
    Timeout {
        /// Whose.
        session: SessionId,
        /// Which.
        request: RequestId,
    },
    /// A disconnected session's time to resume is up.
    Grace {
        /// Which.
        session: SessionId,
    },
    /// Nobody has attached to an object without references.
    Linger {
        /// Which.
        object: ObjectId,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Deadlines(BTreeSet<Deadline>);

impl Deadlines {
    pub fn insert(&mut self, at: Time, reason: Reason) {
        self.0.insert(Deadline { at, reason });
    }

    pub fn remove(&mut self, at: Time, reason: Reason) {
        self.0.remove(&Deadline { at, reason });
    }

    pub fn first(&self) -> Option<Deadline> {
        self.0.first().copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Deadline> {
        self.0.iter()
    }

    pub fn pop_due(&mut self, now: Time) -> Option<Reason> {
        let due = self.first().filter(|deadline| deadline.at <= now)?;
        self.0.pop_first();
        Some(due.reason)
    }
}
