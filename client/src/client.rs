//! The client: which daemon, which namespace, and the session that is current in this process.
//! Never here: what the objects do.

use std::{
    ffi::{OsStr, OsString},
    pin::Pin,
    sync::{Arc, OnceLock, atomic::AtomicI32},
    time::Duration,
};

use syncd_proto::{
    Endpoint, PROTOCOL,
    endpoint::{EndpointError, namespace_from_env},
    v1::{Open, Unlink, client_message::Request},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    Barrier, BoundedSemaphore, Condition, ConnectError, CreateError, Event, Lock, ObjectOptions,
    RLock, Semaphore, SessionError, SessionLost, Token, blocking,
    condition::AnyLock,
    fork::{self, PerProcess},
    object::{Attachable, Object},
    session::{Patience, Reactor, Runtime, Session, close_inherited},
    start::{self, Daemon},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one daemon, in one namespace. Clones share its session; it ends when the last
/// of them, and of the objects and guards made by them, is dropped.
///
/// Its futures need a Tokio runtime with I/O and time enabled.
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

/// What a client is to be. Made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoint: Option<Endpoint>,
    namespace: Option<String>,
    label: String,
    auto_start: bool,
    daemon: Option<Daemon>,
    connect_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) namespace: String,
    config: Builder,
    blocking: bool,
    slot: PerProcess<Slot>,
}

/// What each process has of its own.
#[derive(Debug, Default)]
struct Slot {
    session: Mutex<Option<Arc<Session>>>,
    /// Of the session's socket. Outside of the mutex: a forked child reads its parent's.
    descriptor: Arc<AtomicI32>,
    reactor: OnceLock<Reactor>,
}

impl Slot {
    fn new() -> Self {
        Self { descriptor: Arc::new(AtomicI32::new(-1)), ..Self::default() }
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

    /// A client that is to differ from the usual one.
    pub fn builder() -> Builder {
        Builder {
            endpoint: None,
            namespace: None,
            label: String::new(),
            auto_start: true,
            daemon: None,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// A client of the daemon and the namespace that a token is of.
    pub fn of(token: &Token) -> Builder {
        Self::builder().endpoint(token.endpoint.clone()).namespace(&token.namespace)
    }

    /// Gets or creates the lock of that name.
    ///
    /// # Errors
    /// If the name is taken by another kind of object, or is longer than 255 bytes.
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

    /// Gets or creates the semaphore of that name, with `permits` free at first.
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

    /// Gets or creates the barrier of that name, for so many parties.
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

    /// Options for an object without a name: other processes reach it by its
    /// [token](crate::Lock::token) alone. It goes when nobody has been attached for a while.
    pub fn anonymous(&self) -> ObjectOptions {
        ObjectOptions::new(self.shared.clone(), "")
    }

    /// Attaches to the object that a token is of.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if it is gone, [`KindMismatch`](CreateError::KindMismatch)
    /// if it is of another kind, [`Elsewhere`](CreateError::Elsewhere) if it isn't this client's
    /// daemon that has it.
    pub async fn attach<T: Attachable>(&self, token: &Token) -> Result<T, CreateError> {
        Object::attach(self.shared.clone(), token, Some(T::KIND)).await.map(T::from_object)
    }

    /// Frees a name. Who is attached stays attached; the next to create the name makes another
    /// object.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if there is no object of that name.
    pub async fn unlink(&self, name: &str) -> Result<(), CreateError> {
        let session = self.shared.session().await?;
        session.call(Request::Unlink(Unlink { name: name.to_owned() }), None).await?;
        Ok(())
    }

    /// Waits until the current session is lost (opening one if there is none), and tells why.
    /// Every guard of it is void by then.
    ///
    /// # Errors
    /// If there is no session and none can be opened.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> Result<SessionLost, SessionError> {
        Ok(self.shared.session().await?.lost().await)
    }

    /// The number of the current session, as people see it in `syncctl sessions`.
    ///
    /// # Errors
    /// If there is no session and none can be opened.
    pub async fn session_id(&self) -> Result<u64, SessionError> {
        Ok(self.shared.session().await?.id())
    }

    /// Ends the session in order, and returns when the daemon knows. Guards become void, and
    /// what they hold is abandoned; a later call opens a new session.
    ///
    /// # Cancel safety
    /// Safe, but the session may or may not be over.
    pub async fn close(&self) {
        let session = self.shared.slot().session.lock().await.take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// Where its daemon is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }
}

impl Builder {
    /// Another daemon than the user's own.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// The namespace: `""` is the user's own, `"jobs"` the shared one of that name or a private
    /// one, `"shared/jobs"` never a private one. At most 255 bytes. Unset: `$SYNCD_NAMESPACE`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// What people see beside the process id, instead of the command line. At most 255 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Whether to start a daemon where there is none. Unset: unless `$SYNCD_NO_AUTOSTART` is set.
    pub fn auto_start(mut self, allowed: bool) -> Self {
        self.auto_start = allowed;
        self
    }

    /// The command that starts a daemon; `--socket` and `--idle-exit` are appended. Without it,
    /// that is `$SYNCD_DAEMON`, a `syncd` beside this program, or the `syncd` on the path.
    pub fn daemon<A: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let args = args.into_iter().map(|arg| OsString::from(arg.as_ref())).collect();
        self.daemon = Some(Daemon { program: program.as_ref().to_owned(), args });
        self
    }

    /// How long opening a session may take, the start of a daemon included. 10 s if unset.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connects, for the blocking API.
    ///
    /// # Errors
    /// As [`Client::connect`].
    ///
    /// # Panics
    /// As all of [`blocking`], within a Tokio runtime.
    pub fn connect_blocking(self) -> Result<blocking::Client, ConnectError> {
        blocking::Client::open(self.build(true)?)
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let client = Client { shared: self.build(false)? };
        client.shared.connected().await?;
        Ok(client)
    }

    pub(crate) fn build(self, blocking: bool) -> Result<Arc<Shared>, EndpointError> {
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Endpoint::from_env_or_default()?,
        };
        fork::watch();
        let namespace = self.namespace.clone().unwrap_or_else(namespace_from_env);
        let slot = PerProcess::new(Slot::new());
        Ok(Arc::new(Shared { endpoint, namespace, config: self, blocking, slot }))
    }
}

impl Shared {
    fn slot(&self) -> &Slot {
        self.slot.get(|inherited| {
            close_inherited(&inherited.descriptor);
            Slot::new()
        })
    }

    /// The session of this process, or a new one if it has none, or has lost it.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, SessionError> {
        Ok(self.connected().await?)
    }

    async fn connected(&self) -> Result<Arc<Session>, ConnectError> {
        fork::watch();
        let slot = self.slot();
        let mut current = slot.session.lock().await;
        match &*current {
            Some(session) if session.is_usable() => Ok(session.clone()),
            _ => {
                let after = self.config.connect_timeout;
                let opened = timeout(after, self.open(slot)).await;
                let late = || ConnectError::TimedOut { endpoint: self.endpoint.clone(), after };
                Ok(current.insert(opened.map_err(|_| late())??).clone())
            }
        }
    }

    async fn open(&self, slot: &Slot) -> Result<Arc<Session>, ConnectError> {
        let runtime = match self.blocking {
            true => Runtime::Blocking(self.reactor(slot)?.clone()),
            false => Runtime::Tasks(tokio::runtime::Handle::current()),
        };
        let open = Open {
            protocol: PROTOCOL,
            namespace: self.namespace.clone(),
            label: self.config.label.clone(),
            resume_key: Vec::new(),
            resume_seq: 0,
        };
        let attempt = || {
            Session::open(&self.endpoint, open.clone(), runtime.clone(), slot.descriptor.clone())
        };
        let error = match attempt().await {
            Ok(session) => return Ok(session),
            Err(error) => ConnectError::of(&self.endpoint, error),
        };
        let may_start = self.config.auto_start && start::is_allowed();
        if !may_start || !matches!(error, ConnectError::NoDaemon { .. }) {
            return Err(error);
        }
        let Builder { daemon, connect_timeout, .. } = &self.config;
        start::ensure(&self.endpoint, daemon.as_ref(), *connect_timeout).await?;
        attempt().await.map_err(|error| ConnectError::of(&self.endpoint, error))
    }

    /// Runs a call of the blocking client in this thread.
    pub(crate) fn block_on<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, E>
    where
        E: From<SessionError>,
    {
        match self.reactor(self.slot()) {
            Ok(reactor) => reactor.block_on(call),
            Err(error) => Err(SessionError::from(error).into()),
        }
    }

    /// As `block_on`, but returns with nothing when a signal's handler has run.
    pub(crate) fn block_on_or_signal<T, E>(
        &self,
        call: Pin<&mut impl Future<Output = Result<T, E>>>,
    ) -> Option<Result<T, E>>
    where
        E: From<SessionError>,
    {
        match self.reactor(self.slot()) {
            Ok(reactor) => reactor.run(call, Patience::Signal),
            Err(error) => Some(Err(SessionError::from(error).into())),
        }
    }

    fn reactor<'a>(&self, slot: &'a Slot) -> Result<&'a Reactor, ConnectError> {
        if let Some(reactor) = slot.reactor.get() {
            return Ok(reactor);
        }
        let reactor = Reactor::new().map_err(ConnectError::Reactor)?;
        Ok(slot.reactor.get_or_init(|| reactor))
    }
}
