//! The end of a process on Linux: its pidfd becomes readable (pidfd_open(2)), even if a forked child
//! keeps the socket open. If there are too few descriptors, /proc is polled instead.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Once,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open, test_kill_process},
};
use syncd_proto::socket::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};
use tracing::warn;

/// How often a process without a pidfd is polled.
const POLL: Duration = Duration::from_millis(500);

/// How a process's end is noticed.
pub(super) enum Watch {
    Pidfd(AsyncFd<OwnedFd>),
    /// There are too few descriptors: by polling the PID and start time.
    Number(Pid, Option<u64>),
    /// The kernel has no pidfds: only by the end of the socket.
    Nothing,
}

impl Watch {
    pub(super) fn new(socket: &Socket, pid: u32) -> io::Result<Self> {
        match socket.peer_pidfd() {
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Ok(Self::Pidfd(pidfd?))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                ) =>
            {
                warn!(pid, %error, "can't watch this process: its end is noticed only by its socket");
                Ok(Self::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Watches the process that has the PID now; `None` if there is none. Leaves half of the
    /// descriptors for new connections.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let few = || {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                warn!(
                    "too few descriptors (ulimit -n) to watch each process of the previous daemon: \
                     the others are polled every {POLL:?}"
                );
            });
            Some(Self::Number(number, Stat::of(pid).map(|stat| stat.started)))
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) if is_beyond_half(&pidfd) => few(),
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Some(pidfd.map_or(Self::Nothing, Self::Pidfd))
            }
            Err(Errno::SRCH | Errno::INVAL) => None,
            Err(Errno::MFILE | Errno::NFILE) => few(),
            Err(error) => {
                warn!(pid, %error, "can't watch this process: its end is noticed only by its socket");
                Some(Self::Nothing)
            }
        }
    }

    pub(super) fn has_exited(&self) -> bool {
        match self {
            Self::Pidfd(pidfd) => {
                let mut fds = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
                poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            }
            Self::Number(pid, started) => match Stat::of(pid.as_raw_pid().cast_unsigned()) {
                Some(stat) => stat.is_over || started.is_some_and(|then| then != stat.started),
                // /proc may be unreadable for lack of a descriptor.
                None => test_kill_process(*pid) == Err(Errno::SRCH),
            },
            Self::Nothing => false,
        }
    }

    pub(super) async fn exited(&self) {
        match self {
            Self::Pidfd(pidfd) if pidfd.readable().await.is_ok() => return,
            Self::Number(..) => {
                while !self.has_exited() {
                    sleep(POLL).await;
                }
                return;
            }
            _ => {}
        }
        std::future::pending().await
    }
}

/// Whether more than half of the descriptors are in use: the kernel hands out the lowest free number.
fn is_beyond_half(descriptor: &OwnedFd) -> bool {
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    u64::from(descriptor.as_raw_fd().cast_unsigned()) >= all / 2
}

/// When a process was started, in clock ticks since boot: PID and start time together identify a
/// process. `None` where /proc doesn't show it.
pub(super) fn started(pid: u32) -> Option<u64> {
    Stat::of(pid).map(|stat| stat.started)
}

/// The fields of `/proc/<pid>/stat` that are used (proc_pid_stat(5)).
struct Stat {
    /// It has exited, and its parent hasn't reaped it. (If the main thread has ended, others may be
    /// left.)
    is_over: bool,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // Field 2, the name in brackets, may have any bytes in it. Field 3 follows.
        let stat = String::from_utf8_lossy(&stat);
        let (_, rest) = stat.rsplit_once(')')?;
        let mut rest = rest.split_ascii_whitespace();
        let is_zombie = matches!(rest.next()?, "Z" | "X");
        let threads: u32 = rest.nth(16)?.parse().ok()?;
        let started = rest.nth(1)?.parse().ok()?;
        Some(Self { is_over: is_zombie && threads <= 1, started })
    }
}
