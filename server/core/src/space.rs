//! `Space`: the state of one namespace, the calls that change it, and what they put out.
//! Which request goes where; what it does there lies in the module of its object.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use slab::Slab;

use crate::{
    Answer, Cause, Error, ErrorKind, Input, Label, Output, Owner, Party, Record, RecordKind,
    Request, RequestId, SessionId, Time,
    deadline::{Deadline, Deadlines, Reason},
    deadlock::Blocked,
    list::Ix,
    object::Object,
    semlock::Hold,
    session::Session,
    waiter::{Claim, Waiter},
};

/// How a [`Space`] behaves where people may differ.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a disconnected session keeps what it holds. Default: 10 s.
    pub grace: Duration,
    /// How long an object without references can still be attached to. Default: 60 s.
    pub linger: Duration,
    /// How much there may be of everything.
    pub limits: Limits,
}

/// Quotas of a namespace. A request beyond one is refused, and changes nothing.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions open at once.
    pub sessions: usize,
    /// Objects, named and anonymous.
    pub objects: usize,
    /// Requests that wait.
    pub waiters: usize,
    /// Requests of one session that wait: all of them may be answered at once.
    pub waiters_per_session: usize,
    /// Messages kept per session until it acknowledges them. Beyond, the oldest are
    /// forgotten: a resume that would need them is refused.
    pub unacknowledged: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            grace: Duration::from_secs(10),
            linger: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: 16_384,
            objects: 4_000_000,
            waiters: 1_000_000,
            waiters_per_session: 131_072,
            unacknowledged: 131_072,
        }
    }
}

/// `Ok(None)`: the answer has been given already, or comes later.
pub(crate) type Outcome = Result<Option<Answer>, Box<Error>>;

pub(crate) fn refuse(object: Option<Label>, kind: ErrorKind) -> Box<Error> {
    Box::new(Error { object, kind })
}

/// The state machine of one namespace. See the crate's documentation for the order of
/// calls.
#[derive(Clone, Debug)]
pub struct Space {
    pub(crate) config: Config,
    pub(crate) next_event: u64,
    /// The call that is being handled, or whose step wasn't taken yet.
    pub(crate) call: Option<(Time, Input)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) objects: Slab<Object>,
    pub(crate) names: BTreeMap<Arc<str>, Ix>,
    pub(crate) holds: Slab<Hold>,
    pub(crate) waiters: Slab<Waiter>,
    pub(crate) deadlines: Deadlines,
    pub(crate) blocked: Blocked,
}

impl Space {
    /// An empty namespace whose events, and so whose fencing tokens, begin at
    /// `first_event` (at least 1). To keep tokens rising across restarts, begin above
    /// every number that was ever used, say at the wall clock in microseconds.
    pub fn new(config: Config, first_event: u64) -> Space {
        Space {
            config,
            next_event: first_event.max(1),
            call: None,
            outputs: Vec::new(),
            sessions: BTreeMap::new(),
            objects: Slab::new(),
            names: BTreeMap::new(),
            holds: Slab::new(),
            waiters: Slab::new(),
            deadlines: Deadlines::default(),
            blocked: Blocked::new(),
        }
    }

    /// Handles one request. `id` must be higher than that of any request before; `ack` is
    /// the highest [`Message::seq`] that the client has. A session that doesn't exist is
    /// ignored: it was told of its end.
    pub fn handle_request(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        ack: u64,
        request: Request,
    ) {
        self.call(now, Input::Request { session, id, ack, request: request.clone() });
        let Some(s) = self.sessions.get_mut(&session) else { return };
        s.acknowledge(ack);
        if request == Request::Ack {
            return;
        }
        if id <= s.last_request {
            let why = "must be higher than that of every request before";
            let error = refuse(None, ErrorKind::Invalid { field: "id", why });
            return self.reply(session, id, Err(error));
        }
        s.last_request = id;
        let quiet = request.is_quiet();
        match self.dispatch(now, session, id, request) {
            Ok(None) => {}
            Ok(Some(_)) if quiet => {}
            Ok(Some(answer)) => self.reply(session, id, Ok(answer)),
            Err(error) => self.reply(session, id, Err(error)),
        }
    }

    fn dispatch(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        request: Request,
    ) -> Outcome {
        match request {
            Request::Acquire(acquire) => self.acquire(now, session, id, acquire),
            Request::Release { handle, owner, token, .. } => {
                self.release(now, session, handle, owner, token)
            }
            Request::Forget { handle, token, .. } => self.forget(now, session, handle, token),
            Request::MarkConsistent { handle, owner } => {
                self.mark_consistent(now, session, handle, owner)
            }
            Request::Create(create) => self.create(now, session, create),
            Request::AttachName(name) => self.attach_name(session, &name),
            Request::AttachKey(key) => self.attach_key(session, key),
            Request::Detach { handle, .. } => self.detach(now, session, handle),
            Request::Unlink { name } => self.unlink(now, session, &name),
            Request::Wait { handle, owner, timeout } => {
                self.wait(now, session, id, handle, owner, timeout)
            }
            Request::Notify { handle, owner, n } => self.notify(now, session, handle, owner, n),
            Request::EventSet { handle } => self.event_assign(now, session, handle, true),
            Request::EventClear { handle } => self.event_assign(now, session, handle, false),
            Request::EventWait { handle, owner, timeout } => {
                self.event_wait(now, session, id, handle, owner, timeout)
            }
            Request::BarrierWait { handle, owner, timeout, has_action } => {
                let claim = Claim { session, request: id, owner, timeout };
                self.barrier_wait(now, handle, claim, has_action)
            }
            Request::BarrierAction { handle, owner, ok } => {
                self.barrier_action(now, session, handle, owner, ok)
            }
            Request::BarrierReset { handle } => self.barrier_reset(now, session, handle),
            Request::BarrierAbort { handle } => self.barrier_abort(now, session, handle),
            Request::Query { handle } => self.query(now, session, handle),
            Request::Cancel { request, give_back } => {
                self.cancel(now, session, request, give_back);
                Ok(None)
            }
            Request::Goodbye => {
                self.goodbye(now, session, id);
                Ok(None)
            }
            Request::Ack => Ok(None),
            Request::Invalid { field, why } => Err(refuse(None, ErrorKind::Invalid { field, why })),
        }
    }

    /// Does all that is due. Call it at the time of [`Space::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Time) {
        self.call(now, Input::Timeout);
        while let Some(reason) = self.deadlines.pop_due(now) {
            match reason {
                Reason::Timeout { session, request } => {
                    let waiter = self.sessions[&session].waiters[&request];
                    self.waiters[waiter as usize].deadline = None;
                    self.expire(now, waiter);
                }
                Reason::Grace { session } => {
                    self.lose(now, session, Cause::Disconnected);
                }
                Reason::Linger { slot } => self.remove(now, slot),
            }
        }
    }

    /// When to call [`Space::handle_timeout`] next, and what for.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.deadlines.first()
    }

    /// Appends an event, and returns its number.
    pub(crate) fn emit(
        &mut self,
        at: Time,
        kind: RecordKind,
        object: Option<Ix>,
        party: Option<Party>,
    ) -> u64 {
        let number = self.next_event;
        self.next_event += 1;
        let object = object.map(|ix| self.label(ix));
        self.outputs.push(Output::Record(Record { number, at, kind, object, party }));
        number
    }

    pub(crate) fn emit_session(&mut self, now: Time, kind: RecordKind, session: SessionId) {
        let who = self.party(session, Owner(0));
        self.emit(now, kind, None, who);
    }

    /// Answers a Query.
    fn query(&mut self, now: Time, session: SessionId, handle: crate::Handle) -> Outcome {
        let ix = self.resolve(session, handle)?;
        let view = self.view(now, ix);
        Ok(Some(Answer::State(crate::State {
            value: view.value,
            waiters: view.waiters,
            broken: view.broken,
            holders: self.holders(now, ix),
        })))
    }
}
