//! How one thread of the blocking client sleeps, and is woken. Never here: what for.

use std::{
    cell::RefCell,
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    task::{Poll, Wake, Waker},
};

use crate::fork;

/// A thread's. It may be woken at any time, needlessly too.
pub(super) struct Seat {
    /// Of the process: a forked child must not share its parent's bell.
    generation: u32,
    woken: AtomicBool,
    sleep: Mutex<Sleep>,
    #[cfg(unix)]
    bell: std::sync::OnceLock<bell::Bell>,
}

/// What it takes to wake it.
enum Sleep {
    /// Nothing: it runs.
    No,
    #[cfg(unix)]
    Bell,
    Runtime(Waker),
}

thread_local! {
    static SEAT: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

impl Seat {
    pub(super) fn of_this_thread() -> Arc<Self> {
        SEAT.with_borrow_mut(|seat| match seat {
            Some(seat) if seat.generation == fork::generation() => seat.clone(),
            _ => seat.insert(Arc::new(Self::new())).clone(),
        })
    }

    fn new() -> Self {
        Self {
            generation: fork::generation(),
            woken: AtomicBool::new(false),
            sleep: Mutex::new(Sleep::No),
            #[cfg(unix)]
            bell: std::sync::OnceLock::new(),
        }
    }

    /// Whoever wakes it from now on wakes it anew.
    pub(super) fn begin(&self) {
        self.woken.store(false, Release);
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Acquire)
    }

    /// Waits in a runtime until it is woken.
    pub(super) async fn woken(&self) {
        poll_fn(|cx| {
            self.set(Sleep::Runtime(cx.waker().clone()));
            if self.is_woken() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.set(Sleep::No);
    }

    fn set(&self, sleep: Sleep) {
        *self.sleep.lock().unwrap_or_else(PoisonError::into_inner) = sleep;
    }
}

impl Wake for Seat {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the look at how it sleeps, as it looks at this after it has said how.
        if self.woken.swap(true, AcqRel) {
            return;
        }
        match &*self.sleep.lock().unwrap_or_else(PoisonError::into_inner) {
            Sleep::No => {}
            #[cfg(unix)]
            Sleep::Bell => self.bell.get().into_iter().for_each(bell::Bell::ring),
            Sleep::Runtime(waker) => waker.wake_by_ref(),
        }
    }
}

#[cfg(unix)]
mod bell {
    use std::{
        io::{self, Read as _, Write as _},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        io::Errno,
    };
    use tokio::time::Instant;

    use super::{Seat, Sleep};
    use crate::session::{
        tap::Tap,
        thread::{LONG, Patience},
    };

    /// Wakes a thread that waits for descriptors.
    pub(super) struct Bell {
        rope: UnixStream,
        ear: UnixStream,
    }

    impl Bell {
        fn new() -> io::Result<Self> {
            let (rope, ear) = UnixStream::pair()?;
            rope.set_nonblocking(true)?;
            ear.set_nonblocking(true)?;
            Ok(Self { rope, ear })
        }

        pub(super) fn ring(&self) {
            // If it is full, it rings already.
            let _ = (&self.rope).write(&[1]);
        }

        fn hush(&self) {
            let _ = (&self.ear).read(&mut [0; 64]);
        }
    }

    impl Seat {
        /// Waits until it is woken; or, if it `leads`, until something came through the tap; or,
        /// if that is `full`, until there is room. False: none of these, but a signal's handler
        /// ran, or patience is over.
        pub(in crate::session) fn wait_at(
            &self,
            tap: &Tap,
            leads: bool,
            full: bool,
            patience: Patience,
        ) -> bool {
            let Some(bell) = self.bell() else {
                // No descriptor is left for one.
                thread::sleep(Duration::from_millis(1));
                return true;
            };
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, leads);
            wanted.set(PollFlags::OUT, full);
            let mut watched = [PollFd::new(&bell.ear, PollFlags::IN), PollFd::new(tap, wanted)];
            let watched = &mut watched[..if wanted.is_empty() { 1 } else { 2 }];
            let limit = match patience {
                Patience::Endless => None,
                Patience::Until(end) => Some(end.saturating_duration_since(Instant::now())),
                Patience::Signal => Some(LONG),
            };
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            self.set(Sleep::Bell);
            let polled = match self.is_woken() {
                true => Ok(1),
                false => poll(watched, limit.as_ref()),
            };
            self.set(Sleep::No);
            if !watched[0].revents().is_empty() {
                bell.hush();
            }
            if leads && watched.get(1).is_some_and(|tap| !tap.revents().is_empty()) {
                tap.look();
            }
            !matches!(polled, Ok(0) | Err(Errno::INTR))
        }

        fn bell(&self) -> Option<&Bell> {
            if self.bell.get().is_none() {
                let bell = Bell::new().ok()?;
                let _ = self.bell.set(bell);
            }
            self.bell.get()
        }
    }

    #[cfg(test)]
    mod tests {
        use std::{
            os::unix::{net::UnixListener, thread::JoinHandleExt as _},
            sync::{Arc, mpsc},
            task::Waker,
        };

        use syncd_proto::{Endpoint, socket};

        use super::*;

        extern "C" fn handle(_: libc::c_int) {}

        /// A tap, and the socket at its other end.
        fn connected() -> (Tap, UnixStream) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let endpoint: Endpoint = path.display().to_string().parse().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let socket = runtime.unwrap().block_on(socket::connect(&endpoint)).unwrap();
            (Tap::new(socket), listener.accept().unwrap().0)
        }

        #[test]
        fn a_signal_ends_the_wait_of_one_that_reads_and_of_one_that_does_not() {
            // SAFETY: the handler does nothing.
            unsafe { libc::signal(libc::SIGUSR2, handle as *const () as libc::sighandler_t) };
            for leads in [true, false] {
                let waiter = thread::spawn(move || {
                    let (tap, _theirs) = connected();
                    Seat::of_this_thread().wait_at(&tap, leads, false, Patience::Endless)
                });
                while !waiter.is_finished() {
                    // SAFETY: the thread has not been joined.
                    unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR2) };
                    thread::sleep(Duration::from_millis(1));
                }
                assert!(!waiter.join().unwrap());
            }
        }

        #[test]
        fn what_wakes_a_seat_ends_its_wait_whether_it_comes_before_or_meanwhile() {
            let (tap, _theirs) = connected();
            let seat = Seat::of_this_thread();
            let (waker, woken) = mpsc::channel::<Waker>();
            let other = thread::spawn(move || woken.iter().for_each(Waker::wake));
            for _ in 0..1000 {
                seat.begin();
                waker.send(seat.clone().into()).unwrap();
                while !seat.is_woken() {
                    assert!(seat.wait_at(&tap, false, false, Patience::Endless));
                }
            }
            drop(waker);
            other.join().unwrap();
        }

        #[test]
        fn only_the_one_that_reads_is_woken_by_what_comes() {
            let (tap, mut theirs) = connected();
            let seat = Arc::new(Seat::new());
            let soon = || Patience::Until(Instant::now() + Duration::from_millis(1));
            assert!(!seat.wait_at(&tap, true, false, soon()));
            theirs.write_all(b"x").unwrap();
            assert!(!seat.wait_at(&tap, false, false, soon()));
            assert!(seat.wait_at(&tap, true, false, Patience::Endless));
            assert!(seat.wait_at(&tap, false, true, Patience::Endless), "there is room");
        }
    }
}
