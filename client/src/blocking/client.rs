//! The blocking client, and the one thread that it may start. Never here: the objects.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use super::{AnyLock, Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};
use crate::{
    Attachable, Builder, Cause, ConnectError, CreateError, Endpoint, SessionError, SessionLost,
    Token, client::Shared, session::Session,
};

/// How late the loss of a session may be noticed whose connection doesn't end with it.
const TICK: Duration = Duration::from_millis(500);

/// As [`crate::Client`], for threads.
#[derive(Clone, Debug)]
pub struct Client(crate::Client);

/// As [`crate::ObjectOptions`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing until a constructor is called"]
pub struct ObjectOptions {
    client: Arc<Shared>,
    options: crate::ObjectOptions,
}

impl Client {
    /// Connects to the user's daemon, and starts it if there is none.
    ///
    /// # Errors
    /// As [`crate::Client::connect`].
    pub fn connect() -> Result<Self, ConnectError> {
        Self::builder().connect_blocking()
    }

    /// A client that is to differ from the usual one; [`Builder::connect_blocking`] makes it.
    pub fn builder() -> Builder {
        crate::Client::builder()
    }

    pub(crate) fn open(shared: Arc<Shared>) -> Result<Self, ConnectError> {
        match shared.block_on(shared.session()) {
            Ok(_) => Ok(Self(crate::Client { shared })),
            Err(SessionError::Connect(error)) => Err(*error),
            Err(error) => Err(ConnectError::Unreachable {
                endpoint: shared.endpoint.clone(),
                reason: error.to_string(),
            }),
        }
    }

    /// As [`crate::Client::lock`].
    ///
    /// # Errors
    /// The same.
    pub fn lock(&self, name: &str) -> Result<Lock, CreateError> {
        self.object(name).lock()
    }

    /// As [`crate::Client::rlock`].
    ///
    /// # Errors
    /// The same.
    pub fn rlock(&self, name: &str) -> Result<RLock, CreateError> {
        self.object(name).rlock()
    }

    /// As [`crate::Client::semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn semaphore(&self, name: &str, permits: u32) -> Result<Semaphore, CreateError> {
        self.object(name).semaphore(permits)
    }

    /// As [`crate::Client::bounded_semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn bounded_semaphore(
        &self,
        name: &str,
        permits: u32,
    ) -> Result<BoundedSemaphore, CreateError> {
        self.object(name).bounded_semaphore(permits)
    }

    /// As [`crate::Client::condition`].
    ///
    /// # Errors
    /// The same.
    pub fn condition(&self, name: &str, lock: &impl AnyLock) -> Result<Condition, CreateError> {
        self.object(name).condition(lock)
    }

    /// As [`crate::Client::event`].
    ///
    /// # Errors
    /// The same.
    pub fn event(&self, name: &str) -> Result<Event, CreateError> {
        self.object(name).event()
    }

    /// As [`crate::Client::barrier`].
    ///
    /// # Errors
    /// The same.
    pub fn barrier(&self, name: &str, parties: u32) -> Result<Barrier, CreateError> {
        self.object(name).barrier(parties)
    }

    /// As [`crate::Client::object`].
    pub fn object(&self, name: &str) -> ObjectOptions {
        ObjectOptions { client: self.0.shared.clone(), options: self.0.object(name) }
    }

    /// As [`crate::Client::anonymous`].
    pub fn anonymous(&self) -> ObjectOptions {
        ObjectOptions { client: self.0.shared.clone(), options: self.0.anonymous() }
    }

    /// As [`crate::Client::attach`].
    ///
    /// # Errors
    /// The same.
    pub fn attach<T: Attachable>(&self, token: &Token) -> Result<T, CreateError> {
        self.0.shared.block_on(self.0.attach(token))
    }

    /// As [`crate::Client::unlink`].
    ///
    /// # Errors
    /// The same.
    pub fn unlink(&self, name: &str) -> Result<(), CreateError> {
        self.0.shared.block_on(self.0.unlink(name))
    }

    /// As [`crate::Client::lost`].
    ///
    /// # Errors
    /// The same.
    pub fn lost(&self) -> Result<SessionLost, SessionError> {
        self.0.shared.block_on(self.0.lost())
    }

    /// Calls `notice` when the current session is lost, from a thread that waits for that; not
    /// if it is closed, or goes with its last client. It is seen at once if its connection ends
    /// with it, and within half a second otherwise.
    ///
    /// # Errors
    /// If there is no session and none can be opened, or no thread can be started.
    pub fn on_lost(
        &self,
        notice: impl FnOnce(SessionLost) + Send + 'static,
    ) -> Result<(), SessionError> {
        let session = Arc::downgrade(&self.0.shared.block_on(self.0.shared.session())?);
        thread::Builder::new()
            .name("syncd-lost".to_owned())
            .spawn(move || watch(&session).map(notice))
            .map_err(ConnectError::Reactor)?;
        Ok(())
    }

    /// As [`crate::Client::session_id`].
    ///
    /// # Errors
    /// The same.
    pub fn session_id(&self) -> Result<u64, SessionError> {
        self.0.shared.block_on(self.0.session_id())
    }

    /// As [`crate::Client::close`].
    pub fn close(&self) {
        let closed = async {
            self.0.close().await;
            Ok::<_, SessionError>(())
        };
        // Without a reactor there is no session to close.
        let _ = self.0.shared.block_on(closed);
    }

    /// As [`crate::Client::endpoint`].
    pub fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }
}

impl ObjectOptions {
    fn map(self, change: impl FnOnce(crate::ObjectOptions) -> crate::ObjectOptions) -> Self {
        Self { options: change(self.options), ..self }
    }

    /// As [`crate::ObjectOptions::keep`].
    pub fn keep(self) -> Self {
        self.map(crate::ObjectOptions::keep)
    }

    /// As [`crate::ObjectOptions::poison`].
    pub fn poison(self) -> Self {
        self.map(crate::ObjectOptions::poison)
    }

    /// As [`crate::ObjectOptions::exclusive`].
    pub fn exclusive(self) -> Self {
        self.map(crate::ObjectOptions::exclusive)
    }

    /// As [`crate::ObjectOptions::lock`].
    ///
    /// # Errors
    /// The same.
    pub fn lock(self) -> Result<Lock, CreateError> {
        self.client.block_on(self.options.lock()).map(Lock)
    }

    /// As [`crate::ObjectOptions::rlock`].
    ///
    /// # Errors
    /// The same.
    pub fn rlock(self) -> Result<RLock, CreateError> {
        self.client.block_on(self.options.rlock()).map(RLock)
    }

    /// As [`crate::ObjectOptions::semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn semaphore(self, permits: u32) -> Result<Semaphore, CreateError> {
        self.client.block_on(self.options.semaphore(permits)).map(Semaphore)
    }

    /// As [`crate::ObjectOptions::bounded_semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn bounded_semaphore(self, permits: u32) -> Result<BoundedSemaphore, CreateError> {
        self.client.block_on(self.options.bounded_semaphore(permits)).map(BoundedSemaphore)
    }

    /// As [`crate::ObjectOptions::condition`].
    ///
    /// # Errors
    /// The same.
    pub fn condition(self, lock: &impl AnyLock) -> Result<Condition, CreateError> {
        self.client.block_on(self.options.condition(lock.inner())).map(Condition)
    }

    /// As [`crate::ObjectOptions::event`].
    ///
    /// # Errors
    /// The same.
    pub fn event(self) -> Result<Event, CreateError> {
        self.client.block_on(self.options.event()).map(Event)
    }

    /// As [`crate::ObjectOptions::barrier`].
    ///
    /// # Errors
    /// The same.
    pub fn barrier(self, parties: u32) -> Result<Barrier, CreateError> {
        self.client.block_on(self.options.barrier(parties)).map(Barrier)
    }
}

/// Waits until the session is lost. Nothing if it was closed, or nobody has it any more.
fn watch(session: &Weak<Session>) -> Option<SessionLost> {
    loop {
        let session = session.upgrade()?;
        session.check();
        if let Some(why) = session.why_lost() {
            return (why.cause() != Cause::Left).then_some(why);
        }
        match duplicate(&session) {
            // Who waits at the reactor keeps others from it; so not there, while all is well.
            Some(socket) => {
                drop(session);
                wait_for_end(&socket);
            }
            None => session.stand_by(TICK),
        }
    }
}

#[cfg(unix)]
fn duplicate(session: &Session) -> Option<std::os::fd::OwnedFd> {
    let descriptor = session.descriptor();
    if descriptor < 0 {
        return None;
    }
    // SAFETY: it is only duplicated. Were it closed at this moment, and another opened in its
    // place, that one's end would be waited for, for a tick.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().ok()
}

#[cfg(unix)]
fn wait_for_end(socket: &std::os::fd::OwnedFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
    // No flag: its end is told unasked, and replies to other threads wake nobody here.
    let _ = poll(&mut [PollFd::new(socket, PollFlags::empty())], Some(&tick));
}

#[cfg(windows)]
fn duplicate(_: &Session) -> Option<()> {
    None
}

#[cfg(windows)]
fn wait_for_end((): &()) {}
