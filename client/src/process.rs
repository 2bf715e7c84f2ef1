//! Who holds, who waits, who died: the daemon's words about processes, as types.

use std::{fmt, time::Duration};

use syncd_proto::v1;

use crate::FencingToken;

/// A process, as the daemon knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// User id; 0 where there are none.
    pub uid: u32,
    /// The first words of its command line, or its client's label.
    pub command: String,
    /// The session's number.
    pub session: u64,
}

/// Somebody who holds an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The process that it belongs to.
    pub process: Process,
    /// Its number within the session: of a thread, a task or a guard.
    pub owner: u64,
    /// The hold's fencing token.
    pub token: FencingToken,
    /// For how long it has held.
    pub held: Duration,
    /// How often: more than 1 for an RLock alone.
    pub depth: u32,
}

/// A hold that ended without a release.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abandonment {
    /// Who left it.
    pub process: Process,
    /// Its number within the session.
    pub owner: u64,
    /// How long it had held the object.
    pub held: Duration,
    /// How long ago it lost it.
    pub ago: Duration,
    /// Why.
    pub cause: Cause,
    /// The fencing token of the abandoned hold.
    pub token: FencingToken,
}

/// Why a session, or a hold, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Not known.
    Unknown,
    /// The process exited.
    Died,
    /// The connection broke, and was not resumed within its grace.
    Disconnected,
    /// The session was closed in order, while it held the object.
    Left,
    /// Somebody ended the session.
    Kicked,
    /// Somebody released the object by force.
    Forced,
    /// The session broke the protocol.
    Misbehaved,
}

/// One edge of a deadlock: `process` waits for `object`, which the next edge's process holds,
/// and the last edge's the first's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadlockEdge {
    /// Who waits.
    pub process: Process,
    /// Its number within the session.
    pub owner: u64,
    /// The name of what it waits for, or its number if it has none.
    pub object: String,
    /// How long it has waited; zero for the one that was refused.
    pub waited: Duration,
    /// How long the next one has held `object`.
    pub held: Duration,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)
    }
}

impl fmt::Display for Abandonment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, cause, held, ago, .. } = self;
        write!(f, "abandoned by {process}, which {cause} {ago:.1?} ago after holding it {held:.1?}")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "ended",
            Self::Died => "died",
            Self::Disconnected => "was disconnected",
            Self::Left => "left",
            Self::Kicked => "was kicked",
            Self::Forced => "lost it by force",
            Self::Misbehaved => "broke the protocol",
        })
    }
}

impl From<v1::Process> for Process {
    fn from(v1::Process { pid, uid, command, session }: v1::Process) -> Self {
        Self { pid, uid, command, session }
    }
}

impl From<v1::Holder> for Holder {
    fn from(holder: v1::Holder) -> Self {
        Self {
            process: holder.process.unwrap_or_default().into(),
            owner: holder.owner,
            token: FencingToken::new(holder.token),
            held: Duration::from_micros(holder.held_us),
            depth: holder.depth,
        }
    }
}

impl From<v1::Abandonment> for Abandonment {
    fn from(left: v1::Abandonment) -> Self {
        Self {
            cause: left.cause().into(),
            process: left.process.unwrap_or_default().into(),
            owner: left.owner,
            held: Duration::from_micros(left.held_us),
            ago: Duration::from_micros(left.ago_us),
            token: FencingToken::new(left.token),
        }
    }
}

impl From<v1::Cause> for Cause {
    fn from(cause: v1::Cause) -> Self {
        match cause {
            v1::Cause::Unspecified => Self::Unknown,
            v1::Cause::Died => Self::Died,
            v1::Cause::Disconnected => Self::Disconnected,
            v1::Cause::Left => Self::Left,
            v1::Cause::Kicked => Self::Kicked,
            v1::Cause::Forced => Self::Forced,
            v1::Cause::Misbehaved => Self::Misbehaved,
        }
    }
}

impl From<v1::DeadlockEdge> for DeadlockEdge {
    fn from(edge: v1::DeadlockEdge) -> Self {
        Self {
            process: edge.process.unwrap_or_default().into(),
            owner: edge.owner,
            object: edge.object,
            waited: Duration::from_micros(edge.waited_us),
            held: Duration::from_micros(edge.held_us),
        }
    }
}
