//! The registries of the daemon, and the one way into a namespace: lock, change, hand out what
//! came of it, unlock, wake. Never here: what a lock means (the core), or how it is written (convert).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, Instant, SystemTime},
};

use dashmap::{DashMap, Entry};
use syncd_core::{Cause, Message, Output, RecordKind, SessionId, Space, Time};
use tokio::{sync::Notify, task::JoinSet};
use tracing::warn;

use crate::{
    Limits,
    convert::cause_text,
    namespace::{Address, Counters, Namespace, State},
    outbox::{Pushed, Session},
    peer::Peer,
};

/// Namespaces of one user (or shared) at once: the quotas of sessions, objects and waiters hold
/// in each, so this bounds what a user can have in all.
const MAX_NAMESPACES: usize = 64;

pub(crate) struct Broker {
    pub settings: Settings,
    pub started: Instant,
    /// All sessions, connected or not, by namespace number and id.
    pub sessions: DashMap<(u64, SessionId), Arc<Session>>,
    pub namespaces: DashMap<Address, Arc<Namespace>>,
    /// Processes by pid and user.
    pub peers: DashMap<(u32, u32), Arc<Peer>>,
    /// How many connections each user has.
    pub connections: DashMap<u32, Usage>,
    /// A connection or a namespace came or went.
    pub changed: Notify,
    /// Counters of namespaces that are gone, by their owner.
    pub retired: DashMap<Option<u32>, Counters>,
    last_number: AtomicU64,
    last_event: AtomicU64,
    closing: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

/// The connections of a user.
#[derive(Default)]
pub(crate) struct Usage {
    open: usize,
    refused: u64,
}

/// What the daemon was told at its start.
pub(crate) struct Settings {
    pub endpoint: String,
    pub shared: Vec<String>,
    pub grace: Duration,
    pub linger: Duration,
    pub limits: Limits,
}

/// Somebody has used up what they may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: the quota of {limit} per user is used up; free some, or raise it")]
pub(crate) struct QuotaError {
    pub field: &'static str,
    pub limit: usize,
}

/// The stream on whose behalf a namespace is entered.
pub(crate) struct Own<'a> {
    pub session: &'a Session,
    /// Its number among the session's streams.
    pub stream: u64,
    pub queue: &'a mut VecDeque<Message>,
}

/// What must wait until the namespace is unlocked.
#[derive(Default)]
struct Aftermath {
    wakers: Vec<Waker>,
    ended: Vec<(Arc<Session>, Option<Cause>)>,
    overrun: Vec<SessionId>,
}

impl Broker {
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            started: Instant::now(),
            sessions: DashMap::new(),
            namespaces: DashMap::new(),
            peers: DashMap::new(),
            connections: DashMap::new(),
            changed: Notify::new(),
            retired: DashMap::new(),
            last_number: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            tasks: Mutex::new(JoinSet::new()),
        })
    }

    /// Nanoseconds since the daemon's start: the core's clock.
    pub fn now(&self) -> Time {
        Time::default() + self.started.elapsed()
    }

    /// Microseconds since the Unix epoch at `time`.
    pub fn wall_clock(&self, time: Time) -> u64 {
        let ago = self.now().since(time);
        unix_micros().saturating_sub(ago.as_micros() as u64)
    }

    /// A task that ends with the daemon at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("nothing panics here");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// The namespace at `address`, made if it isn't there. It may be retired by the time that
    /// it is locked; then its caller comes here again.
    pub fn namespace(self: &Arc<Self>, address: &Address) -> Result<Arc<Namespace>, QuotaError> {
        if let Some(found) = self.namespaces.get(address) {
            return Ok(found.clone());
        }
        let theirs = self.namespaces.iter().filter(|n| n.key().owner == address.owner).count();
        if theirs >= MAX_NAMESPACES {
            return Err(QuotaError { field: "namespace", limit: MAX_NAMESPACES });
        }
        let namespace = match self.namespaces.entry(address.clone()) {
            Entry::Occupied(found) => return Ok(found.get().clone()),
            Entry::Vacant(vacant) => {
                // Numbers never fall back, even if the wall clock does.
                let first = unix_micros().max(self.last_event.load(Relaxed) + 1);
                let space = Space::new(self.core_config(), first);
                let number = self.last_number.fetch_add(1, Relaxed);
                let namespace = Arc::new(Namespace::new(number, address.clone(), space));
                vacant.insert(namespace.clone());
                namespace
            }
        };
        self.spawn(keep_time(self.clone(), namespace.clone()));
        self.changed.notify_one();
        Ok(namespace)
    }

    fn core_config(&self) -> syncd_core::Config {
        let Settings { grace, linger, limits, .. } = &self.settings;
        syncd_core::Config {
            grace: *grace,
            linger: *linger,
            limits: syncd_core::Limits {
                sessions: limits.sessions,
                objects: limits.objects,
                waiters: limits.waiters,
                ..syncd_core::Limits::default()
            },
        }
    }

    /// Changes a namespace: one call of the core, then all that came of it goes where it
    /// belongs. What is for the session `own` goes to its queue, behind what others had for it
    /// before.
    pub fn enter<R>(
        &self,
        namespace: &Namespace,
        now: Time,
        mut own: Option<Own<'_>>,
        change: impl FnOnce(&mut State) -> R,
    ) -> R {
        let mut after = Aftermath::default();
        let mut state = namespace.lock();
        if let Some(Own { session, stream, queue }) = &mut own {
            session.outbox.collect(*stream, queue);
        }
        let result = change(&mut state);
        self.hand_out(namespace, &mut state, &mut own, &mut after);
        while let Some(session) = after.overrun.pop() {
            state.space.handle_lost(now, session, Cause::Misbehaved);
            self.hand_out(namespace, &mut state, &mut own, &mut after);
        }
        let retire = state.is_unused() && !state.retired;
        if retire {
            state.retired = true;
            self.last_event.fetch_max(state.space.totals().last_number, Relaxed);
            self.retired.entry(namespace.address.owner).or_default().add(&state.counters);
        }
        let due = state.space.poll_timeout().map(|deadline| deadline.at);
        let earlier = due.is_some_and(|due| state.armed.is_none_or(|armed| due < armed));
        if earlier {
            state.armed = due;
        }
        drop(state);

        for waker in after.wakers {
            waker.wake();
        }
        if retire {
            self.namespaces.remove_if(&namespace.address, |_, n| n.number == namespace.number);
            self.changed.notify_one();
        }
        if earlier || retire {
            namespace.timer.notify_one();
        }
        for (session, cause) in after.ended {
            session.log_end(cause.map(cause_text));
            session.peer.leave(namespace.number, session.id);
        }
        result
    }

    fn hand_out(
        &self,
        namespace: &Namespace,
        state: &mut State,
        own: &mut Option<Own<'_>>,
        after: &mut Aftermath,
    ) {
        let outputs = state.space.take_step().map(|step| step.outputs);
        for output in outputs.into_iter().flatten() {
            match output {
                Output::Send { session, message } => match own {
                    Some(own) if own.session.id == session => own.queue.push_back(message),
                    _ => {
                        let Some(other) = self.sessions.get(&(namespace.number, session)) else {
                            continue;
                        };
                        match other.outbox.push(message) {
                            Pushed::Kept => {}
                            Pushed::Wake(waker) => after.wakers.push(waker),
                            Pushed::Full => {
                                other.outbox.overrun();
                                after.overrun.push(session);
                            }
                        }
                    }
                },
                Output::Ready { session } => {
                    if let Some(session) = self.sessions.get(&(namespace.number, session)) {
                        session.outbox.wake();
                    }
                }
                Output::Record(event) => {
                    let end = match event.kind {
                        RecordKind::SessionLost { cause } => Some(Some(cause)),
                        RecordKind::SessionClosed => Some(None),
                        _ => None,
                    };
                    if let (Some(cause), Some(party)) = (end, &event.party)
                        && let Some((_, session)) =
                            self.sessions.remove(&(namespace.number, party.session))
                    {
                        session.outbox.end();
                        after.ended.push((session, cause));
                    }
                    state.publish(event);
                }
            }
        }
    }

    /// True once the daemon is about to leave.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Refuses what is new, tells all sessions, ends all watches and connections.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        for session in &self.sessions {
            session.outbox.wake();
        }
        for namespace in &self.namespaces {
            namespace.lock().unwatch();
        }
        for peer in &self.peers {
            peer.drain();
        }
    }

    /// Ends what is left.
    pub fn abort(&self) {
        self.tasks.lock().expect("nothing panics here").abort_all();
    }

    /// Returns when there has been no connection and no namespace for so long.
    pub async fn idle(&self, after: Duration) {
        let is_idle = || self.connections.is_empty() && self.namespaces.is_empty();
        loop {
            let changed = self.changed.notified();
            if !is_idle() {
                changed.await;
            } else if tokio::time::timeout(after, changed).await.is_err() && is_idle() {
                return;
            }
        }
    }

    /// Counts a connection of `user`.
    pub fn connect(&self, user: u32) -> Result<(), QuotaError> {
        let limit = self.settings.limits.connections;
        let mut usage = self.connections.entry(user).or_default();
        if usage.open >= limit {
            usage.refused += 1;
            // A flood of connections must not become a flood of words.
            if usage.refused.is_power_of_two() {
                warn!(user, limit, refused = usage.refused, "too many connections");
            }
            return Err(QuotaError { field: "connections", limit });
        }
        usage.open += 1;
        Ok(())
    }

    /// Takes it off again.
    pub fn disconnect(&self, user: u32) {
        if let Entry::Occupied(mut usage) = self.connections.entry(user) {
            usage.get_mut().open -= 1;
            if usage.get().open == 0 {
                usage.remove();
            }
        }
        self.changed.notify_one();
    }
}

/// Calls a namespace's time-outs when they are due, until the namespace or the daemon ends.
async fn keep_time(broker: Arc<Broker>, namespace: Arc<Namespace>) {
    loop {
        let armed = {
            let state = namespace.lock();
            if state.retired {
                return;
            }
            state.armed
        };
        let earlier = namespace.timer.notified();
        if let Some(at) = armed {
            // A moment too far away to name is looked at again before it comes.
            let wait = at.since(broker.now()).min(Duration::from_secs(86_400));
            if !wait.is_zero() && tokio::time::timeout(wait, earlier).await.is_ok() {
                continue;
            }
            let now = broker.now();
            broker.enter(&namespace, now, None, |state| {
                state.armed = None;
                state.space.handle_timeout(now);
            });
            // More may be due at once; the others have their turn first.
            tokio::task::yield_now().await;
        } else {
            earlier.await;
        }
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}
