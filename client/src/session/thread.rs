//! How a thread of the blocking client waits: in the kernel, at the socket, if it is the one that
//! reads; at a bell of its own, if another does; in a runtime, while a connection is made.
//! Never here: which thread reads.

use std::{
    cell::Cell,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

#[cfg(unix)]
use super::tap::Tap;
use super::{Session, driver::State, seat::Seat};

/// How late a signal may be noticed that comes while a connection is made.
const TICK: Duration = Duration::from_millis(50);

/// How late one may be noticed that comes in the instant between the last look for signals and
/// the wait.
#[cfg(unix)]
pub(super) const LONG: Duration = Duration::from_secs(1);

/// What makes a thread return from a wait with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    Endless,
    Until(Instant),
    /// Until a signal's handler has run; or for no reason, now and then.
    Signal,
}

/// The blocking client's runtime: for connections in the making, which need time and sockets.
#[derive(Clone, Debug)]
pub(crate) struct Reactor(Arc<Background>);

#[derive(Debug)]
struct Background(Option<tokio::runtime::Runtime>);

/// Where a thread that has been polled is to wait: at this session.
pub(super) struct Post {
    pub(super) session: Arc<Session>,
    pub(super) id: u64,
    pub(super) at: Option<Place>,
}

/// At a socket that no reactor watches. Elsewhere than on Unix one watches each.
#[cfg(unix)]
pub(super) struct Place {
    pub(super) tap: Arc<Tap>,
    /// It reads, and hands out what comes.
    pub(super) leads: bool,
    /// Something is to be written when the socket has room.
    pub(super) full: bool,
}

#[cfg(not(unix))]
pub(super) enum Place {}

thread_local! {
    static POST: Cell<Option<Post>> = const { Cell::new(None) };
}

impl Post {
    /// Of this thread, unless it stops waiting before its call has been polled to the end.
    pub(super) fn take_up(self) {
        POST.set(Some(self));
    }

    /// This thread no longer waits by that number.
    pub(super) fn leave(id: u64) {
        POST.set(POST.take().filter(|post| post.id != id));
    }
}

impl Place {
    #[cfg(unix)]
    pub(super) fn of(state: &State, leads: bool) -> Option<Self> {
        let State::Up(link) = state else { return None };
        let outlet = link.outlet();
        outlet.tap().map(|tap| Self { tap, leads, full: outlet.is_full() })
    }

    #[cfg(unix)]
    fn wait(self, seat: &Seat, patience: Patience) -> bool {
        seat.wait_at(&self.tap, self.leads, self.full, patience)
    }

    #[cfg(not(unix))]
    pub(super) fn of(_: &State, _: bool) -> Option<Self> {
        None
    }

    #[cfg(not(unix))]
    fn wait(self, _: &Seat, _: Patience) -> bool {
        match self {}
    }
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build()?;
        Ok(Self(Arc::new(Background(Some(runtime)))))
    }

    /// Runs a call to its end.
    pub(crate) fn block_on<T>(&self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        loop {
            if let Some(done) = self.run(call.as_mut(), Patience::Endless) {
                return done;
            }
        }
    }

    /// Runs a call for as long as patience allows.
    pub(crate) fn run<T>(
        &self,
        mut call: Pin<&mut impl Future<Output = T>>,
        patience: Patience,
    ) -> Option<T> {
        assert!(
            tokio::runtime::Handle::try_current().is_err(),
            "a call of the blocking client within a Tokio runtime, which it would block"
        );
        let seat = Seat::of_this_thread();
        let waker = Waker::from(seat.clone());
        let mut cx = Context::from_waker(&waker);
        let mut interrupted = false;
        loop {
            seat.begin();
            POST.set(None);
            let polled = {
                let _context = self.runtime().enter();
                call.as_mut().poll(&mut cx)
            };
            let post = POST.take();
            let is_late = matches!(patience, Patience::Until(end) if Instant::now() >= end);
            if polled.is_ready() || interrupted || is_late {
                // What still waits may not be polled for long: somebody else is to read.
                if let Some(post) = post {
                    post.session.step_aside(&waker);
                }
                return match polled {
                    Poll::Ready(done) => Some(done),
                    Poll::Pending => None,
                };
            }
            if seat.is_woken() {
                continue;
            }
            let went_on = match post.and_then(|post| post.at) {
                Some(place) => place.wait(&seat, patience),
                None => self.serve(&seat, patience),
            };
            interrupted = !went_on && patience == Patience::Signal;
        }
    }

    /// Waits until it is woken, and serves the runtime meanwhile. False: it wasn't.
    fn serve(&self, seat: &Seat, patience: Patience) -> bool {
        self.runtime().block_on(async {
            let end = match patience {
                Patience::Endless => {
                    seat.woken().await;
                    return true;
                }
                Patience::Until(end) => end,
                Patience::Signal => Instant::now() + TICK,
            };
            tokio::time::timeout_at(end, seat.woken()).await.is_ok()
        })
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.0.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A plain drop would panic in an async context, where a client may well be dropped.
        self.0.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}
