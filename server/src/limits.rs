//! Quotas: how much each user may have of everything that a client can make grow, and the memory
//! that this takes.

use syncd_core::{Share, Totals};
use syncd_proto::v1;

use crate::{broker::Broker, connection::MAX_SEND_BUFFER, outbox};

/// How much each user may have. Each is a flag of the daemon; a number of bytes may be followed
/// by KiB, MiB or GiB.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Quotas of each user")]
#[non_exhaustive]
pub struct Limits {
    /// Connections.
    #[arg(long = "max-connections", env = "SYNCD_MAX_CONNECTIONS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.connections)]
    pub connections: usize,

    /// Calls and streams under way, over all connections; a connected session is one.
    #[arg(long = "max-calls", env = "SYNCD_MAX_CALLS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.calls)]
    pub calls: usize,

    /// Namespaces in use.
    #[arg(long = "max-namespaces", env = "SYNCD_MAX_NAMESPACES", value_name = "N")]
    #[arg(default_value_t = DEFAULT.namespaces)]
    pub namespaces: usize,

    /// Watches (as "syncctl watch" has one).
    #[arg(long = "max-watches", env = "SYNCD_MAX_WATCHES", value_name = "N")]
    #[arg(default_value_t = DEFAULT.watches)]
    pub watches: usize,

    /// Memory for the state of the user's namespaces: sessions, objects, holds, waiters, references,
    /// and abandonments not yet reported. A shared namespace has as much of its own, of which each
    /// user may have half of what the others leave; so with the quotas below.
    #[arg(long = "max-memory", env = "SYNCD_MAX_MEMORY", value_name = "BYTES")]
    #[arg(default_value = "2GiB", value_parser = bytes)]
    pub memory: usize,

    /// Memory for messages to sessions that don't read them; a session can always have 64KiB.
    #[arg(long = "max-unsent-bytes", env = "SYNCD_MAX_UNSENT_BYTES", value_name = "BYTES")]
    #[arg(default_value = "256MiB", value_parser = bytes)]
    pub unsent_bytes: usize,

    /// The same for one session: beyond, it is lost.
    #[arg(long = "max-unsent-bytes-per-session", value_name = "BYTES")]
    #[arg(env = "SYNCD_MAX_UNSENT_BYTES_PER_SESSION")]
    #[arg(default_value = "16MiB", value_parser = bytes)]
    pub unsent_bytes_per_session: usize,

    /// Events that a namespace keeps for its watches; a watch that falls further behind ends.
    #[arg(long = "max-watch-bytes", env = "SYNCD_MAX_WATCH_BYTES", value_name = "BYTES")]
    #[arg(default_value = "8MiB", value_parser = bytes)]
    pub watch_bytes: usize,

    /// Sessions in each namespace, connected or in their grace.
    #[arg(long = "max-sessions", env = "SYNCD_MAX_SESSIONS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.sessions)]
    pub sessions: usize,

    /// Objects in each namespace, named and anonymous.
    #[arg(long = "max-objects", env = "SYNCD_MAX_OBJECTS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.objects)]
    pub objects: usize,

    /// Owned locks and permits in each namespace.
    #[arg(long = "max-holds", env = "SYNCD_MAX_HOLDS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.holds)]
    pub holds: usize,

    /// The same for one session.
    #[arg(long = "max-holds-per-session", env = "SYNCD_MAX_HOLDS_PER_SESSION", value_name = "N")]
    #[arg(default_value_t = DEFAULT.holds_per_session)]
    pub holds_per_session: usize,

    /// Requests that wait, in each namespace.
    #[arg(long = "max-waiters", env = "SYNCD_MAX_WAITERS", value_name = "N")]
    #[arg(default_value_t = DEFAULT.waiters)]
    pub waiters: usize,

    /// The same for one session.
    #[arg(long = "max-waiters-per-session", value_name = "N")]
    #[arg(env = "SYNCD_MAX_WAITERS_PER_SESSION", default_value_t = DEFAULT.waiters_per_session)]
    pub waiters_per_session: usize,

    /// Objects that one session is attached to.
    #[arg(long = "max-references-per-session", value_name = "N")]
    #[arg(env = "SYNCD_MAX_REFERENCES_PER_SESSION")]
    #[arg(default_value_t = DEFAULT.references_per_session)]
    pub references_per_session: usize,

    /// Messages that clients haven't acknowledged, in each namespace. Beyond that, the oldest are
    /// dropped, and a session that needs one of them can't resume.
    #[arg(long = "max-unacknowledged-bytes", value_name = "BYTES")]
    #[arg(env = "SYNCD_MAX_UNACKNOWLEDGED_BYTES")]
    #[arg(default_value = "16MiB", value_parser = bytes)]
    pub unacknowledged_bytes: usize,
}

const DEFAULT: Limits = Limits {
    connections: 1024,
    calls: 20_000,
    namespaces: 64,
    watches: 64,
    memory: 2 << 30,
    unsent_bytes: 256 << 20,
    unsent_bytes_per_session: 16 << 20,
    watch_bytes: 8 << 20,
    sessions: 16_384,
    objects: 4_000_000,
    holds: 4_000_000,
    holds_per_session: 1 << 20,
    waiters: 1_000_000,
    waiters_per_session: 1 << 17,
    references_per_session: 1 << 20,
    unacknowledged_bytes: 16 << 20,
};

impl Default for Limits {
    fn default() -> Self {
        DEFAULT
    }
}

/// Parses "65536", "64KiB", "8MiB" or "2GiB".
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: usize =
        number.parse().map_err(|_| "write it as 65536, 64KiB or 8MiB".to_owned())?;
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("unknown unit {unit:?}: use KiB, MiB or GiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too much".to_owned())
}

impl Limits {
    /// Lowers `connections` so that one user takes at most half of the process's descriptors.
    pub(crate) fn within_descriptors(mut self) -> Self {
        #[cfg(unix)]
        if let Some(all) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            // Three per connection: the socket, the pidfd, and a copy of the socket while a write
            // waits.
            let may = usize::try_from(all / 2 / 3).unwrap_or(usize::MAX).max(16);
            if may < self.connections {
                tracing::warn!(
                    connections = may,
                    descriptors = all,
                    "fewer connections per user than configured: the limit of open files is too low"
                );
                self.connections = may;
            }
        }
        self
    }

    /// The most bytes that one user can make the daemon use.
    pub(crate) fn user_bytes(&self) -> usize {
        // Three times: queues have spare room, and are copied as they grow; and while a snapshot is
        // made, the state exists once more, and as bytes.
        3 * self.memory
            + 3 * self.unsent_bytes
            + self.calls * (CALL + outbox::FLOOR + MAX_SEND_BUFFER)
            + self.connections * CONNECTION
            + self.namespaces * (NAMESPACE + self.watch_bytes + 3 * self.unacknowledged_bytes)
    }

    pub(crate) fn core(&self, shared: bool) -> syncd_core::Limits {
        syncd_core::Limits {
            sessions: self.sessions,
            objects: self.objects,
            holds: self.holds,
            holds_per_session: self.holds_per_session,
            waiters: self.waiters,
            waiters_per_session: self.waiters_per_session,
            references_per_session: self.references_per_session,
            unacknowledged: self.unacknowledged_bytes,
            unacknowledged_per_session: self.unacknowledged_bytes,
            shared,
            ..syncd_core::Limits::default()
        }
    }
}

/// An estimate of the memory that a namespace's state takes, in bytes.
pub(crate) fn weigh(totals: &Totals, references: usize) -> usize {
    totals.sessions * SESSION
        + totals.objects * OBJECT
        + totals.holds * HOLD
        + totals.waiters * WAITER
        + references * REFERENCE
        + totals.untold * ABANDONMENT
}

/// An estimate of the memory of one user's share of a shared namespace, in bytes.
pub(crate) fn weigh_share(share: &Share, references: usize) -> usize {
    let Share { sessions, objects, holds, waiters, untold } = *share;
    weigh(&Totals { sessions, objects, holds, waiters, untold, ..Totals::default() }, references)
}

const SESSION: usize = 2048;
const OBJECT: usize = 768;
const HOLD: usize = 256;
const WAITER: usize = 320;
const REFERENCE: usize = 192;
const ABANDONMENT: usize = 192;
const CONNECTION: usize = 2 << 20;
const CALL: usize = 64 << 10;
const NAMESPACE: usize = 64 << 10;

/// A user's quotas and their use, for Status.
pub(crate) fn quotas(broker: &Broker, user: u32) -> Vec<v1::Quota> {
    let limits = &broker.settings.limits;
    let user = broker.registry.user(user, limits);
    let quota = |field: &str, used: usize, limit: usize| v1::Quota {
        field: field.to_owned(),
        used: used as u64,
        limit: limit as u64,
    };
    let own = broker.registry.namespaces.iter();
    let own = own.filter(|n| n.address.owner == Some(user.number) && n.address.name.is_empty());
    let own: Vec<_> = own.map(|namespace| namespace.clone()).collect();
    let totals = own.first().map(|own| own.lock().space.totals()).unwrap_or_default();
    let mut quotas: Vec<v1::Quota> = [
        &user.connections,
        &user.calls,
        &user.namespaces,
        &user.watches,
        &user.memory,
        &user.unsent,
    ]
    .map(|gauge| quota(gauge.field(), gauge.used(), gauge.limit()))
    .into();
    quotas.extend([
        quota("sessions", totals.sessions, limits.sessions),
        quota("objects", totals.objects, limits.objects),
        quota("holds", totals.holds, limits.holds),
        quota("waiters", totals.waiters, limits.waiters),
        quota("unacknowledged_bytes", totals.unacknowledged, limits.unacknowledged_bytes),
    ]);
    quotas
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        limits: Limits,
    }

    #[test]
    fn the_flags_default_to_the_defaults() {
        let parsed = Arguments::parse_from(["syncd"]).limits;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn bytes_are_read_with_their_unit() {
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("7"), Ok(7));
        for wrong in ["", "KiB", "1kb", "-1", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
