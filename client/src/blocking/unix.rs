//! How a thread waits on Unix: its parker polls a wake pipe with poll(2), and the leader's polls
//! the session's socket beside it.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    task::Poll,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use syncd_proto::{Endpoint, socket::Direct};
use tokio::io::ReadBuf;

use crate::fork::{self, Owned};

/// How often a thread wakes by itself that has no wake pipe, for lack of descriptors.
const WITHOUT_PIPE: Duration = Duration::from_millis(20);

/// A session's socket.
pub(super) struct Socket(Owned<Direct>);

impl Socket {
    pub(super) fn connect(endpoint: &Endpoint, _: Option<Instant>) -> io::Result<Self> {
        Direct::connect(endpoint).map(|socket| Self(Owned::new(socket)))
    }

    pub(super) fn read(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        or_pending(self.0.try_read(buf))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        or_pending(self.0.try_write(&[IoSlice::new(bytes)]))
    }

    /// A duplicate descriptor, for [`wait_for_end`].
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        self.0.as_fd().try_clone_to_owned().ok()
    }
}

fn or_pending<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

/// Waits until the socket's other end has closed, for at most `limit`.
pub(super) fn wait_for_end(socket: &OwnedFd, limit: Duration) {
    // No flags: poll(2) always reports POLLHUP, and replies don't wake this thread.
    let _ = poll(&mut [PollFd::new(socket, PollFlags::empty())], timespec(limit).as_ref());
}

/// Sleeps until `limit` or a signal; true if a signal came.
pub(super) fn pause(limit: Duration) -> bool {
    matches!(poll(&mut [], timespec(limit).as_ref()), Err(Errno::INTR))
}

fn timespec(limit: Duration) -> Option<Timespec> {
    Timespec::try_from(limit).ok()
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const WOKEN: u8 = 2;

/// How one thread sleeps and is woken. Wake-ups may be spurious.
pub(super) struct Parker {
    /// The process's: a forked child must not share its parent's pipe.
    generation: u32,
    state: AtomicU8,
    pipe: OnceLock<Option<WakePipe>>,
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slept {
    /// The socket is readable, or has ended.
    pub(super) readable: bool,
    /// A signal handler has run.
    pub(super) interrupted: bool,
}

thread_local! {
    /// Kept per thread to reuse the descriptor.
    static PARKER: RefCell<Option<Arc<Parker>>> = const { RefCell::new(None) };
}

impl Parker {
    pub(super) fn of_this_thread() -> Arc<Self> {
        PARKER.with_borrow_mut(|parker| match parker {
            Some(parker) if parker.generation == fork::generation() => parker.clone(),
            _ => parker.insert(Arc::new(Self::new())).clone(),
        })
    }

    pub(super) fn new() -> Self {
        Self { generation: fork::generation(), state: AtomicU8::new(AWAKE), pipe: OnceLock::new() }
    }

    /// Forgets earlier wake-ups: a wake-up after this ends the next sleep.
    pub(super) fn reset(&self) {
        self.state.store(AWAKE, Release);
    }

    pub(super) fn wake(&self) {
        if self.state.swap(WOKEN, AcqRel) == ASLEEP
            && let Some(Some(pipe)) = self.pipe.get()
        {
            pipe.wake();
        }
    }

    /// Sleeps until woken, a signal, or `end`; with a socket, also until it is readable, or if the
    /// flag says that it is full, writable.
    pub(super) fn park(&self, socket: Option<(&Socket, bool)>, end: Option<Instant>) -> Slept {
        let pipe = self.pipe.get_or_init(|| WakePipe::new().ok()).as_ref();
        let mut limit = end.map(|end| end.saturating_duration_since(Instant::now()));
        if pipe.is_none() {
            limit = Some(limit.map_or(WITHOUT_PIPE, |limit| limit.min(WITHOUT_PIPE)));
        }
        let limit = limit.and_then(timespec);
        if self.state.compare_exchange(AWAKE, ASLEEP, AcqRel, Acquire).is_err() {
            return Slept::default();
        }
        let socket = socket.map(|(socket, full)| {
            let wanted = if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(&*socket.0, wanted)
        });
        let pipe_fd = pipe.map(|pipe| PollFd::new(pipe.end(), PollFlags::IN));
        // The socket first: it usually ends the sleep.
        let polled = match (socket, pipe_fd) {
            (Some(socket), Some(pipe)) => poll_both(&mut [socket, pipe], true, limit.as_ref()),
            (Some(socket), None) => poll_both(&mut [socket], true, limit.as_ref()),
            (None, Some(pipe)) => poll_both(&mut [pipe], false, limit.as_ref()),
            (None, None) => poll_both(&mut [], false, limit.as_ref()),
        };
        self.state.store(AWAKE, Release);
        let (slept, woken) = polled;
        if woken {
            pipe.into_iter().for_each(WakePipe::drain);
        }
        slept
    }
}

/// Polls the socket, if there is one, and the wake pipe. Returns the socket's state, and whether
/// the pipe was written to.
fn poll_both(fds: &mut [PollFd<'_>], has_socket: bool, limit: Option<&Timespec>) -> (Slept, bool) {
    let interrupted = matches!(poll(fds, limit), Err(Errno::INTR));
    if interrupted {
        return (Slept { readable: false, interrupted }, false);
    }
    let (socket, pipe) = fds.split_at(usize::from(has_socket));
    let room = PollFlags::OUT;
    let readable = socket.iter().any(|socket| !(socket.revents() & !room).is_empty());
    let woken = pipe.iter().any(|pipe| !pipe.revents().is_empty());
    (Slept { readable, interrupted: false }, woken)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
use event::WakePipe;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use pair::WakePipe;

/// An eventfd(2): one descriptor instead of a pipe's two.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod event {
    use std::{io, os::fd::OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    use crate::fork::Owned;

    pub(super) struct WakePipe(Owned<OwnedFd>);

    impl WakePipe {
        pub(super) fn new() -> io::Result<Self> {
            let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Self(Owned::new(fd)))
        }

        pub(super) fn end(&self) -> &OwnedFd {
            &self.0
        }

        pub(super) fn wake(&self) {
            let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
        }

        pub(super) fn drain(&self) {
            let _ = rustix::io::read(&*self.0, &mut [0; 8]);
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod pair {
    use std::{
        io::{self, Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use crate::fork::Owned;

    pub(super) struct WakePipe {
        near: Owned<UnixStream>,
        far: Owned<UnixStream>,
    }

    impl WakePipe {
        pub(super) fn new() -> io::Result<Self> {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok(Self { near: Owned::new(near), far: Owned::new(far) })
        }

        pub(super) fn end(&self) -> &UnixStream {
            &self.near
        }

        pub(super) fn wake(&self) {
            // If the pipe is full, the thread will wake anyway.
            let _ = (&*self.far).write(&[1]);
        }

        pub(super) fn drain(&self) {
            let _ = (&*self.near).read(&mut [0; 64]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::unix::{
            net::{UnixListener, UnixStream},
            thread::JoinHandleExt as _,
        },
        sync::mpsc,
        thread,
    };

    use super::*;

    extern "C" fn handle(_: libc::c_int) {}

    /// A socket, and its other end.
    fn connected() -> (Socket, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s").display().to_string().parse().unwrap();
        let listener = UnixListener::bind(endpoint.as_path()).unwrap();
        let socket = Socket::connect(&endpoint, None).unwrap();
        (socket, listener.accept().unwrap().0)
    }

    #[test]
    fn a_signal_ends_the_sleep_of_a_leader_and_of_another_thread() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR2, handle as *const () as libc::sighandler_t) };
        for reads in [true, false] {
            let sleeper = thread::spawn(move || {
                let (socket, _theirs) = connected();
                let parker = Parker::of_this_thread();
                parker.park(reads.then_some((&socket, false)), None)
            });
            while !sleeper.is_finished() {
                // SAFETY: the thread has not been joined.
                unsafe { libc::pthread_kill(sleeper.as_pthread_t(), libc::SIGUSR2) };
                thread::sleep(Duration::from_millis(1));
            }
            assert!(sleeper.join().unwrap().interrupted);
        }
    }

    #[test]
    fn a_wake_up_before_or_during_the_sleep_ends_it() {
        let parker = Parker::of_this_thread();
        let (asleep, sleeps) = mpsc::channel::<Arc<Parker>>();
        let other = thread::spawn(move || sleeps.iter().for_each(|parker| parker.wake()));
        for _ in 0..1000 {
            parker.reset();
            asleep.send(parker.clone()).unwrap();
            parker.park(None, None);
        }
        drop(asleep);
        other.join().unwrap();
    }

    #[test]
    fn a_leader_is_woken_by_data_and_by_room() {
        let (socket, mut theirs) = connected();
        let parker = Parker::new();
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        assert_eq!(parker.park(Some((&socket, false)), soon()), Slept::default());
        assert_eq!(parker.park(Some((&socket, true)), None), Slept::default(), "there is room");
        theirs.write_all(b"x").unwrap();
        assert!(parker.park(Some((&socket, false)), None).readable);
    }

    #[test]
    fn a_thread_without_a_pipe_sleeps_and_wakes_by_itself() {
        let parker = Parker::new();
        assert!(parker.pipe.set(None).is_ok());
        assert_eq!(parker.park(None, None), Slept::default());
        let (socket, mut theirs) = connected();
        theirs.write_all(b"x").unwrap();
        assert!(parker.park(Some((&socket, false)), None).readable);
    }
}
