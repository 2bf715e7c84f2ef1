//! The daemon of syncd as a library: `syncd` is a thin shell around it, and so is `syncctl
//! daemon`.
//!
//! # Layout
//! - `instance`: one daemon per place. `accept`, `connection`: one client's HTTP/2, with its
//!   limits. `peer`: a process, and the proof of its death. `clients`: what each process has.
//! - `registry`: who and what is here, as data; `limits`: how much of it there may be.
//! - `broker`: the one way into a `namespace`, which wraps a core `Space`. `numbers`: where its
//!   fencing tokens begin.
//! - `journal`: bytes that outlive the daemon, `entry`: what they mean, `restart`: what the next
//!   daemon makes of them.
//! - `session`, `outbox`: the traffic of one client. `inspect`, `watch`: looking in from outside.
//! - `convert`: the only place where the wire and the core meet.
//! - `handover`: from a living daemon to the next one. `routes`: what is answered, by name.
//! - `options`, `signals`, `log`: flags, environment, exit codes, the log. `panic`: what a panic ends.
//!
//! No decision about a lock is made in this crate: that is `syncd-core`'s.
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
/// The wire's messages as the core's, for tests that have neither sockets nor tasks. Unstable.
#[doc(hidden)]
pub mod convert;
mod entry;
mod error;
mod handover;
mod inspect;
mod instance;
/// What keeps a namespace's state, for benchmarks and for tests that kill it. Unstable.
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

/// How long a daemon that leaves waits for its clients to have heard of it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a daemon looks whether its place is still its own.
const LOOK: Duration = Duration::from_secs(1);
/// How long a daemon that was idle looks for somebody who has just come.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// How a daemon is to serve. [`Config::new`] gives what suits one user.
#[derive(Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen.
    pub endpoint: Endpoint,
    /// The socket file's permissions: 0o600. Beyond those, its directory is made open too.
    pub mode: u32,
    /// The socket file's group, by number.
    pub group: Option<u32>,
    /// A listening socket that somebody has bound already, instead of `endpoint`'s.
    #[cfg(unix)]
    pub activated: Option<std::os::fd::OwnedFd>,
    /// Leave after so long without a connection, a session or an object.
    pub idle_exit: Option<Duration>,
    /// Take the place of a daemon that is there, without a gap. Not on Windows.
    pub replace: bool,
    /// How long a session whose connection broke keeps what it holds: 10 s.
    pub grace: Duration,
    /// How long an anonymous object without references can still be attached to: 60 s.
    pub linger: Duration,
    /// Names of namespaces that all users share.
    pub shared: Vec<String>,
    /// How much each user may have.
    pub limits: Limits,
    /// Where the state is kept, so that it outlives the daemon. Default: beside the socket.
    pub journal: Journaling,
}

/// Where a daemon keeps its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Journaling {
    /// In a directory beside the socket, of the socket's name and `.journal`.
    #[default]
    Beside,
    /// In this directory.
    In(PathBuf),
    /// Nowhere: all locks are lost with the daemon, whoever is at work behind them.
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

/// A daemon that listens. Whoever connects now is served once it [runs](Self::run).
pub struct Server {
    endpoint: Endpoint,
    idle_exit: Option<Duration>,
    broker: Arc<Broker>,
    /// None of a socket that somebody else has bound. It is dropped before the listener.
    instance: Option<Instance>,
    listener: Listener,
    /// Whose place it took.
    predecessor: Option<Predecessor>,
}

/// Why a daemon leaves.
enum End {
    Told,
    Lost(&'static str),
    /// Another one has its place.
    Replaced(Heir),
}

impl Server {
    /// Locks the socket's lock file, replaces a stale socket, and listens. Within a tokio
    /// runtime with I/O and time.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon has the socket; [`ServeError::PlaceLost`] if
    /// its directory is replaced meanwhile.
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
            warn!(%error, "the file of the highest fencing token can't be opened: should the \
                clock be set back before the next daemon starts, its tokens would be lower");
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

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The daemon before started it, and tells the service manager.
    pub(crate) fn replaces_its_starter(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_parent)
    }

    /// Serves until `shutdown` is done, the daemon has been idle for long enough, or its place (the
    /// socket, its directory, its lock file) isn't its own any more; then tells all sessions,
    /// and leaves within 5 s. Its socket is gone then.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon still serves at this place, whose directory
    /// was replaced under it; [`ServeError::PlaceLost`].
    ///
    /// # Cancel safety
    /// Dropping the future ends all connections without a farewell.
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
        // Dropped before the listener, should this future be.
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
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!(%endpoint, version = env!("CARGO_PKG_VERSION"), "serving");
        let end = loop {
            let (socket, peer) = tokio::select! {
                () = &mut shutdown => {
                    info!("shutting down");
                    break End::Told;
                }
                () = &mut idling => match timeout(LAST_LOOK, acceptor.accept()).await {
                    // Somebody came while the daemon was stopped, say.
                    Ok(accepted) => {
                        idling.set(idle());
                        accepted
                    }
                    Err(_) => {
                        info!("idle: leaving");
                        break End::Told;
                    }
                },
                _ = look.tick() => match instance.as_ref().and_then(Instance::lost) {
                    Some(why) => break End::Lost(why),
                    None => {
                        broker.look_at_journals();
                        continue;
                    }
                },
                successor = broker.successors.next() => {
                    match successor.lead_in(&broker, acceptor.listener(), instance.as_mut()) {
                        Ok(heir) => break End::Replaced(heir),
                        Err(why) => warn!("this daemon wasn't replaced, and goes on: {why}"),
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
            error!(%endpoint, "this place isn't the daemon's any more: {why}: leaving");
            // Whoever has it now waits until this one doesn't listen: nothing is granted by then.
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
            warn!(connections = connections.len(), "some clients have not let go: leaving");
        }
        left
    }
}

/// A connection's task has ended; should it have panicked, nothing else has.
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
