//! The errors of a daemon.

use std::{io, path::PathBuf};

use syncd_proto::Endpoint;

/// Why a daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another daemon has this place.
    #[error(
        "syncd is already running at {endpoint}{}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    AlreadyRunning {
        /// The socket.
        endpoint: Endpoint,
        /// Its process, if the lock file names it.
        pid: Option<u32>,
    },
    /// The socket's directory can't be made or trusted.
    #[error("directory {}: {error}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The journal's directory can't be made or trusted.
    #[error(
        "journal in {}: {error}; use another directory (--journal), or no journal (--no-journal)",
        path.display()
    )]
    Journal {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The lock file can't be opened or locked.
    #[error("lock file {}: {error}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The socket can't be bound.
    #[error("can't listen at {endpoint}: {error}")]
    Bind {
        /// The socket.
        endpoint: Endpoint,
        /// Why.
        error: io::Error,
    },
    /// The daemon's place is no longer its own.
    #[error("syncd exited: {endpoint} is no longer its own: {why}")]
    PlaceLost {
        /// The socket.
        endpoint: Endpoint,
        /// What has changed.
        why: &'static str,
    },
    /// The running daemon refused to be replaced, or couldn't be.
    #[error("the daemon at {endpoint} was not replaced, and goes on: {why}")]
    NotReplaced {
        /// The socket.
        endpoint: Endpoint,
        /// The daemon's reason, or what failed.
        why: String,
    },
    /// The daemon that this one gave its place to ended before it served.
    #[error(
        "process {pid}, which was given this daemon's place, ended before it served: start a \
         daemon again, which restores the journal (clients that may start one do so)"
    )]
    HeirLost {
        /// The new daemon's process id.
        pid: u32,
    },
    /// The tokio runtime can't start.
    #[error("runtime: {0}")]
    Runtime(io::Error),
    /// The socket that systemd passed can't be used.
    #[error("socket activation: {0}")]
    Activation(io::Error),
}
