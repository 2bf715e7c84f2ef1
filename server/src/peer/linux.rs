//! The end of a process as Linux tells it: a pidfd turns readable. A forked child that keeps
//! the socket open changes nothing about that.

use std::{io, os::fd::OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use syncd_proto::socket::Socket;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

/// `None`: this kernel has no such thing, and the socket's end is the only witness.
pub(super) struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    pub(super) fn new(socket: &Socket, pid: u32) -> io::Result<Self> {
        match socket.peer_pidfd() {
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Ok(Self(Some(pidfd?)))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                ) =>
            {
                warn!(pid, %error, "this process can't be watched: only its socket tells its end");
                Ok(Self(None))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn has_exited(&self) -> bool {
        let Some(pidfd) = &self.0 else { return false };
        let mut fds = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    pub(super) async fn exited(&self) {
        if let Some(pidfd) = &self.0
            && pidfd.readable().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
