//! Processes, holders, abandonments and deadlock edges, as the daemon reports them.

use std::{fmt, time::Duration};

use syncd_proto::v1;

use crate::FencingToken;

/// A process, as the daemon knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// User id; 0 on systems without user ids.
    pub uid: u32,
    /// The first words of its command line, or its client's label.
    pub command: String,
    /// The session's number.
    pub session: u64,
}

/// A holder of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The holder's process.
    pub process: Process,
    /// The owner's number within the session: a thread, a task or a guard.
    pub owner: u64,
    /// The hold's fencing token.
    pub token: FencingToken,
    /// How long the object has been held.
    pub held: Duration,
    /// How many times the owner holds the object: more than 1 only for an RLock.
    pub depth: u32,
}

/// A hold that ended without a release.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abandonment {
    /// The former holder's process.
    pub process: Process,
    /// The owner's number within the session.
    pub owner: u64,
    /// How long the object had been held.
    pub held: Duration,
    /// How long ago the hold ended.
    pub ago: Duration,
    /// Why the hold ended.
    pub cause: Cause,
    /// The fencing token of the abandoned hold.
    pub token: FencingToken,
}

/// Why a session, or a hold, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The cause is not known.
    Unknown,
    /// The process exited.
    Died,
    /// The connection broke, and was not resumed within its grace.
    Disconnected,
    /// The client closed the session while it held the object.
    Left,
    /// Somebody ended the session (`syncctl kick`).
    Kicked,
    /// Somebody released the object by force (`syncctl release --force`).
    Forced,
    /// The session broke the protocol.
    Misbehaved,
}

/// One edge of a deadlock: `process` waits for `object`, which the next edge's process holds; the
/// first edge's process holds the last edge's object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadlockEdge {
    /// The waiting process.
    pub process: Process,
    /// The owner's number within the session.
    pub owner: u64,
    /// The object's name, or its number if it has none.
    pub object: String,
    /// How long the owner has waited; zero for the request that was refused.
    pub waited: Duration,
    /// How long the next edge's process has held `object`.
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
