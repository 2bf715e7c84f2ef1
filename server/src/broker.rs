//! The one way into a namespace: lock it, make one call of the core, take the step, hand it out.
//! Never here: what a lock means (the core), how it is written (convert), or the data (registry).

mod clock;
mod gate;
mod lost;
mod making;
mod snapshot;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, SystemTime},
};

use syncd_core::{Cause, Message, Output, RecordKind, SessionId, Space, Step, Time};
use tokio::{
    sync::{Notify, Semaphore, mpsc::Sender},
    task::JoinSet,
};
use tracing::{error, warn};

use clock::Clock;
use gate::Gate;
pub(crate) use gate::Holdings;
pub(crate) use making::NoNamespace;

use crate::{
    accept::Seldom,
    convert::cause_text,
    handover::{News, Successors},
    journal::{Directory, Journal, Store as _, StoreError},
    limits::Limits,
    namespace::{Namespace, Standing, State},
    numbers::Numbers,
    outbox::{End, Pushed, Session},
    panic::{self, Caught, Panicked},
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

/// Nobody enters any more: the namespace has been retired or has failed, or the daemon has lost
/// its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over;

/// The stream on whose behalf a namespace is entered.
pub(crate) struct Own<'a> {
    pub session: &'a Session,
    /// Its number among the session's streams.
    pub stream: u64,
    pub queue: &'a mut VecDeque<Message>,
}

impl Own<'_> {
    /// What comes for it now goes straight to its queue: nothing older waits elsewhere.
    fn prepare(&mut self) -> bool {
        let Own { session, stream, queue } = self;
        let standing = session.outbox.collect(*stream, queue);
        if standing == crate::outbox::Standing::Ready {
            // For the stream itself to see.
            session.outbox.ready();
        }
        session.outbox.is_empty()
    }
}

/// What must wait until the namespace is unlocked.
#[derive(Default)]
struct Aftermath {
    wakers: Vec<Waker>,
    ended: Vec<(Arc<Session>, Option<Cause>)>,
    overrun: Vec<SessionId>,
    /// Of a namespace that is over.
    store: Option<Journal>,
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

    /// Changes a namespace: at most one call of the core, the time of which is the second argument
    /// of `change`; then the step that came of it is handed out. What is for the session `own`
    /// goes to its queue, behind what others had for it before.
    pub fn enter<R>(
        &self,
        namespace: &Arc<Namespace>,
        now: Time,
        mut own: Option<Own<'_>>,
        change: impl FnOnce(&mut State, Time) -> R,
    ) -> Result<R, Over> {
        let mut after = Aftermath::default();
        let mut state = self.admit(namespace)?;
        let now = now.max(state.latest);
        state.latest = now;
        let direct = own.as_mut().is_some_and(Own::prepare);
        let entered = panic::caught("a namespace", || {
            let result = change(&mut state, now);
            self.settle(namespace, &mut state, own.as_mut().filter(|_| direct), &mut after)?;
            while let Some(session) = after.overrun.pop() {
                state.space.handle_lost(now, session, Cause::Misbehaved);
                self.settle(namespace, &mut state, own.as_mut().filter(|_| direct), &mut after)?;
            }
            self.renew_snapshot(namespace, &mut state);
            Ok(result)
        });
        let entered = match entered {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => {
                let error: StoreError = error;
                error!(namespace = %namespace.address, "the journal can't take what was decided, \
                    so nobody can be told: the namespace is over: {error}");
                Err(Over)
            }
            Err(Panicked) => Err(Over),
        };
        let mut failed = None;
        if entered.is_err() {
            failed = Some(self.fail(namespace, &mut state, &mut after));
        } else {
            for (session, _) in &after.ended {
                state.drop_references(session);
            }
            state.count_memory(namespace);
            if namespace.is_unused(&state) {
                state.standing = Standing::Retired;
                after.store = state.store.take();
                self.numbers.retire(Some(state.space.totals().last_number));
            }
        }
        let over = state.standing != Standing::Good;
        if over {
            let counters = state.counters;
            self.registry.retired.entry(namespace.address.owner).or_default().add(&counters);
        }
        let due = state.space.poll_timeout().map(|deadline| deadline.at);
        let earlier = due.is_some_and(|due| state.armed.is_none_or(|armed| due < armed));
        if earlier {
            state.armed = due;
        }
        // Before others may think that nobody is within.
        if let Some(Err(error)) = after.store.take().map(Journal::remove) {
            warn!(namespace = %namespace.address, "its journal could not be removed: {error}");
        }
        drop(state);

        after.wakers.drain(..).for_each(Waker::wake);
        if over {
            self.registry.retire(namespace);
        }
        if earlier || over {
            namespace.timer.notify_one();
        }
        for (session, cause) in after.ended {
            let why = if failed.is_some() { Some(FAILED) } else { cause.map(cause_text) };
            session.log_end(why);
            session.client.leave(namespace.number, session.id);
        }
        if let Some(broken) = failed {
            namespace.watches.close();
            // What is left may be large, and may panic again.
            std::thread::spawn(move || panic::caught("what is left of it", || drop(broken)));
        }
        entered
    }

    /// Takes the step of the call that was made, keeps it, and hands it out.
    fn settle(
        &self,
        namespace: &Namespace,
        state: &mut State,
        own: Option<&mut Own<'_>>,
        after: &mut Aftermath,
    ) -> Result<(), StoreError> {
        let Some(step) = state.space.take_step() else { return Ok(()) };
        state.keep(&step)?;
        for output in &step.outputs {
            if let Output::Record(record) = output {
                state.counters.count(&record.kind);
            }
        }
        self.hand_out(namespace, step, own, after);
        Ok(())
    }

    /// Tells all that came of a call to those whom it concerns. The steps of a namespace are handed
    /// out one after the other, in the order of the calls; nobody has been told of anything before.
    fn hand_out(
        &self,
        namespace: &Namespace,
        step: Step,
        mut own: Option<&mut Own<'_>>,
        after: &mut Aftermath,
    ) {
        let last = step.outputs.iter().rev().find_map(|output| match output {
            Output::Record(record) => Some(record.number),
            _ => None,
        });
        if let Some(last) = last {
            self.numbers.cover(last);
        }
        let find = |session| self.registry.sessions.get(&(namespace.number, session));
        for output in step.outputs {
            match output {
                Output::Send { session, message } => match &mut own {
                    Some(own) if own.session.id == session => own.queue.push_back(message),
                    _ => {
                        let Some(other) = find(session) else { continue };
                        match other.outbox.push(message) {
                            Pushed::Kept => {}
                            Pushed::Absent => {
                                self.spread(|| News::For(session.0, namespace.address.clone()))
                            }
                            Pushed::Wake(waker) => after.wakers.push(waker),
                            Pushed::Full => {
                                cut(&other);
                                after.overrun.push(session);
                            }
                        }
                    }
                },
                Output::Ready { session } => {
                    after.wakers.extend(find(session).and_then(|session| session.outbox.ready()));
                }
                Output::Record(record) => {
                    let end = match record.kind {
                        RecordKind::SessionLost { cause } => Some(Some(cause)),
                        RecordKind::SessionClosed => Some(None),
                        _ => None,
                    };
                    if let (Some(cause), Some(party)) = (end, &record.party)
                        && let Some((_, session)) =
                            self.registry.sessions.remove(&(namespace.number, party.session))
                    {
                        after.wakers.extend(session.outbox.end(End::Told));
                        after.ended.push((session, cause));
                    }
                    namespace.watches.publish(record, &mut after.wakers);
                }
            }
        }
    }

    /// The core has panicked: nobody can tell what its state means. The namespace is over, its
    /// sessions are lost, and the next one at its address begins anew, with higher numbers.
    fn fail(&self, namespace: &Namespace, state: &mut State, after: &mut Aftermath) -> Space {
        state.standing = Standing::Failed;
        after.store = state.store.take();
        self.numbers.retire(None);
        namespace.memory.give_back(std::mem::take(&mut state.counted));
        let sessions = &self.registry.sessions;
        let theirs = sessions.iter().filter(|entry| entry.key().0 == namespace.number);
        for key in theirs.map(|entry| *entry.key()).collect::<Vec<_>>() {
            if let Some((_, session)) = sessions.remove(&key) {
                after.wakers.extend(session.outbox.end(End::Failed));
                after.ended.push((session, None));
            }
        }
        std::mem::replace(&mut state.space, Space::new(self.core_config(&namespace.address), 1))
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

/// Why sessions end with a namespace that failed.
pub(crate) const FAILED: &str = "the daemon failed in its namespace";

/// Cuts the reader of a session off: a stream that isn't read can't be ended otherwise.
fn cut(session: &Session) {
    session.outbox.discard();
    if let Some(connection) = session.connection() {
        connection.cut();
    }
}
