//! Why a subcommand failed: the message for standard error and the exit code. (The exit code of a
//! command under `syncctl run` is the command's own.)

use std::io;

use syncd_proto::Endpoint;
use tonic::{Code, Status};

/// Why a subcommand failed. The text says what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No daemon listens.
    #[error("no daemon at {0}: start one with 'syncd' or 'syncctl daemon'")]
    NoDaemon(Endpoint),
    /// The process that listens can't be trusted, or doesn't answer.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon refused, or there is no such object, session or namespace.
    #[error("{0}")]
    Refused(String),
    /// The daemon refused the lock of `run` for another reason than a time-out.
    #[error("{0}")]
    Denied(String),
    /// The lock or permit couldn't be acquired in time.
    #[error("{text}")]
    Conflict {
        /// The message, with the holders.
        text: String,
        /// The exit code, which the user may choose.
        code: u8,
    },
    /// The lock was lost while the command ran, and the command was stopped.
    #[error("{0}")]
    Lost(String),
    /// The command can't be executed.
    #[error("{program}: {error}")]
    Exec {
        /// The program, as given.
        program: String,
        /// The error of fork(2) or execve(2).
        error: io::Error,
    },
    /// A check of the demo failed, or a step of demo or bench did.
    #[error("{0}")]
    Unmet(String),
    /// A system call failed; usually because standard output is closed.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// No daemon, or no usable one (`EX_UNAVAILABLE` of sysexits.h).
pub const NO_DAEMON: u8 = 69;
/// The lock was lost while the command ran (`EX_IOERR`).
pub const LOST: u8 = 74;
/// The lock couldn't be acquired in time (`EX_TEMPFAIL`), unless another code was asked for.
pub const CONFLICT: u8 = 75;
/// The daemon refused `syncctl run` its lock (`EX_PROTOCOL`).
pub const DENIED: u8 = 76;

impl Failure {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon(_) | Self::Unreachable(_) => NO_DAEMON,
            Self::Denied(_) => DENIED,
            Self::Conflict { code, .. } => *code,
            Self::Lost(_) => LOST,
            Self::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            // As a shell reports a program that SIGPIPE killed.
            Self::System(error) if error.kind() == io::ErrorKind::BrokenPipe => 141,
            Self::Refused(_) | Self::Unmet(_) | Self::System(_) => 1,
        }
    }

    /// Whether to print nothing: a broken pipe.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::System(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match (status.code(), status.message()) {
            (Code::Unavailable | Code::Unknown, text) => {
                Self::Unreachable(format!("the daemon closed the connection: {text}"))
            }
            (Code::Unauthenticated, text) => Self::Unreachable(text.to_owned()),
            (code, "") => Self::Refused(format!("the daemon refused: {code}")),
            (_, text) => Self::Refused(text.to_owned()),
        }
    }
}
