//! The end of a process as Linux tells it: a pidfd turns readable. A forked child that keeps
//! the socket open changes nothing about that.

use std::{io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
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

    /// Of whoever has that number; `None`: nobody.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Some(Self(pidfd.ok()))
            }
            Err(Errno::SRCH | Errno::INVAL) => None,
            Err(error) => {
                warn!(pid, %error, "this process can't be watched: only its socket tells its end");
                Some(Self(None))
            }
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

/// When a process began, in clock ticks since the machine's start: no two processes of one number
/// began at the same. `None` where /proc doesn't show it.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name before, in brackets, may have any bytes in it. This is field 22, and that field 2.
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}
