//! Deadlines: a time and a reason, earliest first.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{ObjectId, RequestId, SessionId, Time};

/// When [`Space::handle_timeout`](crate::Space::handle_timeout) must be called, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deadline {
    /// The time.
    pub at: Time,
    /// What is due then.
    pub reason: Reason,
}

/// What becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// Work of an earlier call: due at once.
    Work,
    /// A request's time-out.
    Timeout {
        /// The session.
        session: SessionId,
        /// The request.
        request: RequestId,
    },
    /// The end of a disconnected session's grace.
    Grace {
        /// The session.
        session: SessionId,
    },
    /// The end of an object that lingers without references.
    Linger {
        /// The object.
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
