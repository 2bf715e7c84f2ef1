//! How a namespace behaves where people may differ, and how much there may be of everything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a [`Space`](crate::Space) behaves where people may differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// How long a disconnected session keeps what it holds. Default: 10 s.
    pub grace: Duration,
    /// How long an object without references can still be attached to. Default: 60 s.
    pub linger: Duration,
    /// How much there may be of everything.
    pub limits: Limits,
}

/// Quotas of a namespace. A request beyond one is refused, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sessions open at once.
    pub sessions: usize,
    /// Objects, named and anonymous.
    pub objects: usize,
    /// Owned permits that are out.
    pub holds: usize,
    /// Requests that wait.
    pub waiters: usize,
    /// Owned permits of one session.
    pub holds_per_session: usize,
    /// Requests of one session that wait: all of them may be answered at once.
    pub waiters_per_session: usize,
    /// Objects that one session is attached to.
    pub references_per_session: usize,
    /// Bytes of messages kept for one session until it acknowledges them. Beyond, the oldest
    /// are forgotten: a resume that would need them is refused.
    pub unacknowledged_per_session: usize,
    /// Bytes of messages kept for all sessions together; beyond, a session that is told
    /// something forgets its oldest.
    pub unacknowledged: usize,
    /// Several users have it: a user may have half of what the others leave of its sessions,
    /// objects, holds and waiters.
    pub shared: bool,
    /// How much one call does before it leaves the rest to the calls after it: waiters woken
    /// or moved, holds and references ended, messages sent again, edges of the wait-for graph
    /// followed.
    pub step: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            grace: Duration::from_secs(10),
            linger: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: 16_384,
            objects: 4_000_000,
            holds: 4_000_000,
            waiters: 1_000_000,
            holds_per_session: 1 << 20,
            waiters_per_session: 1 << 17,
            references_per_session: 1 << 20,
            unacknowledged_per_session: 32 << 20,
            unacknowledged: 256 << 20,
            shared: false,
            step: 512,
        }
    }
}
