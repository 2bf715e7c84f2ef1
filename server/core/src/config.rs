//! A namespace's configuration: times and quotas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The configuration of a [`Space`](crate::Space).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// How long a disconnected session keeps what it holds. Default: 10 s.
    pub grace: Duration,
    /// How long an anonymous or abandoned object stays without references. Default: 60 s.
    pub linger: Duration,
    /// The quotas.
    pub limits: Limits,
}

/// Quotas of a namespace. A request beyond one is refused, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open sessions.
    pub sessions: usize,
    /// Objects, named and anonymous.
    pub objects: usize,
    /// Owned permits.
    pub holds: usize,
    /// Waiting requests.
    pub waiters: usize,
    /// Owned permits of one session.
    pub holds_per_session: usize,
    /// Waiting requests of one session.
    pub waiters_per_session: usize,
    /// Objects that one session is attached to.
    pub references_per_session: usize,
    /// Bytes of messages kept for one session until it acknowledges them. Beyond, the oldest
    /// are forgotten: a resume that would need them is refused.
    pub unacknowledged_per_session: usize,
    /// Bytes of messages kept for all sessions together. Beyond, a session that is sent a new
    /// message forgets its oldest.
    pub unacknowledged: usize,
    /// Several users share the namespace: each may have half of what the others leave of its
    /// sessions, objects, holds and waiters.
    pub shared: bool,
    /// How many pieces of work one call does before it leaves the rest to later calls: waiters
    /// woken or moved, holds and references ended, messages sent again, edges of the wait-for
    /// graph followed.
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
