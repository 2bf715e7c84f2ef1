//! The broker: all that the daemon's tasks share, and the ways into it. Never here: what a lock means
//! (the core), how it is written (convert), or the data (registry).

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
    accept::Seldom,
    handover::{News, Successors},
    journal::Directory,
    limits::Limits,
    numbers::Numbers,
    panic::{self, Caught},
    registry::Registry,
    restart::Doubts,
};

/// A process that closes its socket as it dies is seen to have died a moment later: the grace of
/// its session is at least so long, lest it end as that of one that lives.
const SHORTEST_GRACE: Duration = Duration::from_millis(100);

pub(crate) struct Broker {
    pub settings: Settings,
    pub clock: Clock,
    pub registry: Registry,
    pub doubts: Doubts,
    pub numbers: Arc<Numbers>,
    last_number: AtomicU64,
    closing: AtomicBool,
    /// The daemon is about to leave: for who waits for that.
    pub closed: Arc<Notify>,
    gate: Gate,
    /// For the daemon whose place this one took.
    pub news: OnceLock<Sender<News>>,
    /// Other daemons that want to take this one's place.
    pub successors: Successors,
    /// Of refused connections the log tells seldom.
    pub refusals: Seldom,
    tasks: Mutex<JoinSet<()>>,
    /// Who may make a snapshot beside the work.
    pub compactions: Arc<Semaphore>,
}

/// What the daemon was told at its start.
pub(crate) struct Settings {
    pub endpoint: String,
    pub shared: Vec<String>,
    pub grace: Duration,
    pub linger: Duration,
    pub limits: Limits,
    /// Where namespaces are kept; `None`: nowhere, and they end with the daemon.
    pub journal: Option<Arc<Directory>>,
    /// Where another daemon at this place may have kept them.
    pub beside: PathBuf,
    /// The socket is a service manager's.
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
            refusals: Seldom::default(),
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

    /// A task that ends with the daemon at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = panic::lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// A task that begins again, as `make` makes it, should it panic.
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

    /// True once the daemon is about to leave.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Refuses what is new, ends all watches. Sessions are told as soon as they say anything.
    pub fn turn_away(&self) {
        self.closing.store(true, Relaxed);
        self.closed.notify_waiters();
        for namespace in &self.registry.namespaces {
            namespace.watches.close();
        }
    }

    /// Refuses what is new, tells all sessions, ends all watches and connections.
    pub fn close(&self) {
        self.turn_away();
        for session in &self.registry.sessions {
            session.outbox.wake();
        }
        for client in &self.registry.clients {
            client.drain();
        }
    }

    /// Ends what is left.
    pub fn abort(&self) {
        panic::lock(&self.tasks).abort_all();
    }

    /// Returns when there has been no client and no namespace for so long.
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
