//! The daemon of syncd as a library: `syncd` is a thin shell around it, and so is `syncctl
//! daemon`.
//!
//! # Layout
//! - `instance`: one daemon per socket. `connection`: one client's HTTP/2, with its limits.
//!   `peer`: the client's process, and the proof of its death.
//! - `broker`: the registries, and the one way into a `namespace`, which wraps a core `Space`.
//! - `session`, `outbox`: the traffic of one client. `inspect`: looking in from outside.
//! - `convert`: the only place where the wire and the core meet.
//! - `options`: flags, environment, exit codes.
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

mod broker;
mod connection;
mod convert;
mod inspect;
mod instance;
mod namespace;
mod options;
mod outbox;
mod peer;
mod session;

use std::{io, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use syncd_proto::{
    DESCRIPTORS, Endpoint,
    socket::Listener,
    v1::{broker_server::BrokerServer, inspect_server::InspectServer},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use broker::{Broker, Settings};
use inspect::InspectService;
use instance::Instance;
pub use options::{Options, run};
use session::BrokerService;

/// How long a daemon that leaves waits for its clients to have heard of it.
const FAREWELL: Duration = Duration::from_secs(5);
/// The longest message that is read, in bytes: names and keys are the longest fields.
const MAX_MESSAGE: usize = 64 << 10;

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
    /// How long a session whose connection broke keeps what it holds: 10 s.
    pub grace: Duration,
    /// How long an anonymous object without references can still be attached to: 60 s.
    pub linger: Duration,
    /// Names of namespaces that all users share.
    pub shared: Vec<String>,
    /// How much each user may have.
    pub limits: Limits,
}

/// Quotas. Sessions, objects and waiters are counted in each namespace, of which a user can
/// have 64.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Connections of a user.
    pub connections: usize,
    /// Sessions, connected or in their grace.
    pub sessions: usize,
    /// Objects, named and anonymous.
    pub objects: usize,
    /// Requests that wait.
    pub waiters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let core = syncd_core::Limits::default();
        Self {
            connections: 1024,
            sessions: core.sessions,
            objects: core.objects,
            waiters: core.waiters,
        }
    }
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
            grace: core.grace,
            linger: core.linger,
            shared: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Why a daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another daemon has this socket.
    #[error(
        "syncd is already running at {endpoint}{}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    AlreadyRunning {
        /// Its socket.
        endpoint: Endpoint,
        /// Its process, if its lock file tells.
        pid: Option<u32>,
    },
    /// The directory of the socket can't be made or trusted.
    #[error("directory {}: {error}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The lock file can't be written.
    #[error("lock file {}: {error}", path.display())]
    Lock {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The socket can't be bound.
    #[error("can't listen at {endpoint}: {error}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        error: io::Error,
    },
    /// The runtime can't start.
    #[error("runtime: {0}")]
    Runtime(io::Error),
    /// The socket that systemd passed can't be used.
    #[error("socket activation: {0}")]
    Activation(io::Error),
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
    listener: Listener,
    _instance: Option<Instance>,
}

impl Server {
    /// Locks the socket's lock file, replaces a stale socket, and listens. Within a tokio
    /// runtime with I/O and time.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon has the socket.
    pub fn bind(config: Config) -> Result<Self, ServeError> {
        let Config { endpoint, mode, group, idle_exit, grace, linger, shared, limits, .. } = config;
        #[cfg(unix)]
        let activated = config.activated;
        #[cfg(windows)]
        let activated: Option<std::convert::Infallible> = None;
        let (listener, instance) = match activated {
            #[cfg(unix)]
            Some(fd) => (Listener::from_fd(fd).map_err(ServeError::Activation)?, None),
            #[cfg(windows)]
            Some(never) => match never {},
            None => {
                instance::prepare_directory(&endpoint, mode)?;
                let instance = Instance::lock(&endpoint)?;
                (instance::bind(&endpoint, mode, group)?, Some(instance))
            }
        };
        let settings = Settings { endpoint: endpoint.to_string(), shared, grace, linger, limits };
        Ok(Self {
            endpoint,
            idle_exit,
            broker: Broker::new(settings),
            listener,
            _instance: instance,
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Serves until `shutdown` is done or the daemon has been idle for long enough; then tells
    /// all sessions, and leaves within 5 s. The socket is gone then.
    ///
    /// # Errors
    /// None so far; a connection's fault is its own.
    ///
    /// # Cancel safety
    /// Dropping the future ends all connections without a farewell.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { endpoint, idle_exit, broker, listener, _instance } = self;
        let _abort = AbortOnDrop(broker.clone());
        let (routes, health) = routes(&broker).await;
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let mut idle = pin!(async {
            match idle_exit {
                Some(after) => broker.idle(after).await,
                None => std::future::pending().await,
            }
        });
        info!(%endpoint, version = env!("CARGO_PKG_VERSION"), "serving");
        loop {
            tokio::select! {
                () = &mut shutdown => {
                    info!("shutting down");
                    break;
                }
                () = &mut idle => {
                    info!("idle: leaving");
                    break;
                }
                accepted = listener.accept() => match accepted {
                    Ok(socket) => {
                        connections.spawn(connection::serve(broker.clone(), routes.clone(), socket));
                    }
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        // Most likely no descriptor is left; some may be in a while.
                        sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        for service in SERVICES {
            health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
        broker.close();
        let farewell = async { while connections.join_next().await.is_some() {} };
        if timeout(FAREWELL, farewell).await.is_err() {
            warn!(connections = connections.len(), "some clients have not let go: leaving");
        }
        Ok(())
    }
}

struct AbortOnDrop(Arc<Broker>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the health service knows by name; empty is the daemon as a whole.
const SERVICES: [&str; 3] = ["", "syncd.v1.Broker", "syncd.v1.Inspect"];

async fn routes(broker: &Arc<Broker>) -> (Routes, HealthReporter) {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let sessions = BrokerServer::new(BrokerService(broker.clone()));
    let inspect = InspectServer::new(InspectService(broker.clone()));
    let routes = Routes::new(sessions.max_decoding_message_size(MAX_MESSAGE))
        .add_service(inspect.max_decoding_message_size(MAX_MESSAGE))
        .add_service(health_service)
        .add_service(reflection().build_v1().expect("the descriptors were compiled with this"))
        .add_service(reflection().build_v1alpha().expect("the descriptors were compiled with this"))
        .prepare();
    (routes, health)
}
