//! Refusals and deadlock cycles, as values, and their texts.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Holder, Label, Party, Spec,
    image::{Constant, constant},
};

/// Why a request was refused. Its text says what happened, to which object, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The object concerned.
    pub object: Option<Label>,
    /// The reason.
    pub kind: ErrorKind,
}

/// The reason of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ErrorKind {
    Invalid {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        #[serde(deserialize_with = "constant")]
        why: Constant,
    },
    NotFound {
        #[serde(deserialize_with = "constant")]
        what: Constant,
    },
    Exists,
    KindMismatch {
        #[serde(deserialize_with = "constant")]
        wanted: Constant,
        #[serde(deserialize_with = "constant")]
        found: Constant,
    },
    SpecMismatch {
        found: Spec,
        poison: bool,
    },
    NotOwner {
        holder: Option<Holder>,
    },
    OverReleased {
        max: u32,
    },
    Stale,
    TimedOut {
        holders: Vec<Holder>,
    },
    Cancelled,
    Deadlock {
        cycle: Cycle,
    },
    Poisoned {
        by: Arc<Abandonment>,
    },
    BrokenBarrier,
    Quota {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        limit: u64,
    },
    SessionLost,
}

/// A cycle of owners, each of which waits for a Lock or RLock that the next one holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// The edges, from the one that closed the cycle, at most [`Cycle::SHOWN`].
    pub edges: Vec<Edge>,
    /// The number of edges left out between the last one shown and the first.
    pub omitted: u32,
}

impl Cycle {
    /// The most edges in a report.
    pub const SHOWN: usize = 16;
    /// The longest cycle that is found, in owners.
    pub const LONGEST: usize = 256;
}

/// `waiter` waits for `object`, which the next edge's waiter holds; the last one's
/// object is held by the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The owner that waits.
    pub waiter: Party,
    /// The object that it waits for.
    pub object: Label,
    /// How long it has waited.
    pub waited: Duration,
    /// How long the next edge's owner has held the object.
    pub held: Duration,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = match &self.object {
            Some(label) => format!("'{label}'"),
            None => "the object".into(),
        };
        match &self.kind {
            ErrorKind::Invalid { field, why } => write!(f, "{field}: {why}"),
            ErrorKind::NotFound { what } => {
                write!(f, "no such {what}: it was never made, or its last reference is gone")
            }
            ErrorKind::Exists => {
                write!(f, "{object} exists already: attach to it, or unlink it first")
            }
            ErrorKind::KindMismatch { wanted, found } => {
                write!(f, "{object} is a {found}, and this needs a {wanted}")
            }
            ErrorKind::SpecMismatch { found, poison } => write!(
                f,
                "{object} exists with other numbers ({found:?}{}): use the same, or unlink it first",
                if *poison { ", poison" } else { "" }
            ),
            ErrorKind::NotOwner { holder: None } => {
                write!(f, "{object} isn't held: acquire it first")
            }
            ErrorKind::NotOwner { holder: Some(holder) } => {
                write!(f, "{object} is held by {}: only that owner may do this", holder.party)
            }
            ErrorKind::OverReleased { max } => {
                write!(f, "{object} released too many times: it has all of its {max} already")
            }
            ErrorKind::Stale => write!(
                f,
                "this hold of {object} is gone: released by somebody else, or taken by force"
            ),
            ErrorKind::TimedOut { holders } => match holders.first() {
                Some(first) => write!(
                    f,
                    "timed out: {object} is held by {} for {:.3} s",
                    first.party,
                    first.held.as_secs_f64()
                ),
                None => write!(f, "timed out waiting for {object}"),
            },
            ErrorKind::Cancelled => write!(f, "the wait for {object} was cancelled"),
            ErrorKind::Deadlock { cycle } => {
                write!(f, "waiting for {object} would be a deadlock:")?;
                let Cycle { edges, omitted } = cycle;
                for (i, edge) in edges.iter().enumerate() {
                    write!(f, " {} waits for '{}'", edge.waiter, edge.object)?;
                    match edges.get(i + 1) {
                        Some(next) => write!(f, ", held by {};", next.waiter)?,
                        None if *omitted > 0 => write!(f, "; {omitted} more;")?,
                        None => write!(f, ", held by {};", edges[0].waiter)?,
                    }
                }
                f.write_str(" acquire in one order everywhere")
            }
            ErrorKind::Poisoned { by } => write!(
                f,
                "{object} is poisoned: {} left it ({}), and no owner since has marked it consistent",
                by.by, by.cause
            ),
            ErrorKind::BrokenBarrier => {
                write!(f, "{object} is broken: a party timed out, died, aborted or reset it")
            }
            ErrorKind::Quota { field, limit } => {
                write!(f, "{field}: the quota of {limit} is used up; free some, or raise it")
            }
            ErrorKind::SessionLost => f.write_str("the session is lost, and all that it held"),
        }
    }
}

impl std::error::Error for Error {}
