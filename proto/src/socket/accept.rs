//! Why a connection was not accepted, classified by what an accepting loop must do next.

use std::io;

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The connection's fault: it was closed meanwhile, or its peer can't be identified. It is
    /// closed; accept the next one at once.
    #[error(transparent)]
    Peer(io::Error),
    /// No descriptor or memory is left: the connection stays in the queue. Accept again later.
    #[error(transparent)]
    Exhausted(io::Error),
    /// The listener doesn't work.
    #[error(transparent)]
    Listener(io::Error),
}

impl AcceptError {
    /// Whether an error means that no descriptor or memory is left.
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
