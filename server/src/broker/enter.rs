//! The one way into a namespace: lock it, make a call of the core, take the step, append it to the
//! journal, deliver it.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc, task::Waker};

use syncd_core::{Cause, Message, Output, RecordKind, SessionId, Space, Step, Time};
use tracing::{error, warn};

use super::Broker;
use crate::{
    convert::cause_text,
    handover::News,
    journal::{Journal, Store as _, StoreError},
    namespace::{Namespace, Standing, State},
    outbox::{self, End, Pushed, Session},
    panic::{self, Panicked},
};

/// The number of outputs after which a caller with several calls leaves the namespace.
const TURN: usize = 64;

/// The unacknowledged bytes that each session keeps when there is no room for a snapshot.
const SHORTAGE: usize = 4 << 10;

/// The namespace can't be entered any more: it was retired or has failed, or the daemon is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over;

/// The stream that enters a namespace.
pub(crate) struct Own<'a> {
    pub session: &'a Session,
    /// Its number among the session's streams.
    pub stream: u64,
    pub queue: &'a mut VecDeque<Message>,
}

impl Own<'_> {
    /// Collects older messages from the outbox. True if messages of the call can then go straight to
    /// the queue.
    fn prepare(&mut self) -> bool {
        let Own { session, stream, queue } = self;
        let standing = session.outbox.collect(*stream, queue);
        if standing == outbox::Standing::Ready {
            // `collect` has consumed this; the stream must still see it.
            session.outbox.ready();
        }
        session.outbox.is_empty()
    }
}

/// What is done after the namespace is unlocked.
#[derive(Default)]
struct Aftermath {
    wakers: Vec<Waker>,
    ended: Vec<(Arc<Session>, Option<Cause>)>,
    overrun: Vec<SessionId>,
    /// The number of outputs of the calls.
    outputs: usize,
    /// The journal of a namespace that has ended.
    store: Option<Journal>,
}

impl Broker {
    /// Enters a namespace: `change` makes at most one call of the core, at the time that it gets as
    /// its second argument; then the step is kept and delivered. Messages to the session `own` go to
    /// its queue, after older ones from its outbox.
    pub fn enter<R>(
        &self,
        namespace: &Arc<Namespace>,
        now: Time,
        own: Option<Own<'_>>,
        change: impl FnOnce(&mut State, Time) -> R,
    ) -> Result<R, Over> {
        let mut change = Some(change);
        self.enter_for_several(namespace, now, own, |state, now| {
            let change = change.take().expect("called once");
            ControlFlow::Break(change(state, now))
        })
    }

    /// As [`enter`](Self::enter), for several calls in a row, each with its own step: until `change`
    /// breaks or [`TURN`] outputs are reached. Returns the last result.
    pub fn enter_for_several<R>(
        &self,
        namespace: &Arc<Namespace>,
        now: Time,
        own: Option<Own<'_>>,
        mut change: impl FnMut(&mut State, Time) -> ControlFlow<R, R>,
    ) -> Result<R, Over> {
        let mut after = Aftermath::default();
        let mut state = self.admit(namespace)?;
        let now = now.max(state.latest);
        state.latest = now;
        let mut own = own.and_then(|mut own| own.prepare().then_some(own));
        let entered = panic::caught("a namespace", || {
            loop {
                let next = change(&mut state, now);
                self.settle(namespace, &mut state, own.as_mut(), &mut after)?;
                while let Some(session) = after.overrun.pop() {
                    state.space.handle_lost(now, session, Cause::Misbehaved);
                    self.settle(namespace, &mut state, own.as_mut(), &mut after)?;
                }
                self.renew_snapshot(namespace, &mut state);
                if state.store.as_mut().is_some_and(Journal::take_shortage) {
                    state.space.handle_shortage(now, SHORTAGE);
                    self.settle(namespace, &mut state, own.as_mut(), &mut after)?;
                    self.take_snapshot_after_all(namespace, &mut state);
                }
                match next {
                    ControlFlow::Continue(_) if after.outputs < TURN => {}
                    ControlFlow::Continue(result) | ControlFlow::Break(result) => {
                        return Ok(result);
                    }
                }
            }
        });
        let entered = match entered {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => {
                let error: StoreError = error;
                error!(namespace = %namespace.address, "a decision can't be written to the journal, \
                    so the namespace and its sessions end: {error}");
                Err(Over)
            }
            Err(Panicked) => Err(Over),
        };
        let mut failed = None;
        if entered.is_err() {
            failed = Some(self.fail(namespace, &mut state, &mut after));
        } else {
            after.ended.iter().for_each(|(session, _)| state.drop_references(session));
            if !after.ended.is_empty() {
                state.count_memory(namespace);
            }
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
        // Under the lock: `Broker::pause` takes it to wait until nothing is written any more.
        if let Some(Err(error)) = after.store.take().map(Journal::remove) {
            warn!(namespace = %namespace.address, "the journal could not be removed: {error}");
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
            // Dropping the state may take long, and may panic again.
            std::thread::spawn(move || panic::caught("dropping its state", || drop(broken)));
        }
        entered
    }

    /// Takes the call's step, appends it to the journal, and delivers it.
    fn settle(
        &self,
        namespace: &Namespace,
        state: &mut State,
        own: Option<&mut Own<'_>>,
        after: &mut Aftermath,
    ) -> Result<(), StoreError> {
        let Some(mut step) = state.space.take_step() else { return Ok(()) };
        state.keep(&step)?;
        let mut last = None;
        for output in &step.outputs {
            if let Output::Record(record) = output {
                state.counters.count(&record.kind);
                last = Some(record.number);
            }
        }
        if let Some(last) = last {
            self.numbers.cover(last);
        }
        after.outputs += step.outputs.len();
        self.deliver(namespace, &mut step, own, after);
        state.space.reuse(step);
        state.count_memory(namespace);
        Ok(())
    }

    /// Delivers a step: messages to sessions, records to watchers. Steps of a namespace are
    /// delivered in the order of the calls.
    fn deliver(
        &self,
        namespace: &Namespace,
        step: &mut Step,
        mut own: Option<&mut Own<'_>>,
        after: &mut Aftermath,
    ) {
        let find = |session| self.registry.sessions.get(&(namespace.number, session));
        for output in step.outputs.drain(..) {
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

    /// Ends a namespace whose core has panicked, so that its state can't be trusted, or whose
    /// journal has failed. Its sessions are lost; the next namespace at its address begins empty,
    /// with higher numbers.
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
}

/// The reason that sessions of a failed namespace are given.
pub(crate) const FAILED: &str = "the daemon failed in its namespace";

/// Cuts the connection of a session: a stream that isn't read can't be ended otherwise.
fn cut(session: &Session) {
    session.outbox.discard();
    if let Some(connection) = session.connection() {
        connection.cut();
    }
}
