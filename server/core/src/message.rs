//! What sessions are told: answers, refusals and pushes. Values only.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, FencingToken, Handle, ObjectId, ObjectKey, Owner, RequestId, SessionId, Spec,
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
        token: FencingToken,
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
    pub token: FencingToken,
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
    pub token: FencingToken,
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
    pub token: FencingToken,
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
