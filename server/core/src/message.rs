//! The messages to sessions, as values: answers, refusals and pushes.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, FencingToken, Handle, ObjectId, ObjectKey, Owner, RequestId, SessionId, Spec,
};

/// One message to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The message's number within its session, from 1, across resumes.
    pub seq: u64,
    /// The content.
    pub body: Body,
}

/// A reply or a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The only answer to a request.
    Reply(RequestId, Reply),
    /// A hold of this session was ended by another client.
    HoldLost {
        /// The object's handle; the session may have detached since.
        handle: Handle,
        /// The hold's owner.
        owner: Owner,
        /// The hold's token.
        token: FencingToken,
        /// Why it ended.
        cause: Cause,
    },
    /// The session has ended: the last message.
    SessionEnd(Cause),
}

/// An answer, or a refusal. A refused request has changed nothing.
pub type Reply = Result<Answer, Box<Error>>;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The request was done.
    Done {
        /// The number of waiters moved or woken; else 0.
        count: u32,
    },
    /// A permit was granted.
    Granted(Grant),
    /// A Condition's wait has ended, and the lock is held again.
    Woken {
        /// False: by a time-out or Cancel.
        notified: bool,
        /// The grant of the lock.
        grant: Grant,
    },
    /// The session is attached.
    Attached(Box<Attachment>),
    /// All parties have arrived.
    BarrierPassed {
        /// The party's index in order of arrival, from 0.
        index: u32,
        /// This party has to run its action before the others pass.
        run_action: bool,
    },
    /// An object's state.
    State(State),
}

/// A granted permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The fencing token.
    pub token: FencingToken,
    /// How many times the owner holds the object now.
    pub depth: u32,
    /// A former hold that ended without a release. Each abandonment is told once.
    pub abandoned: Option<Arc<Abandonment>>,
}

/// The answer to Create or Attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The object's handle in this session.
    pub handle: Handle,
    /// The key by which other sessions attach.
    pub key: ObjectKey,
    /// Whether this request created the object.
    pub created: bool,
    /// `None`: anonymous, or unlinked.
    pub name: Option<Arc<str>>,
    /// The specification; a condition's lock is named by its handle in this session.
    pub spec: Spec,
}

/// An object's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Free permits; 1 for an event that is set; parties that have arrived.
    pub value: u32,
    /// The number of waiters.
    pub waiters: u32,
    /// Whether a barrier is broken, or a lock poisoned.
    pub broken: bool,
    /// The holders, oldest first, at most [`State::HOLDERS`].
    pub holders: Vec<Holder>,
}

impl State {
    /// The most holders in an answer.
    pub const HOLDERS: usize = 16;
}

/// A client process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id, as the daemon sees it.
    pub pid: u32,
    /// The user id.
    pub uid: u32,
    /// The command or label, for display.
    pub command: Arc<str>,
}

/// An owner, its session and process. Valid after the session's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The session.
    pub session: SessionId,
    /// Its process.
    pub process: Arc<Process>,
    /// The owner.
    pub owner: Owner,
}

/// A holder of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The owner.
    pub party: Party,
    /// The fencing token.
    pub token: FencingToken,
    /// How long it has held the object.
    pub held: Duration,
    /// How many times it holds the object.
    pub depth: u32,
}

/// A hold that ended without a release by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandonment {
    /// The former owner.
    pub by: Party,
    /// The hold's token.
    pub token: FencingToken,
    /// How long the object was held.
    pub held: Duration,
    /// When the hold ended.
    pub at: crate::Time,
    /// Why it ended.
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
    /// Released by another owner, as a Lock or Semaphore may be: not an abandonment.
    Released,
}

/// An object for display: its name, or else its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The id.
    pub id: ObjectId,
    /// `None`: anonymous.
    pub name: Option<Arc<str>>,
}

impl Body {
    /// A number that identifies the kind of answer and its main value, for digests.
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
    /// The approximate bytes that a kept message takes: its own and what only it points to.
    pub fn weight(&self) -> usize {
        let beside = match &self.body {
            Body::HoldLost { .. } | Body::SessionEnd(_) => 0,
            Body::Reply(_, Ok(answer)) => match answer {
                Answer::Attached(_) => size_of::<Attachment>(),
                Answer::State(state) => size_of_val(&*state.holders),
                // Once told, an abandonment is no longer shared with the object.
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

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "#{}", self.id.0),
        }
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
