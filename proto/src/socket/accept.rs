//! Whose fault it is that a connection was not accepted, by which an accepting loop decides what to
//! do next.

use std::io;

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Its own fault: it has gone meanwhile, or the system doesn't tell who is at its other end.
    /// It is closed; the next one can be accepted at once.
    #[error(transparent)]
    Peer(io::Error),
    /// No descriptor or no memory is left for it. It waits until there is.
    #[error(transparent)]
    Exhausted(io::Error),
    /// The listener doesn't work.
    #[error(transparent)]
    Listener(io::Error),
}

impl AcceptError {
    /// Whether an error says that there is no descriptor or no memory left.
    pub fn is_exhausted(error: &io::Error) -> bool {
        #[cfg(unix)]
        return matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC)
        );
        #[cfg(windows)]
        return error.kind() == io::ErrorKind::OutOfMemory;
    }

    pub(super) fn of_listener(error: io::Error) -> Self {
        match error.kind() {
            _ if Self::is_exhausted(&error) => Self::Exhausted(error),
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::WouldBlock => Self::Peer(error),
            _ => Self::Listener(error),
        }
    }

    pub(super) fn of_peer(error: io::Error) -> Self {
        if Self::is_exhausted(&error) { Self::Exhausted(error) } else { Self::Peer(error) }
    }
}
