//! Why a subcommand ended without success, in words for stderr and as an exit code. Never here:
//! the codes of a command that `syncctl run` carried, which are the command's own.

use std::io;

use syncd_proto::Endpoint;
use tonic::{Code, Status};

/// What went wrong. Its text names what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there.
    #[error("no daemon at {0}: start one with 'syncd' or 'syncctl daemon'")]
    NoDaemon(Endpoint),
    /// Somebody listens, but can't be trusted or doesn't talk.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon said no, or there is no such object, session or namespace.
    #[error("{0}")]
    Refused(String),
    /// The daemon refused a command its lock for another reason than time.
    #[error("{0}")]
    Denied(String),
    /// The lock or permit could not be had in time; the code is the caller's choice.
    #[error("{text}")]
    Conflict {
        /// Who has it.
        text: String,
        /// What to exit with.
        code: u8,
    },
    /// The lock was lost while the command ran, and the command was stopped.
    #[error("{0}")]
    Lost(String),
    /// The command can't be executed.
    #[error("{program}: {error}")]
    Exec {
        /// As it was given.
        program: String,
        /// Why it didn't start.
        error: io::Error,
    },
    /// A check of the demo did not hold, or it was interrupted.
    #[error("{0}")]
    Unmet(String),
    /// The system said no: most likely standard output is gone.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// No daemon, or none that can be used (`EX_UNAVAILABLE`).
pub const NO_DAEMON: u8 = 69;
/// The lock was lost while the command ran (`EX_IOERR`).
pub const LOST: u8 = 74;
/// The lock could not be had in time (`EX_TEMPFAIL`), unless another code was asked for.
pub const CONFLICT: u8 = 75;
/// The daemon refused `syncctl run` its lock (`EX_PROTOCOL`).
pub const DENIED: u8 = 76;

impl Failure {
    /// What to exit with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon(_) | Self::Unreachable(_) => NO_DAEMON,
            Self::Denied(_) => DENIED,
            Self::Conflict { code, .. } => *code,
            Self::Lost(_) => LOST,
            Self::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            // As a program that SIGPIPE ends, and as silently.
            Self::System(error) if error.kind() == io::ErrorKind::BrokenPipe => 141,
            Self::Refused(_) | Self::Unmet(_) | Self::System(_) => 1,
        }
    }

    /// Whether there is nobody left to tell.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::System(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match (status.code(), status.message()) {
            (Code::Unavailable | Code::Unknown, text) => {
                Self::Unreachable(format!("the daemon has left: {text}"))
            }
            (Code::Unauthenticated, text) => Self::Unreachable(text.to_owned()),
            (code, "") => Self::Refused(format!("the daemon refused: {code}")),
            (_, text) => Self::Refused(text.to_owned()),
        }
    }
}
