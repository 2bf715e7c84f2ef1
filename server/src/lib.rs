//! The daemon of syncd as a library, of which `syncd` and `syncctl daemon` are thin wrappers.
//!
//! # Layout
//! - `instance`: one daemon per place. `accept`, `connection`: connections and their limits.
//!   `peer`: a process, and the proof of its exit. `clients`: what each process has.
//! - `registry`: users, clients, sessions and namespaces; `limits`: their quotas.
//! - `broker`: the one way into a `namespace`, which wraps a core `Space`. `numbers`: where record
//!   numbers, and so fencing tokens, begin.
//! - `journal`: bytes that outlive the daemon, `entry`: their meaning, `restart`: restoring from
//!   them.
//! - `session`, `outbox`: a session's stream. `inspect`, `watch`: inspection.
//! - `convert`: between the wire and the core.
//! - `handover`: replacing a running daemon. `routes`: the gRPC services.
//! - `options`, `signals`, `log`: flags, environment, exit codes, the log. `panic`: containing panics.
//!
//! This crate decides nothing about locks: `syncd-core` does.
//!
//! # Examples
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let dir = tempfile::tempdir().unwrap();
//! let endpoint = dir.path().join("syncd.sock").to_str().unwrap().parse().unwrap();
//! let server = syncd::Server::bind(syncd::Config::new(endpoint)).unwrap();
//! server.run(async { /* until here */ }).await.unwrap();
//! # });
//! ```

mod accept;
mod broker;
mod clients;
mod connection;
/// Conversion between the wire and the core, for tests without sockets or tasks. Unstable.
#[doc(hidden)]
pub mod convert;
mod entry;
mod error;
mod handover;
mod inspect;
mod instance;
/// The journal, for benchmarks and for tests that kill its owner. Unstable.
#[doc(hidden)]
pub mod journal;
mod limits;
mod log;
mod namespace;
mod numbers;
mod options;
mod outbox;
mod panic;
mod peer;
mod registry;
mod restart;
mod routes;
mod session;
mod signals;
mod watch;

use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};

use syncd_proto::{Endpoint, socket::Listener};
use tokio::{
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};

use accept::Acceptor;
use broker::{Broker, Settings};
pub use error::ServeError;
use handover::{Coming, Heir, Predecessor};
use instance::{Instance, beside, tokens_of_activated};
use journal::Directory;
pub use limits::Limits;
use numbers::Numbers;
pub use options::{Options, run};
use routes::{SERVICES, routes};

/// How long a daemon that shuts down waits for its connections to end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a daemon checks that its place is still its own.
const CHECK: Duration = Duration::from_secs(1);
/// How long an idle daemon waits for one more connection before it exits.
const LAST_ACCEPT: Duration = Duration::from_millis(10);

/// A daemon's configuration. [`Config::new`] has the defaults for one user.
#[derive(Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen.
    pub endpoint: Endpoint,
    /// The socket file's permissions. Default: 0o600. If others may connect, a missing directory is
    /// created open to them, too.
    pub mode: u32,
    /// The socket file's group id.
    pub group: Option<u32>,
    /// A listening socket that a service manager has bound, used instead of binding `endpoint`.
    #[cfg(unix)]
    pub activated: Option<std::os::fd::OwnedFd>,
    /// Exit after this time without a connection, a session or an object.
    pub idle_exit: Option<Duration>,
    /// Replace a running daemon, without refusing connections. Not on Windows.
    pub replace: bool,
    /// How long a session whose connection broke keeps what it holds. Default: 10 s.
    pub grace: Duration,
    /// How long an anonymous object stays without references. Default: 60 s.
    pub linger: Duration,
    /// The names of namespaces that all users share.
    pub shared: Vec<String>,
    /// The quotas.
    pub limits: Limits,
    /// Where the state is kept, so that it outlives the daemon. Default: beside the socket.
    pub journal: Journaling,
}

/// Where a daemon keeps its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Journaling {
    /// In a directory beside the socket, named `<socket>.journal`.
    #[default]
    Beside,
    /// In this directory.
    In(PathBuf),
    /// Nowhere: all locks are lost with the daemon, even if their holders still work.
    Off,
}

impl Config {
    /// A daemon for one user at `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        let core = syncd_core::Config::default();
        Self {
            endpoint,
            mode: 0o600,
            group: None,
            #[cfg(unix)]
            activated: None,
            idle_exit: None,
            replace: false,
            grace: core.grace,
            linger: core.linger,
            shared: Vec::new(),
            limits: Limits::default(),
            journal: Journaling::default(),
        }
    }
}

/// Binds and serves until `shutdown` is done, or until [`Config::idle_exit`].
///
/// # Errors
/// As [`Server::bind`].
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    Server::bind(config)?.run(shutdown).await
}

/// A daemon that listens. Connections are served once it [runs](Self::run).
pub struct Server {
    endpoint: Endpoint,
    idle_exit: Option<Duration>,
    broker: Arc<Broker>,
    /// `None` if a service manager has bound the socket. Must be dropped before the listener.
    instance: Option<Instance>,
    listener: Listener,
    /// The daemon that this one replaces.
    predecessor: Option<Predecessor>,
}

/// Why a daemon exits.
enum End {
    Told,
    Lost(&'static str),
    /// Another daemon has its place.
    Replaced(Heir),
}

impl Server {
    /// Locks the socket's lock file, replaces a stale socket, and listens. Must be called within a
    /// tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon has the place; [`ServeError::PlaceLost`] if
    /// the directory was replaced meanwhile.
    pub fn bind(config: Config) -> Result<Self, ServeError> {
        let Config {
            endpoint, mode, group, idle_exit, grace, linger, shared, limits, journal, ..
        } = config;
        #[cfg(unix)]
        let activated = config.activated;
        #[cfg(windows)]
        let activated: Option<std::convert::Infallible> = None;
        let beside = beside(&endpoint, ".journal");
        let journal = match journal {
            Journaling::Beside => Some(beside.clone()),
            Journaling::In(directory) => Some(directory),
            Journaling::Off => None,
        };
        let take = || Instance::take(&endpoint, mode, group);
        let came = match (activated, &journal) {
            #[cfg(unix)]
            (Some(fd), _) => {
                let listener = Listener::from_fd(fd).map_err(ServeError::Activation)?;
                Coming { listener, instance: None, predecessor: None }
            }
            #[cfg(windows)]
            (Some(never), _) => match never {},
            (None, Some(journal)) if config.replace => handover::come(&endpoint, journal, take)?,
            (None, _) => {
                let (instance, listener) = take()?;
                Coming { listener, instance: Some(instance), predecessor: None }
            }
        };
        let Coming { listener, instance, predecessor } = came;
        let tokens = match &instance {
            Some(instance) => instance.tokens(),
            None => tokens_of_activated(&endpoint),
        };
        let tokens = tokens.inspect_err(|error| {
            warn!(%error, "the file of the highest fencing token can't be opened: if the clock is \
                set back before the next daemon starts, its tokens will be lower");
        });
        let limits = limits.within_descriptors();
        let open = |path: PathBuf| {
            Directory::open(&path).map_err(|error| {
                match instance.as_ref().and_then(Instance::lost) {
                    Some(why) => ServeError::PlaceLost { endpoint: endpoint.clone(), why },
                    None => ServeError::Journal { path, error },
                }
            })
        };
        let journal = match &predecessor {
            Some(predecessor) => Some(predecessor.journal.clone()),
            None => journal.map(open).transpose()?,
        };
        let is_activated = instance.is_none();
        let settings = Settings {
            endpoint: endpoint.to_string(),
            shared,
            grace,
            linger,
            limits,
            journal,
            beside,
            is_activated,
        };
        let broker = Broker::new(settings, Numbers::open(tokens.ok()));
        Ok(Self { endpoint, idle_exit, broker, listener, instance, predecessor })
    }

    /// The endpoint that it listens at.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether the daemon that it replaces started it; that one notifies the service manager.
    pub(crate) fn replaces_its_starter(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_parent)
    }

    /// Serves until `shutdown` is done, the daemon has been idle for [`Config::idle_exit`], another
    /// daemon replaces it, or its place (the socket, its directory, its lock file) is no longer its
    /// own. Then removes the socket, notifies all sessions, and returns within 5 s.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if a daemon whose directory was replaced still serves at this
    /// path; [`ServeError::PlaceLost`]; [`ServeError::HeirLost`]; [`ServeError::Journal`].
    ///
    /// # Cancel safety
    /// Dropping the future ends all connections without notice.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { endpoint, idle_exit, broker, listener, instance, predecessor } = self;
        if let Some(instance) = instance.as_ref().filter(|_| predecessor.is_none()) {
            instance.settle().await?;
        }
        let _abort = AbortOnDrop(broker.clone());
        match predecessor {
            None => restart::restore(&broker).await?,
            Some(predecessor) => predecessor.succeed(&broker).await?,
        }
        let (routes, health) = routes(&broker).await;
        let mut acceptor = Acceptor::new(listener);
        // Declared after the acceptor, so that it is dropped first if this future is dropped.
        let mut instance = instance;
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let idle = || async {
            match idle_exit {
                Some(after) => broker.idle(after).await,
                None => std::future::pending().await,
            }
        };
        let mut idling = pin!(idle());
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!(%endpoint, version = env!("CARGO_PKG_VERSION"), "serving");
        let end = loop {
            let (socket, peer) = tokio::select! {
                () = &mut shutdown => {
                    info!("shutting down");
                    break End::Told;
                }
                () = &mut idling => match timeout(LAST_ACCEPT, acceptor.accept()).await {
                    // A client connected at the last moment, for example while this was stopped.
                    Ok(accepted) => {
                        idling.set(idle());
                        accepted
                    }
                    Err(_) => {
                        info!("idle: exiting");
                        break End::Told;
                    }
                },
                _ = check.tick() => match instance.as_ref().and_then(Instance::lost) {
                    Some(why) => break End::Lost(why),
                    None => {
                        broker.check_journals();
                        continue;
                    }
                },
                successor = broker.successors.next() => {
                    match successor.lead_in(&broker, acceptor.listener(), instance.as_mut()) {
                        Ok(heir) => break End::Replaced(heir),
                        Err(why) => warn!("this daemon was not replaced, and goes on: {why}"),
                    }
                    continue;
                },
                accepted = acceptor.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    acceptor.retry();
                    report(ended);
                    continue;
                }
            };
            connections.spawn(connection::serve(broker.clone(), routes.clone(), socket, peer));
        };
        if let End::Lost(why) = end {
            error!(%endpoint, "this place is no longer the daemon's own: {why}: exiting");
            // Before the listener is closed: the next daemon waits for that, and then grants.
            broker.seal();
        }
        if let Some(instance) = &mut instance {
            instance.withdraw();
        }
        drop(acceptor);
        for service in SERVICES {
            health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
        let left = match end {
            End::Told => Ok(()),
            End::Lost(why) => Err(ServeError::PlaceLost { endpoint, why }),
            End::Replaced(heir) => heir.lead_out(&broker).await,
        };
        broker.close();
        let farewell = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if timeout(FAREWELL, farewell).await.is_err() {
            warn!(connections = connections.len(), "some connections did not end: exiting");
        }
        left
    }
}

/// Reports the panic of a connection's task, if it ended by one.
fn report(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        panic::report("a connection", &*panic);
    }
}

struct AbortOnDrop(Arc<Broker>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
extern crate self as syncd;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(test)]
mod tests;
