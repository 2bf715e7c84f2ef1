//! The blocking client, and the thread of [`Client::on_lost`].

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{
    AnyLock, Barrier, BoundedSemaphore, Condition, Event, Lock, NoSignals, RLock, Semaphore, pause,
    wait, wait_for_end,
};
use crate::{
    Attachable, Builder, Cause, ConnectError, CreateError, Endpoint, SessionError, SessionLost,
    Token, client::Shared, object::Object, session::Session,
};

/// How late [`Client::on_lost`] may notice a loss that doesn't end the connection.
const TICK: Duration = Duration::from_millis(500);

/// As [`crate::Client`], for threads.
#[derive(Clone, Debug)]
pub struct Client(pub(crate) crate::Client);

/// As [`crate::ObjectOptions`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing until a constructor is called"]
pub struct ObjectOptions(pub(crate) crate::ObjectOptions);

impl Client {
    /// Connects to the user's daemon, and starts it if there is none.
    ///
    /// # Errors
    /// As [`crate::Client::connect`].
    pub fn connect() -> Result<Self, ConnectError> {
        Self::builder().connect_blocking()
    }

    /// Settings for a client; [`Builder::connect_blocking`] makes it.
    pub fn builder() -> Builder {
        crate::Client::builder()
    }

    pub(crate) fn open(shared: Arc<Shared>) -> Result<Self, ConnectError> {
        wait(shared.connected())?;
        Ok(Self(crate::Client { shared }))
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
        ObjectOptions(self.0.object(name))
    }

    /// As [`crate::Client::anonymous`].
    pub fn anonymous(&self) -> ObjectOptions {
        ObjectOptions(self.0.anonymous())
    }

    /// As [`crate::Client::attach`].
    ///
    /// # Errors
    /// The same.
    pub fn attach<T: Attachable>(&self, token: &Token) -> Result<T, CreateError> {
        wait(Object::attach(&self.0.shared, token, Some(T::KIND))).map(T::from_object)
    }

    /// As [`crate::Client::unlink`].
    ///
    /// # Errors
    /// The same.
    pub fn unlink(&self, name: &str) -> Result<(), CreateError> {
        wait(self.0.shared.unlink(name))
    }

    /// As [`crate::Client::lost`].
    ///
    /// # Errors
    /// The same.
    pub fn lost(&self) -> Result<SessionLost, SessionError> {
        wait(self.0.shared.session())?.threads().lost(&mut NoSignals)
    }

    /// Starts a thread that calls `notice` when the current session is lost: at once if the
    /// connection ends with it, else within 500 ms. If the session is closed, or ends with its last
    /// client, `notice` isn't called.
    ///
    /// # Errors
    /// If there is no session and none can be opened, or the thread can't be started.
    pub fn on_lost(
        &self,
        notice: impl FnOnce(SessionLost) + Send + 'static,
    ) -> Result<(), SessionError> {
        let session = Arc::downgrade(&wait(self.0.shared.session())?);
        thread::Builder::new()
            .name("syncd-lost".to_owned())
            .spawn(move || watch(&session).map(notice))
            .map_err(ConnectError::Thread)?;
        Ok(())
    }

    /// As [`crate::Client::session_id`].
    ///
    /// # Errors
    /// The same.
    pub fn session_id(&self) -> Result<u64, SessionError> {
        Ok(wait(self.0.shared.session())?.facts().id())
    }

    /// As [`crate::Client::similar_namespaces`].
    ///
    /// # Errors
    /// The same.
    pub fn similar_namespaces(&self) -> Result<Vec<String>, SessionError> {
        Ok(wait(self.0.shared.session())?.similar_namespaces())
    }

    /// As [`crate::Client::close`].
    pub fn close(&self) {
        if let Some(session) = self.0.shared.slot().take() {
            session.threads().close(&mut NoSignals);
        }
    }

    /// Waits until every release is in the socket, the session is lost, or `limit` has passed;
    /// returns whether nothing is left to send. Usually it returns at once: a release is sent
    /// before its call returns, unless the daemon is so slow that the socket is full. Dropping the last
    /// client, object or guard of a session does the same, for at most a second.
    ///
    /// # Errors
    /// [`Lost`](SessionError::Lost) if releases were lost with the session.
    pub fn flush(&self, limit: Duration) -> Result<bool, SessionError> {
        self.0.shared.flush(Instant::now() + limit, &mut NoSignals)
    }

    /// As [`crate::Client::endpoint`].
    pub fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }
}

impl ObjectOptions {
    fn map(self, change: impl FnOnce(crate::ObjectOptions) -> crate::ObjectOptions) -> Self {
        Self(change(self.0))
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
        wait(self.0.make_lock()).map(Lock)
    }

    /// As [`crate::ObjectOptions::rlock`].
    ///
    /// # Errors
    /// The same.
    pub fn rlock(self) -> Result<RLock, CreateError> {
        wait(self.0.make_rlock()).map(RLock)
    }

    /// As [`crate::ObjectOptions::semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn semaphore(self, permits: u32) -> Result<Semaphore, CreateError> {
        wait(self.0.make_semaphore(permits)).map(Semaphore)
    }

    /// As [`crate::ObjectOptions::bounded_semaphore`].
    ///
    /// # Errors
    /// The same.
    pub fn bounded_semaphore(self, permits: u32) -> Result<BoundedSemaphore, CreateError> {
        wait(self.0.make_bounded_semaphore(permits)).map(BoundedSemaphore)
    }

    /// As [`crate::ObjectOptions::condition`].
    ///
    /// # Errors
    /// The same.
    pub fn condition(self, lock: &impl AnyLock) -> Result<Condition, CreateError> {
        let lock = crate::AnyLock::object(lock.inner()).clone();
        wait(self.0.make_condition(lock)).map(Condition)
    }

    /// As [`crate::ObjectOptions::event`].
    ///
    /// # Errors
    /// The same.
    pub fn event(self) -> Result<Event, CreateError> {
        wait(self.0.make_event()).map(Event)
    }

    /// As [`crate::ObjectOptions::barrier`].
    ///
    /// # Errors
    /// The same.
    pub fn barrier(self, parties: u32) -> Result<Barrier, CreateError> {
        wait(self.0.make_barrier(parties)).map(Barrier)
    }
}

/// Polls until the session is lost. Returns None if it was closed or dropped.
fn watch(session: &Weak<Session>) -> Option<SessionLost> {
    loop {
        let session = session.upgrade()?;
        if let Some(why) = session.why_lost() {
            return (why.cause() != Cause::Left).then_some(why);
        }
        let socket = session.threads().socket();
        // Waits at a duplicate of the socket: a waiter of the session would keep it open, and might
        // have to lead.
        drop(session);
        match socket.and_then(|socket| socket.duplicate()) {
            Some(socket) => wait_for_end(&socket, TICK),
            None => drop(pause(TICK / 10)),
        }
    }
}
