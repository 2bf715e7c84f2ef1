//! The broker: the state that the daemon's tasks share, and the ways into namespaces.

mod clock;
mod enter;
mod gate;
mod lost;
mod making;
mod snapshot;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use syncd_core::Time;
use tokio::{
    sync::{Notify, Semaphore, mpsc::Sender},
    task::JoinSet,
};

use clock::Clock;
pub(crate) use enter::{FAILED, Over, Own};
use gate::Gate;
pub(crate) use gate::Holdings;
pub(crate) use making::NoNamespace;

use crate::{
    accept::RateLimit,
    handover::{News, Successors},
    journal::Directory,
    limits::Limits,
    numbers::Numbers,
    panic::{self, Caught},
    registry::Registry,
    restart::Doubts,
};

/// The shortest grace. A dying process closes its socket a moment before its exit is seen; with a
/// shorter grace its session would end as disconnected.
const SHORTEST_GRACE: Duration = Duration::from_millis(100);

pub(crate) struct Broker {
    pub settings: Settings,
    pub clock: Clock,
    pub registry: Registry,
    pub doubts: Doubts,
    pub numbers: Arc<Numbers>,
    last_number: AtomicU64,
    closing: AtomicBool,
    /// Notified when the daemon is about to exit.
    pub closed: Arc<Notify>,
    gate: Gate,
    /// To the daemon that this one has replaced.
    pub news: OnceLock<Sender<News>>,
    /// Other daemons that want to replace this one.
    pub successors: Successors,
    /// Limits log lines about refused connections.
    pub refusals: RateLimit,
    tasks: Mutex<JoinSet<()>>,
    /// The permit for making a snapshot in the background.
    pub compactions: Arc<Semaphore>,
}

/// The daemon's settings.
pub(crate) struct Settings {
    pub endpoint: String,
    pub shared: Vec<String>,
    pub grace: Duration,
    pub linger: Duration,
    pub limits: Limits,
    /// The journals' directory; `None`: namespaces end with the daemon.
    pub journal: Option<Arc<Directory>>,
    /// The default directory of journals at this place, which another daemon may have used.
    pub beside: PathBuf,
    /// Whether a service manager has bound the socket.
    pub is_activated: bool,
}

impl Broker {
    pub fn new(settings: Settings, numbers: Numbers) -> Arc<Self> {
        Arc::new(Self {
            settings,
            clock: Clock::new(),
            registry: Registry::new(),
            doubts: Doubts::default(),
            numbers: Arc::new(numbers),
            last_number: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            closed: Arc::default(),
            gate: Gate::default(),
            news: OnceLock::new(),
            successors: Successors::default(),
            refusals: RateLimit::default(),
            tasks: Mutex::new(JoinSet::new()),
            compactions: Arc::new(Semaphore::new(1)),
        })
    }

    /// The core's clock.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Microseconds since the Unix epoch at `time`.
    pub fn wall_clock(&self, time: Time) -> u64 {
        let ago = self.now().since(time);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (now.as_micros() as u64).saturating_sub(ago.as_micros() as u64)
    }

    /// Spawns a task that ends with the daemon at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = panic::lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Spawns a task that is made and started again if it panics.
    pub fn supervise<F: Future<Output = ()> + Send + 'static>(
        &self,
        what: &'static str,
        make: impl Fn() -> F + Send + 'static,
    ) {
        self.spawn(async move {
            while Caught::new(what, make()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }

    /// Whether the daemon is about to exit.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Refuses new sessions and calls, and ends all watches. A session is told when its client next
    /// sends something.
    pub fn turn_away(&self) {
        self.closing.store(true, Relaxed);
        self.closed.notify_waiters();
        for namespace in &self.registry.namespaces {
            namespace.watches.close();
        }
    }

    /// As [`turn_away`](Self::turn_away), and tells all sessions and ends all connections.
    pub fn close(&self) {
        self.turn_away();
        for session in &self.registry.sessions {
            session.outbox.wake();
        }
        for client in &self.registry.clients {
            client.drain();
        }
    }

    /// Aborts all tasks.
    pub fn abort(&self) {
        panic::lock(&self.tasks).abort_all();
    }

    /// Returns when there has been no client and no namespace for `after`.
    pub async fn idle(&self, after: Duration) {
        let registry = &self.registry;
        loop {
            let changed = registry.changed.notified();
            if !registry.is_idle() {
                changed.await;
            } else if tokio::time::timeout(after, changed).await.is_err() && registry.is_idle() {
                return;
            }
        }
    }
}
