//! Sessions: open, disconnect, resume, end. Ending one takes time in proportion to what it held.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Answer, Body, Cause, Error, ErrorKind, FencingToken, Handle, Input, Output, Owner, Party,
    Process, RecordKind, RequestId, SessionId, Time,
    arena::{Arena, Idx},
    deadline::Reason,
    hold::Hold,
    object::Object,
    outgoing::{Outgoing, Sent, Undo},
    sabotage::{Bug, sabotaged},
    space::{Space, refuse},
    waiter::Waiter,
    work::{Progress, Task},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub process: Arc<Process>,
    pub opened: Time,
    /// Set while disconnected: the end of its grace; [`Time::NEVER`] after a restart.
    pub grace_until: Option<Time>,
    pub last_request: RequestId,
    /// By handle.
    pub references: Arena<Reference>,
    handles: BTreeMap<Idx<Object>, Handle>,
    /// By object, oldest first within one object.
    pub holds: BTreeMap<(Idx<Object>, FencingToken), Idx<Hold>>,
    /// The holds of semaphores, by owner.
    pub permits: BTreeSet<(Idx<Object>, Owner, FencingToken)>,
    pub waiters: BTreeMap<RequestId, Idx<Waiter>>,
    /// The waiters by the objects that they concern.
    pub waits_at: BTreeSet<(Idx<Object>, RequestId)>,
    pub outgoing: Outgoing,
    /// All messages up to this one were output at least once, or acknowledged.
    put_out: u64,
    /// Set during a resume: the next message to send again.
    pub resend: Option<u64>,
    /// Its last request is on the agenda.
    pub working: bool,
    /// It was sent its last message.
    pub ended: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub object: Idx<Object>,
    count: u32,
}

impl Reference {
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Session {
    fn new(now: Time, process: Process) -> Self {
        Session {
            process: Arc::new(process),
            opened: now,
            grace_until: None,
            last_request: RequestId(0),
            references: Arena::new(),
            handles: BTreeMap::new(),
            holds: BTreeMap::new(),
            permits: BTreeSet::new(),
            waiters: BTreeMap::new(),
            waits_at: BTreeSet::new(),
            outgoing: Outgoing::default(),
            put_out: 0,
            resend: None,
            working: false,
            ended: false,
        }
    }

    /// Adds a reference to an object, and returns its handle.
    pub fn reference(&mut self, object: Idx<Object>) -> Handle {
        if let Some(&handle) = self.handles.get(&object) {
            self.references[Idx::new(handle.0)].count += 1;
            return handle;
        }
        let handle = Handle(self.references.insert(Reference { object, count: 1 }).number());
        self.handles.insert(object, handle);
        handle
    }

    /// Removes a reference; true if it was the last.
    pub fn dereference(&mut self, handle: Handle) -> bool {
        let reference = &mut self.references[Idx::new(handle.0)];
        reference.count -= 1;
        if reference.count > 0 {
            return false;
        }
        self.handles.remove(&reference.object);
        self.references.remove(Idx::new(handle.0));
        true
    }

    pub fn handle_of(&self, object: Idx<Object>) -> Option<Handle> {
        self.handles.get(&object).copied()
    }

    /// The first wait that concerns an object.
    pub fn first_wait_at(&self, ix: Idx<Object>) -> Option<Idx<Waiter>> {
        let range = (ix, RequestId(0))..=(ix, RequestId(u64::MAX));
        let (_, request) = self.waits_at.range(range).next()?;
        Some(self.waiters[request])
    }

    /// The oldest hold of an object.
    pub fn first_hold_of(&self, ix: Idx<Object>) -> Option<Idx<Hold>> {
        let range = (ix, FencingToken(0))..=(ix, FencingToken(u64::MAX));
        self.holds.range(range).next().map(|(_, &hold)| hold)
    }

    /// Asserts that handles and references correspond one to one.
    pub fn check_handles(&self) {
        assert_eq!(self.handles.len(), self.references.len());
        for (handle, reference) in self.references.iter() {
            assert_eq!(self.handle_of(reference.object), Some(Handle(handle.number())));
            assert!(reference.count > 0);
        }
    }
}

impl Space {
    /// Opens a session for a process.
    ///
    /// # Errors
    /// If the quota of sessions is used up.
    pub fn handle_open(&mut self, now: Time, process: Process) -> Result<SessionId, Box<Error>> {
        self.call(now, Input::Open(process.clone()));
        let all = (self.config.limits.sessions, self.sessions.len());
        let user = process.uid;
        let checked = self.check_share(user, "sessions", all, |share| share.sessions);
        checked.map_err(|kind| refuse(None, kind))?;
        let id = SessionId(self.next_number);
        self.sessions.insert(id, Session::new(now, process));
        self.count_of(user, |share| share.sessions += 1);
        self.emit_session(now, RecordKind::SessionOpened, id);
        Ok(id)
    }

    fn open_session(&mut self, session: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&session).filter(|s| !s.ended)
    }

    /// Whether a session was sent its last message, or is gone. What it had may still be on the
    /// agenda.
    pub(crate) fn is_ended(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_none_or(|s| s.ended)
    }

    /// The session's connection ended, but as far as known its process lives: it keeps what it
    /// holds for the grace.
    pub fn handle_disconnect(&mut self, now: Time, session: SessionId) {
        self.call(now, Input::Disconnect(session));
        let until = now + self.config.grace;
        let Some(s) = self.open_session(session) else { return };
        if s.grace_until.is_none() {
            s.grace_until = Some(until);
            s.resend = None;
            self.deadlines.insert(until, Reason::Grace { session });
            self.emit_session(now, RecordKind::SessionDisconnected, session);
        }
    }

    /// A new daemon has restored the namespace: the session keeps its holds and its places in queues
    /// until it resumes or ends, without a time limit. Call it for each restored session whose
    /// process lives. If that can't be known, call [`handle_disconnect`](Self::handle_disconnect);
    /// if the process is dead, [`handle_lost`](Self::handle_lost).
    pub fn handle_restored(&mut self, now: Time, session: SessionId) {
        self.call(now, Input::Restored(session));
        let Some(s) = self.open_session(session) else { return };
        s.resend = None;
        match s.grace_until.replace(Time::NEVER) {
            Some(until) => self.deadlines.remove(until, Reason::Grace { session }),
            None => self.emit_session(now, RecordKind::SessionDisconnected, session),
        }
    }

    /// Resumes a session on a new connection, even if the old one seems alive. `received` is the
    /// last message that the client has: later ones are sent again. Returns the last request
    /// handled.
    ///
    /// # Errors
    /// NotFound if there is no such session; Invalid if a later connection has acknowledged more, so
    /// that this is an older attempt; SessionLost, and the session ends, if messages that the client
    /// lacks are no longer kept.
    pub fn handle_resume(
        &mut self,
        now: Time,
        session: SessionId,
        received: u64,
    ) -> Result<RequestId, Box<Error>> {
        self.call(now, Input::Resume { session, received });
        let most = self.config.limits.step;
        let Some(s) = self.open_session(session) else {
            return Err(refuse(None, ErrorKind::NotFound { what: "session" }));
        };
        if received < s.outgoing.acknowledged() {
            let why = "less than was acknowledged: a later connection has the session";
            return Err(refuse(None, ErrorKind::Invalid { field: "resume_seq", why }));
        }
        if !s.outgoing.has_all_after(received) {
            self.lose(now, session, Cause::Misbehaved);
            return Err(refuse(None, ErrorKind::SessionLost));
        }
        if sabotaged(Bug::RequestDoneTwice) {
            s.last_request.0 = s.last_request.0.saturating_sub(1);
        }
        let (last, grace) = (s.last_request, s.grace_until.take());
        let skips = received + 1 < s.outgoing.next_seq() && sabotaged(Bug::ResumeSkipsAMessage);
        s.resend = Some(received + 1 + u64::from(skips));
        let forgotten = s.outgoing.acknowledge(received, most);
        self.unacknowledged -= forgotten;
        if sabotaged(Bug::PlacesLost) {
            for waiter in self.sessions[&session].waiters.values().copied() {
                let queue = &mut self.objects[self.waiters[waiter].object].waiters;
                queue.unlink(&mut self.waiters, waiter);
                queue.push_back(&mut self.waiters, waiter);
            }
        }
        if let Some(at) = grace {
            self.deadlines.remove(at, Reason::Grace { session });
        }
        self.begin(now, Task::Resend { session });
        self.emit_session(now, RecordKind::SessionResumed, session);
        Ok(last)
    }

    pub(crate) fn go_on_resending(&mut self, now: Time, session: SessionId) -> Progress {
        while self.spend() {
            let Some(s) = self.open_session(session) else { return Progress::Over };
            let Some(from) = s.resend else { return Progress::Over };
            // Messages that the client got after all are acknowledged meanwhile.
            let seq = from.max(s.outgoing.acknowledged() + 1);
            s.put_out = s.put_out.max(seq - 1);
            if seq == s.outgoing.next_seq() {
                s.resend = None;
                return Progress::Over;
            }
            let Some(message) = s.outgoing.get(seq).cloned() else {
                // Newer messages have pushed it out of the quota.
                self.lose(now, session, Cause::Misbehaved);
                return Progress::Over;
            };
            s.resend = Some(seq + 1);
            s.put_out = s.put_out.max(seq);
            self.outputs.push(Output::Send { session, message });
        }
        Progress::More
    }

    /// Ends a session without a Goodbye. False if there is no such session.
    pub fn handle_lost(&mut self, now: Time, session: SessionId, cause: Cause) -> bool {
        self.call(now, Input::Lost { session, cause });
        if cause == Cause::Died && sabotaged(Bug::DeathKeepsTheLock) {
            return false;
        }
        self.lose(now, session, cause)
    }

    pub(crate) fn lose(&mut self, now: Time, session: SessionId, cause: Cause) -> bool {
        let Some(s) = self.open_session(session) else { return false };
        // The last message is sent at once, instead of the rest of a resume.
        s.resend = None;
        self.deliver(session, Body::SessionEnd(cause), None);
        self.emit_session(now, RecordKind::SessionLost { cause }, session);
        self.end_session(now, session, cause);
        true
    }

    pub(crate) fn goodbye(&mut self, now: Time, session: SessionId, request: RequestId) {
        self.reply(session, request, Ok(Answer::Done { count: 0 }));
        self.emit_session(now, RecordKind::SessionClosed, session);
        self.end_session(now, session, Cause::Left);
    }

    fn end_session(&mut self, now: Time, session: SessionId, cause: Cause) {
        let s = self.sessions.get_mut(&session).expect("checked by the callers");
        s.ended = true;
        if let Some(at) = s.grace_until {
            self.deadlines.remove(at, Reason::Grace { session });
        }
        self.begin(now, Task::End { session, cause });
    }

    /// Ends what a session has, one by one: its waits first, so that it isn't granted what it
    /// releases.
    pub(crate) fn go_on_ending(&mut self, now: Time, session: SessionId, cause: Cause) -> Progress {
        while self.spend() {
            let s = self.sessions.get_mut(&session).expect("it ends once");
            if s.working {
                return Progress::More;
            }
            if let Some((_, &waiter)) = s.waiters.first_key_value() {
                self.vanish(now, waiter);
            } else if let Some((sent, weight)) = s.outgoing.forget_latest() {
                self.unacknowledged -= weight;
                self.give_back_unsent(now, session, sent);
            } else if let Some((_, &hold)) = s.holds.first_key_value() {
                self.abandon(now, hold, cause);
            } else if let Some((&ix, &handle)) = s.handles.first_key_value() {
                let count = s.references[Idx::new(handle.0)].count;
                s.handles.remove(&ix);
                s.references.remove(Idx::new(handle.0));
                self.leave_barrier(now, session, ix);
                self.dereference(now, ix, count);
            } else {
                self.count(session, |share| share.sessions -= 1);
                self.sessions.remove(&session);
                return Progress::Over;
            }
        }
        Progress::More
    }

    /// Releases an unowned permit whose grant was never output, since the session was disconnected:
    /// otherwise it would be lost.
    fn give_back_unsent(&mut self, now: Time, session: SessionId, sent: Sent) {
        let Some(s) = self.sessions.get(&session) else { return };
        let heard_of = s.put_out.max(s.outgoing.acknowledged());
        if let (Some(undo @ Undo { token: None, .. }), Body::Reply(_, reply)) =
            (sent.undo, sent.message.body)
            && sent.message.seq > heard_of
            && !sabotaged(Bug::PermitLost)
        {
            let abandoned = match reply {
                Ok(Answer::Granted(grant)) => grant.abandoned,
                _ => None,
            };
            self.undo_grant(now, session, undo, abandoned);
        }
    }

    /// A session's owner, for records and holders.
    pub(crate) fn party(&self, session: SessionId, owner: Owner) -> Option<Party> {
        let process = self.sessions.get(&session)?.process.clone();
        Some(Party { session, process, owner })
    }

    pub(crate) fn reply(&mut self, session: SessionId, id: RequestId, reply: crate::Reply) {
        self.deliver(session, Body::Reply(id, reply), None);
    }

    /// Sends a message and keeps it until it is acknowledged.
    pub(crate) fn deliver(&mut self, session: SessionId, body: Body, undo: Option<Undo>) {
        let limits = &self.config.limits;
        let Some(s) = self.sessions.get_mut(&session).filter(|s| !s.ended) else { return };
        let (message, weight) = s.outgoing.keep(body, undo);
        if s.resend.is_none() {
            if s.grace_until.is_none() && s.put_out + 1 == message.seq {
                s.put_out = message.seq;
            }
            self.outputs.push(Output::Send { session, message });
        }
        self.unacknowledged += weight;
        // Forgets two for each new message, so that acknowledged ones go in the end.
        for _ in 0..2 {
            self.unacknowledged -= s.outgoing.forget_acknowledged().unwrap_or(0);
        }
        // In a shared namespace, other users' messages must not push out a session's few.
        let floor = match self.shares {
            Some(_) => limits.unacknowledged / limits.sessions.max(1),
            None => 0,
        };
        while (s.outgoing.weight() > limits.unacknowledged_per_session
            || self.unacknowledged > limits.unacknowledged && s.outgoing.weight() > floor)
            && let Some(weight) = s.outgoing.forget_oldest()
        {
            self.unacknowledged -= weight;
        }
    }

    /// Cancels a request. If it waits, it is answered; if its grant is on its way to a client that
    /// has given up (`give_back`), the grant is undone.
    pub(crate) fn cancel(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        give_back: bool,
    ) {
        let s = self.sessions.get_mut(&session).expect("the caller's session is open");
        if let Some(&waiter) = s.waiters.get(&request) {
            return if give_back { self.withdraw(now, waiter) } else { self.recall(now, waiter) };
        }
        if !give_back || sabotaged(Bug::CancelKeepsTheGrant) {
            return;
        }
        let Some((reply, undo)) = s.outgoing.take_undo(request) else { return };
        // If the session resumes, the client must get the refusal, not the grant.
        let object = self.objects.get(undo.object).map(Object::label);
        let refusal = Err(refuse(object, ErrorKind::Cancelled));
        let reply = std::mem::replace(reply, Body::Reply(request, refusal));
        if let Body::Reply(_, Ok(Answer::Granted(grant) | Answer::Woken { grant, .. })) = reply {
            self.undo_grant(now, session, undo, grant.abandoned);
        }
    }
}
