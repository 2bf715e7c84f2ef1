//! The end of a process as Linux tells it: a pidfd turns readable. A forked child that keeps
//! the socket open changes nothing about that. Where there are too few descriptors /proc must do.

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

/// How often a process is looked up of which there is no pidfd.
const LOOK: Duration = Duration::from_millis(500);

/// What tells a process's end.
pub(super) enum Watch {
    Pidfd(AsyncFd<OwnedFd>),
    /// There are too few descriptors: it is looked up, by its number and by when it began.
    Number(Pid, Option<u64>),
    /// This kernel has no such thing, and the socket's end is the only witness.
    Nothing,
}

impl Watch {
    pub(super) fn new(socket: &Socket, pid: u32) -> io::Result<Self> {
        match socket.peer_pidfd() {
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Ok(Self::Pidfd(pidfd?))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                ) =>
            {
                warn!(pid, %error, "this process can't be watched: only its socket tells its end");
                Ok(Self::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Of whoever has that number; `None`: nobody. Half of the descriptors are left to those who come.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let few = || {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                warn!(
                    "too few descriptors (ulimit -n) to watch each process of the daemon before: \
                     whether the others live is looked up every {LOOK:?}"
                );
            });
            Some(Self::Number(number, Stat::of(pid).map(|stat| stat.started)))
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) if is_beyond_half(&pidfd) => few(),
            Ok(pidfd) => {
                // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                Some(pidfd.map_or(Self::Nothing, Self::Pidfd))
            }
            Err(Errno::SRCH | Errno::INVAL) => None,
            Err(Errno::MFILE | Errno::NFILE) => few(),
            Err(error) => {
                warn!(pid, %error, "this process can't be watched: only its socket tells its end");
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
                // There may be no descriptor for that, either.
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
                    sleep(LOOK).await;
                }
                return;
            }
            _ => {}
        }
        std::future::pending().await
    }
}

/// The lowest number that is free is taken, so the number tells how many aren't.
fn is_beyond_half(descriptor: &OwnedFd) -> bool {
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    u64::from(descriptor.as_raw_fd().cast_unsigned()) >= all / 2
}

/// When a process began, in clock ticks since the machine's start: no two processes of one number
/// began at the same. `None` where /proc doesn't show it.
pub(super) fn started(pid: u32) -> Option<u64> {
    Stat::of(pid).map(|stat| stat.started)
}

/// What /proc says of a process.
struct Stat {
    /// It has exited, and its parent hasn't heard of it. (Threads may be left when the first has ended.)
    is_over: bool,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name before, in brackets, may have any bytes in it. The first one after it is field 3.
        let stat = String::from_utf8_lossy(&stat);
        let (_, rest) = stat.rsplit_once(')')?;
        let mut rest = rest.split_ascii_whitespace();
        let is_zombie = matches!(rest.next()?, "Z" | "X");
        let threads: u32 = rest.nth(16)?.parse().ok()?;
        let started = rest.nth(1)?.parse().ok()?;
        Some(Self { is_over: is_zombie && threads <= 1, started })
    }
}
