//! `Space`: the state of one namespace, the calls that change it, and their outputs. It dispatches
//! requests; each object's module handles its own.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Answer, Cause, Config, Error, ErrorKind, Input, Label, ObjectId, Output, Owner, Party, Record,
    RecordKind, Request, RequestId, SessionId, Time,
    arena::{Arena, Idx},
    deadline::{Deadline, Deadlines, Reason},
    deadlock::Blocked,
    hold::Hold,
    object::Object,
    session::Session,
    share::Shares,
    waiter::{Claim, Waiter},
    work::Agenda,
};

/// The answer to a request. `Ok(None)`: it was sent already, or comes later.
pub(crate) type Outcome = Result<Option<Answer>, Box<Error>>;

pub(crate) fn refuse(object: Option<Label>, kind: ErrorKind) -> Box<Error> {
    Box::new(Error { object, kind })
}

/// The state machine of one namespace. See the crate's documentation for the order of
/// calls.
#[derive(Clone, Debug)]
pub struct Space {
    pub(crate) config: Config,
    /// The number of the next record.
    pub(crate) next_number: u64,
    /// The call whose step hasn't been taken yet.
    pub(crate) call: Option<(Time, Input)>,
    /// How many pieces of work the call may still do.
    pub(crate) budget: u32,
    pub(crate) outputs: Vec<Output>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) objects: Arena<Object>,
    pub(crate) ids: BTreeMap<ObjectId, Idx<Object>>,
    pub(crate) names: BTreeMap<Arc<str>, Idx<Object>>,
    pub(crate) holds: Arena<Hold>,
    pub(crate) waiters: Arena<Waiter>,
    pub(crate) deadlines: Deadlines,
    pub(crate) blocked: Blocked,
    pub(crate) agenda: Agenda,
    /// Bytes of unacknowledged messages, of all sessions.
    pub(crate) unacknowledged: usize,
    /// The number of abandonments that no owner was told of yet, of all objects.
    pub(crate) untold: usize,
    pub(crate) shares: Shares,
}

impl Space {
    /// An empty namespace whose record numbers, and so fencing tokens, begin at `first_number` (at
    /// least 1). For tokens to rise across restarts, it must be above every number ever used, for
    /// example the wall clock in microseconds.
    pub fn new(config: Config, first_number: u64) -> Space {
        Space {
            shares: config.limits.shared.then(BTreeMap::new),
            config,
            next_number: first_number.max(1),
            call: None,
            budget: 0,
            outputs: Vec::new(),
            sessions: BTreeMap::new(),
            objects: Arena::new(),
            ids: BTreeMap::new(),
            names: BTreeMap::new(),
            holds: Arena::new(),
            waiters: Arena::new(),
            deadlines: Deadlines::default(),
            blocked: Blocked::new(),
            agenda: Agenda::default(),
            unacknowledged: 0,
            untold: 0,
        }
    }

    /// Changes the configuration from the next call on.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
    }

    /// Handles one request. `id` must be higher than that of any request before; `ack` is the
    /// highest [`Message::seq`](crate::Message::seq) that the client has. A request of a session
    /// that doesn't exist is ignored: the session was told of its end. A request is refused while
    /// the session's last one is unfinished ([`Space::is_working`]).
    pub fn handle_request(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        ack: u64,
        request: Request,
    ) {
        self.begin_call();
        self.answer(now, session, id, ack, &request);
        self.call = Some((now, Input::Request { session, id, ack, request }));
    }

    /// Handles a request, and answers it.
    fn answer(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        ack: u64,
        request: &Request,
    ) {
        let Some(s) = self.sessions.get_mut(&session).filter(|s| !s.ended) else { return };
        self.unacknowledged -= s.outgoing.acknowledge(ack, self.config.limits.step);
        if *request == Request::Ack {
            return;
        }
        if id <= s.last_request {
            let why = "must be higher than that of every request before";
            let error = refuse(None, ErrorKind::Invalid { field: "id", why });
            return self.reply(session, id, Err(error));
        }
        s.last_request = id;
        if s.working {
            let error = refuse(None, ErrorKind::Quota { field: "requests in progress", limit: 1 });
            return self.reply(session, id, Err(error));
        }
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
        request: &Request,
    ) -> Outcome {
        match *request {
            Request::Acquire(ref acquire) => self.acquire(now, session, id, acquire),
            Request::Release { handle, owner, token, .. } => {
                self.release(now, session, handle, owner, token)
            }
            Request::Forget { handle, token, .. } => self.forget(now, session, handle, token),
            Request::MarkConsistent { handle, owner } => {
                self.mark_consistent(now, session, handle, owner)
            }
            Request::Create(ref create) => self.create(now, session, create),
            Request::AttachName(ref name) => self.attach_name(session, name),
            Request::AttachKey(key) => self.attach_key(session, key),
            Request::Detach { handle, quiet } => self.detach(now, session, id, handle, quiet),
            Request::Unlink { ref name } => self.unlink(now, session, name),
            Request::Wait { handle, owner, timeout } => {
                self.wait(now, session, id, handle, owner, timeout)
            }
            Request::Notify { handle, owner, n } => self.notify(now, session, id, handle, owner, n),
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
            Request::OverQuota { field, limit } => {
                Err(refuse(None, ErrorKind::Quota { field, limit }))
            }
        }
    }

    /// Handles due deadlines, and continues work of earlier calls, both up to the limit of one call.
    /// Call it at the time of [`Space::poll_timeout`] or later; if work remains, that is due at once.
    pub fn handle_timeout(&mut self, now: Time) {
        self.call(now, Input::Timeout);
        // Half for deadlines, so that neither they nor the work can starve the other.
        let share = self.budget.div_ceil(2);
        while self.budget >= share
            && let Some(reason) = self.deadlines.pop_due(now)
        {
            self.spend();
            match reason {
                Reason::Timeout { session, request } => {
                    let waiter = self.sessions[&session].waiters[&request];
                    self.waiters[waiter].deadline = None;
                    self.expire(now, waiter);
                }
                Reason::Grace { session } => {
                    self.lose(now, session, Cause::Disconnected);
                }
                Reason::Linger { object } => {
                    let ix = self.ids[&object];
                    self.objects[ix].lingers_until = None;
                    self.remove(now, ix);
                }
                Reason::Work => unreachable!("work is never stored as a deadline"),
            }
        }
        self.work(now);
    }

    /// When to call [`Space::handle_timeout`] next, and why.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.agenda.is_empty() {
            return Some(Deadline { at: Time::default(), reason: Reason::Work });
        }
        self.deadlines.first()
    }

    /// Raises the next number, and so the next token, to at least `first`: another daemon that had
    /// this namespace in between may have used lower ones.
    pub fn handle_numbers(&mut self, now: Time, first: u64) {
        self.call(now, Input::Numbers(first));
        self.next_number = self.next_number.max(first);
    }

    /// Appends a record, and returns its number.
    pub(crate) fn emit(
        &mut self,
        at: Time,
        kind: RecordKind,
        object: Option<Idx<Object>>,
        party: Option<Party>,
    ) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
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
