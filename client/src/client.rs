//! The client: its daemon, its namespace, and this process's current session.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use syncd_proto::{
    Endpoint,
    v1::{Unlink, client_message::Request},
};

use crate::{
    Barrier, BoundedSemaphore, Builder, Condition, ConnectError, CreateError, Event, Lock,
    ObjectOptions, RLock, Semaphore, SessionError, SessionLost, Token, blocking,
    call::{Call, Connect, Plain, call},
    condition::AnyLock,
    fork::{self, PerProcess},
    object::{Attachable, Object, check_name},
    session::{CallError, Session},
    start::{self},
};

/// A client of one daemon, in one namespace. Clones share a session, which ends when the last
/// clone, object and guard of it is dropped.
///
/// The futures need a Tokio runtime with I/O and time enabled.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = syncd_client::Client::connect().await?;
/// let lock = client.lock("nightly backup").await?;
/// let guard = lock.acquire().await?;
/// println!("mine, with fencing token {}", guard.fencing_token());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) namespace: String,
    pub(crate) config: Builder,
    slot: PerProcess<Slot>,
}

/// A client's state in one process; a forked child has its own.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    session: Mutex<Option<Arc<Session>>>,
    /// One task opens a session at a time.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// One thread opens a session at a time.
    pub(crate) door: blocking::Door,
}

impl Slot {
    /// The session, if it is usable. Fails if the session and releases with it were lost, and no
    /// call has reported that yet.
    pub(crate) fn session(&self) -> Result<Option<Arc<Session>>, CallError> {
        let session = self.lock().clone();
        match session {
            Some(session) if session.is_usable() => Ok(Some(session)),
            Some(session) => session.take_untold().map_or(Ok(None), |why| Err(why.into())),
            None => Ok(None),
        }
    }

    pub(crate) fn has_session(&self) -> bool {
        self.lock().as_ref().is_some_and(|session| session.is_usable())
    }

    /// The resume key of the session that the next one replaces; empty if there is none.
    pub(crate) fn replaced(&self) -> Vec<u8> {
        let session = self.lock().clone();
        session.map_or_else(Vec::new, |session| session.replaced())
    }

    /// Removes the session.
    pub(crate) fn take(&self) -> Option<Arc<Session>> {
        self.lock().take()
    }

    /// Sets the session.
    pub(crate) fn put(&self, session: Arc<Session>) {
        let replaced = self.lock().replace(session);
        drop(replaced);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Connects to the user's daemon (see [`Endpoint::from_env_or_default`]), and starts it if
    /// there is none.
    ///
    /// # Errors
    /// If there is no daemon and none can be started, or it refuses the session.
    pub async fn connect() -> Result<Self, ConnectError> {
        Self::builder().connect().await
    }

    /// Settings for a client: endpoint, namespace, time-outs, how to start a daemon.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Settings for a client of the daemon and namespace that a token names. Auto-start is off: a
    /// new daemon wouldn't have the object.
    pub fn of(token: &Token) -> Builder {
        let builder = Self::builder().endpoint(token.endpoint.clone());
        builder.namespace(&token.namespace).auto_start(false)
    }

    /// Gets or creates the lock of that name.
    ///
    /// # Errors
    /// [`KindMismatch`](CreateError::KindMismatch) if the name belongs to another kind of object,
    /// [`Invalid`](CreateError::Invalid) if it is empty or longer than 255 bytes.
    pub async fn lock(&self, name: &str) -> Result<Lock, CreateError> {
        self.object(name).lock().await
    }

    /// Gets or creates the recursive lock of that name.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn rlock(&self, name: &str) -> Result<RLock, CreateError> {
        self.object(name).rlock().await
    }

    /// Gets or creates the semaphore of that name, with `permits` free initially.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); and if it was created with another number of permits.
    pub async fn semaphore(&self, name: &str, permits: u32) -> Result<Semaphore, CreateError> {
        self.object(name).semaphore(permits).await
    }

    /// Gets or creates the semaphore of that name that never has more than `permits` free.
    ///
    /// # Errors
    /// As [`semaphore`](Self::semaphore).
    pub async fn bounded_semaphore(
        &self,
        name: &str,
        permits: u32,
    ) -> Result<BoundedSemaphore, CreateError> {
        self.object(name).bounded_semaphore(permits).await
    }

    /// Gets or creates the condition of that name, guarded by `lock`: a [`Lock`] or [`RLock`].
    ///
    /// # Errors
    /// As [`lock`](Self::lock); and if it was created with another lock.
    pub async fn condition(
        &self,
        name: &str,
        lock: &impl AnyLock,
    ) -> Result<Condition, CreateError> {
        self.object(name).condition(lock).await
    }

    /// Gets or creates the event of that name.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn event(&self, name: &str) -> Result<Event, CreateError> {
        self.object(name).event().await
    }

    /// Gets or creates the barrier of that name, for `parties` parties.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); and if it was created for another number of parties, or for none.
    pub async fn barrier(&self, name: &str, parties: u32) -> Result<Barrier, CreateError> {
        self.object(name).barrier(parties).await
    }

    /// Options for an object with a name.
    pub fn object(&self, name: &str) -> ObjectOptions {
        ObjectOptions::new(self.shared.clone(), name)
    }

    /// Options for an object without a name: other processes reach it only by its
    /// [token](crate::Lock::token). The daemon removes it a while after the last detach.
    pub fn anonymous(&self) -> ObjectOptions {
        ObjectOptions::anonymous(self.shared.clone())
    }

    /// Attaches to the object that a token names. Doesn't start a daemon.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if the object is gone,
    /// [`KindMismatch`](CreateError::KindMismatch) if it is of another kind,
    /// [`Elsewhere`](CreateError::Elsewhere) if the token names another daemon or namespace.
    pub async fn attach<T: Attachable>(&self, token: &Token) -> Result<T, CreateError> {
        Object::attach(&self.shared, token, Some(T::KIND)).run().await.map(T::from_object)
    }

    /// Frees a name. Attached sessions stay attached; the next create of that name makes another
    /// object.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if there is no object of that name.
    pub async fn unlink(&self, name: &str) -> Result<(), CreateError> {
        self.shared.unlink(name).run().await
    }

    /// Waits until the current session is lost (opening one if there is none), and returns why.
    /// Its guards are void by then.
    ///
    /// # Errors
    /// If there is no session and none can be opened.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> Result<SessionLost, SessionError> {
        Ok(self.shared.session().run().await?.tasks().lost().await)
    }

    /// The number of the current session, as `syncctl sessions` shows it.
    ///
    /// # Errors
    /// If there is no session and none can be opened.
    pub async fn session_id(&self) -> Result<u64, SessionError> {
        Ok(self.shared.session().run().await?.facts().id())
    }

    /// Shared namespaces whose names are similar to this client's namespace, if that is private
    /// and was empty when the current session was opened: the caller may have meant one of them.
    /// `shared/jobs` names a shared namespace and nothing else.
    ///
    /// # Errors
    /// If there is no session and none can be opened.
    pub async fn similar_namespaces(&self) -> Result<Vec<String>, SessionError> {
        Ok(self.shared.session().run().await?.similar_namespaces())
    }

    /// Closes the session, and returns when the daemon has confirmed it, or after 5 s. Guards
    /// become void and their holds are abandoned; a later call opens a new session.
    ///
    /// # Cancel safety
    /// Safe, but the session may or may not be closed.
    pub async fn close(&self) {
        let session = self.shared.slot().take();
        if let Some(session) = session {
            session.tasks().close().await;
        }
    }

    /// Waits until every release is in the socket, or the session is lost. Usually it returns at
    /// once: a release is sent before its call returns, unless the daemon is so slow that the
    /// socket is full.
    ///
    /// # Errors
    /// [`Lost`](SessionError::Lost) if releases were lost with the session.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn flush(&self) -> Result<(), SessionError> {
        let session = self.shared.slot().lock().clone();
        if let Some(session) = session {
            session.tasks().flush().await;
            if let Some(why) = session.take_untold() {
                return Err(why.into());
            }
        }
        Ok(())
    }

    /// The daemon's endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }
}

impl Shared {
    pub(crate) fn new(endpoint: Endpoint, namespace: String, config: Builder) -> Arc<Self> {
        fork::watch();
        Arc::new(Self { endpoint, namespace, config, slot: PerProcess::new(Slot::default()) })
    }

    pub(crate) fn slot(&self) -> &Slot {
        fork::watch();
        self.slot.get(|_| Slot::default())
    }

    /// As [`blocking::Client::flush`].
    pub(crate) fn flush(
        &self,
        end: Instant,
        on_signal: blocking::OnSignal<'_>,
    ) -> Result<bool, SessionError> {
        let session = self.slot().lock().clone();
        let Some(session) = session else { return Ok(true) };
        let sent = session.threads().flush(end, on_signal)?;
        session.take_untold().map_or(Ok(sent), |why| Err(why.into()))
    }

    /// Whether this client may start a daemon.
    pub(crate) fn may_start(&self) -> bool {
        self.config.auto_start && start::is_allowed()
    }

    /// The error when no session was opened within `connect_timeout`.
    pub(crate) fn late(&self) -> ConnectError {
        let after = self.config.connect_timeout;
        ConnectError::TimedOut { endpoint: self.endpoint.clone(), after }
    }

    /// This process's session, or a new one if it has none or has lost it.
    pub(crate) fn session(
        self: &Arc<Self>,
    ) -> impl Call<Done = Result<Arc<Session>, SessionError>> + '_ {
        call(Connect(self), None, |session: Result<_, CallError>| Ok(session?))
    }

    /// As [`session`](Self::session), with the error of [`Client::connect`].
    pub(crate) fn connected(
        self: &Arc<Self>,
    ) -> impl Call<Done = Result<Arc<Session>, ConnectError>> + '_ {
        call(Connect(self), None, |session: Result<_, CallError>| {
            session.map_err(|error| match SessionError::from(error) {
                SessionError::Connect(error) => *error,
                error => ConnectError::Unreachable {
                    endpoint: self.endpoint.clone(),
                    reason: error.to_string(),
                },
            })
        })
    }

    /// Frees a name.
    pub(crate) fn unlink(
        self: &Arc<Self>,
        name: &str,
    ) -> impl Call<Done = Result<(), CreateError>> + '_ {
        let valid = check_name(name).map_err(CreateError::Invalid);
        let unlink = Plain::new(self, Request::Unlink(Unlink { name: name.to_owned() }));
        crate::call::unless(
            valid.err(),
            call(unlink, None, |done: Result<_, CallError>| {
                done.map(drop).map_err(CreateError::from)
            }),
        )
    }
}
