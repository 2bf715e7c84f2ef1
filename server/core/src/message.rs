//! What sessions are told: answers, refusals and pushes. Values only.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Handle, ObjectId, ObjectKey, Owner, RequestId, SessionId, Spec, Token,
    image::{Constant, constant},
};

/// One message to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Numbers the messages of a session from 1 upwards, across resumes.
    pub seq: u64,
    /// What it says.
    pub body: Body,
}

/// A reply or a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The one answer to a request.
    Reply(RequestId, Reply),
    /// A hold of this session is gone, and not by its doing.
    HoldLost {
        /// Of the object; the session may have detached since.
        handle: Handle,
        /// Whose it was.
        owner: Owner,
        /// The hold.
        token: Token,
        /// Why.
        cause: Cause,
    },
    /// The session is over: the last message.
    SessionEnd(Cause),
}

/// An answer, or why there is none. A refused request has changed nothing.
pub type Reply = Result<Answer, Box<Error>>;

/// What a request yields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; the number moved or woken, where there is one to tell.
    Done {
        /// Waiters moved or woken.
        count: u32,
    },
    /// A permit.
    Granted(Grant),
    /// A Condition's wait is over, and the lock is held again.
    Woken {
        /// False: time-out or cancel.
        notified: bool,
        /// Of the lock.
        grant: Grant,
    },
    /// A reference.
    Attached(Box<Attachment>),
    /// All parties have come.
    BarrierPassed {
        /// In order of arrival, from 0.
        index: u32,
        /// This party is to run the action first.
        run_action: bool,
    },
    /// An object's numbers.
    State(State),
}

/// A permit taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The fencing token.
    pub token: Token,
    /// How often the owner holds it now.
    pub depth: u32,
    /// An owner before left it without a release. Told once.
    pub abandoned: Option<Arc<Abandonment>>,
}

/// A reference gained by Create or Attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What this session calls it.
    pub handle: Handle,
    /// What others attach by.
    pub key: ObjectKey,
    /// Made just now.
    pub created: bool,
    /// `None`: anonymous, or unlinked.
    pub name: Option<Arc<str>>,
    /// A condition's lock is named by its handle in this session.
    pub spec: Spec,
}

/// An object's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Free permits; 1 for an event that is set; parties that have come.
    pub value: u32,
    /// Requests in its queue.
    pub waiters: u32,
    /// A broken barrier, a poisoned lock.
    pub broken: bool,
    /// Oldest first, at most [`State::HOLDERS`].
    pub holders: Vec<Holder>,
}

impl State {
    /// How many holders are named at most.
    pub const HOLDERS: usize = 16;
}

/// A client process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// As the daemon sees it.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// For people.
    pub command: Arc<str>,
}

/// A session and its process, kept in what is told of it after its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The session.
    pub session: SessionId,
    /// Its process.
    pub process: Arc<Process>,
    /// Which of its owners.
    pub owner: Owner,
}

/// Somebody who holds something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub party: Party,
    /// The fencing token.
    pub token: Token,
    /// For how long.
    pub held: Duration,
    /// How often.
    pub depth: u32,
}

/// A hold that ended without a release by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandonment {
    /// Who left it.
    pub by: Party,
    /// The hold.
    pub token: Token,
    /// How long it was held.
    pub held: Duration,
    /// When it ended.
    pub at: crate::Time,
    /// Why.
    pub cause: Cause,
}

/// Why a session or a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Cause {
    Died,
    Disconnected,
    Left,
    Kicked,
    Forced,
    Misbehaved,
    /// Released by somebody else, as a Lock or Semaphore may be: no abandonment.
    Released,
}

/// An object as people call it: its name, or its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Never used twice.
    pub id: ObjectId,
    /// `None`: anonymous.
    pub name: Option<Arc<str>>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "#{}", self.id.0),
        }
    }
}

/// Why a request was refused. `Display` says what happened, to which object, and
/// what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The object concerned.
    pub object: Option<Label>,
    /// What is wrong.
    pub kind: ErrorKind,
}

/// What is wrong with a request.
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

/// A cycle of owners each of which waits for a Lock or RLock that the next one holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// From the one that closed it, at most [`Cycle::SHOWN`].
    pub edges: Vec<Edge>,
    /// Edges between the last shown and the first.
    pub omitted: u32,
}

impl Cycle {
    /// How many edges are named at most.
    pub const SHOWN: usize = 16;
    /// How many owners a cycle has at most to be found.
    pub const LONGEST: usize = 256;
}

/// `waiter` waits for `object`, which the next edge's waiter holds; the last one's
/// object is held by the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Who waits.
    pub waiter: Party,
    /// For what.
    pub object: Label,
    /// Since when.
    pub waited: Duration,
    /// How long its holder has had it.
    pub held: Duration,
}

impl Body {
    /// What a session would do by it, as a number: which kind of answer, and whose turn it is.
    pub(crate) fn gist(&self) -> u64 {
        match self {
            Body::Reply(id, reply) => {
                let (kind, number) = match reply {
                    Ok(Answer::Done { count }) => (1, u64::from(*count)),
                    Ok(Answer::Granted(grant)) => (2, grant.token.0),
                    Ok(Answer::Woken { notified: true, grant }) => (3, grant.token.0),
                    Ok(Answer::Woken { notified: false, grant }) => (4, grant.token.0),
                    Ok(Answer::Attached(attachment)) => (5, attachment.key.id),
                    Ok(Answer::BarrierPassed { index, .. }) => (6, u64::from(*index)),
                    Ok(Answer::State(state)) => (7, u64::from(state.value)),
                    Err(_) => (8, 0),
                };
                (id.0 ^ (kind << 56)).wrapping_add(number << 8)
            }
            Body::HoldLost { token, .. } => (9 << 56) ^ token.0,
            Body::SessionEnd(_) => 10 << 56,
        }
    }
}

impl Message {
    /// Bytes that it takes up while it is kept, about: its own and what it alone points at.
    pub fn weight(&self) -> usize {
        let beside = match &self.body {
            Body::HoldLost { .. } | Body::SessionEnd(_) => 0,
            Body::Reply(_, Ok(answer)) => match answer {
                Answer::Attached(_) => size_of::<Attachment>(),
                Answer::State(state) => size_of_val(&*state.holders),
                // An abandonment is shared with nobody once it is told.
                Answer::Granted(grant) | Answer::Woken { grant, .. } => {
                    grant.abandoned.as_ref().map_or(0, |_| size_of::<Abandonment>())
                }
                Answer::Done { .. } | Answer::BarrierPassed { .. } => 0,
            },
            Body::Reply(_, Err(error)) => {
                let lists = match &error.kind {
                    ErrorKind::TimedOut { holders } => size_of_val(&**holders),
                    ErrorKind::Deadlock { cycle } => size_of_val(&*cycle.edges),
                    _ => 0,
                };
                size_of::<Error>() + lists
            }
        };
        size_of::<Message>() + beside
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { pid, command, .. } = &*self.process;
        write!(f, "pid {pid} ({command}), owner {}", self.owner.0)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Died => "its process died",
            Cause::Disconnected => "its connection ended and was not resumed",
            Cause::Left => "its session ended while it held it",
            Cause::Kicked => "its session was kicked",
            Cause::Forced => "it was released by force",
            Cause::Misbehaved => "its session broke the rules and was dropped",
            Cause::Released => "somebody else released it",
        })
    }
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
