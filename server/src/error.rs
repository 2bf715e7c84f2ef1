//! Why a daemon can't start or go on.

use std::{io, path::PathBuf};

use syncd_proto::Endpoint;

/// Why a daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another daemon has this socket.
    #[error(
        "syncd is already running at {endpoint}{}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    AlreadyRunning {
        /// Its socket.
        endpoint: Endpoint,
        /// Its process, if its lock file tells.
        pid: Option<u32>,
    },
    /// The directory of the socket can't be made or trusted.
    #[error("directory {}: {error}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The directory of the journal can't be made or trusted.
    #[error(
        "journal in {}: {error}; put it elsewhere with --journal, or do without with --no-journal",
        path.display()
    )]
    Journal {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The lock file can't be written.
    #[error("lock file {}: {error}", path.display())]
    Lock {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The socket can't be bound.
    #[error("can't listen at {endpoint}: {error}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        error: io::Error,
    },
    /// Its place is another's, or gone.
    #[error("syncd left {endpoint}, which isn't its own any more: {why}")]
    PlaceLost {
        /// Where it was.
        endpoint: Endpoint,
        /// What has become of it.
        why: &'static str,
    },
    /// The daemon whose place was wanted goes on, or another has it.
    #[error("the daemon at {endpoint} was not replaced, and goes on: {why}")]
    NotReplaced {
        /// Where it is.
        endpoint: Endpoint,
        /// What it said, or what is missing.
        why: String,
    },
    /// The daemon that was given the place has ended, and didn't serve yet.
    #[error(
        "process {pid}, which was given this daemon's place, ended before it served: start a \
         daemon again, and it goes on from the journal (clients that may start one do so)"
    )]
    HeirLost {
        /// Its process.
        pid: u32,
    },
    /// The runtime can't start.
    #[error("runtime: {0}")]
    Runtime(io::Error),
    /// The socket that systemd passed can't be used.
    #[error("socket activation: {0}")]
    Activation(io::Error),
}
