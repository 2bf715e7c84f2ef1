//! Sessions: opening, what was sent and not yet acknowledged, disconnect and resume,
//! and the end. A session's end costs what it held, not what exists.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use slab::Slab;

use crate::{
    Answer, Body, Cause, Error, ErrorKind, Handle, Input, Message, ObjectId, Output, Owner, Party,
    Process, RecordKind, RequestId, SessionId, Time, Token,
    deadline::Reason,
    list::Ix,
    object::Kind,
    space::{Space, refuse},
};

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub process: Arc<Process>,
    pub opened: Time,
    /// Set while disconnected: the end of its grace.
    pub grace_until: Option<Time>,
    pub last_request: RequestId,
    /// By handle.
    pub references: Slab<Reference>,
    handles: BTreeMap<Ix, Handle>,
    /// By object, oldest first within one.
    pub holds: BTreeMap<(Ix, Token), Ix>,
    pub waiters: BTreeMap<RequestId, Ix>,
    next_seq: u64,
    /// Sent, and not known to have arrived: what a resume sends again, and what a
    /// cancel can still undo.
    unacknowledged: VecDeque<Sent>,
    /// It has had its last message.
    ended: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub object: Ix,
    count: u32,
}

#[derive(Clone, Debug)]
struct Sent {
    message: Message,
    undo: Option<Undo>,
}

/// What it takes to undo a grant that its client never learnt of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    pub object: Ix,
    pub id: ObjectId,
    pub owner: Owner,
    /// `None`: a loose permit.
    pub token: Option<Token>,
    /// Of a wait that ended: the condition, and the number of the notify.
    pub notified: Option<(Ix, u64)>,
    /// All levels of a recursive lock, as a wait takes them.
    pub whole: bool,
}

impl Session {
    /// Counts one more reference to an object.
    pub fn reference(&mut self, object: Ix) -> Handle {
        if let Some(&handle) = self.handles.get(&object) {
            self.references[handle.0 as usize].count += 1;
            return handle;
        }
        let handle = Handle(self.references.insert(Reference { object, count: 1 }) as u32);
        self.handles.insert(object, handle);
        handle
    }

    /// Counts one less; true if it was the last.
    pub fn dereference(&mut self, handle: Handle) -> bool {
        let reference = &mut self.references[handle.0 as usize];
        reference.count -= 1;
        if reference.count > 0 {
            return false;
        }
        self.handles.remove(&reference.object);
        self.references.remove(handle.0 as usize);
        true
    }

    pub fn handle_of(&self, object: Ix) -> Option<Handle> {
        self.handles.get(&object).copied()
    }

    pub fn acknowledge(&mut self, seq: u64) {
        while self.unacknowledged.front().is_some_and(|sent| sent.message.seq <= seq) {
            self.unacknowledged.pop_front();
        }
    }
}

impl Space {
    /// Opens a session for a process. Errors: its quota is used up.
    pub fn handle_open(&mut self, now: Time, process: Process) -> Result<SessionId, Box<Error>> {
        self.call(now, Input::Open(process.clone()));
        let limit = self.config.limits.sessions;
        if self.sessions.len() >= limit {
            let kind = ErrorKind::Quota { field: "sessions", limit: limit as u64 };
            return Err(refuse(None, kind));
        }
        let id = SessionId(self.next_event);
        let session = Session {
            process: Arc::new(process),
            opened: now,
            grace_until: None,
            last_request: RequestId(0),
            references: Slab::new(),
            handles: BTreeMap::new(),
            holds: BTreeMap::new(),
            waiters: BTreeMap::new(),
            next_seq: 1,
            unacknowledged: VecDeque::new(),
            ended: false,
        };
        self.sessions.insert(id, session);
        self.emit_session(now, RecordKind::SessionOpened, id);
        Ok(id)
    }

    /// Its connection is gone while its process, as far as known, is not: what it holds
    /// stays its own for the grace.
    pub fn handle_disconnect(&mut self, now: Time, session: SessionId) {
        self.call(now, Input::Disconnect(session));
        let until = now + self.config.grace;
        let Some(s) = self.sessions.get_mut(&session) else { return };
        if s.grace_until.is_none() {
            s.grace_until = Some(until);
            self.deadlines.insert(until, Reason::Grace { session });
            self.emit_session(now, RecordKind::SessionDisconnected, session);
        }
    }

    /// Connects a session anew, also while the old connection seems to live. `received`
    /// is the last message that the client has: the later ones come out again. Returns
    /// the last request handled.
    ///
    /// Errors: no such session; or (and then it is lost) messages are gone that the
    /// client did not get.
    pub fn handle_resume(
        &mut self,
        now: Time,
        session: SessionId,
        received: u64,
    ) -> Result<RequestId, Box<Error>> {
        self.call(now, Input::Resume { session, received });
        let Some(s) = self.sessions.get_mut(&session) else {
            return Err(refuse(None, ErrorKind::NotFound { what: "session" }));
        };
        let oldest = s.unacknowledged.front().map_or(s.next_seq, |sent| sent.message.seq);
        if received >= s.next_seq || received + 1 < oldest {
            self.lose(now, session, Cause::Misbehaved);
            return Err(refuse(None, ErrorKind::SessionLost));
        }
        if let Some(at) = s.grace_until.take() {
            self.deadlines.remove(at, Reason::Grace { session });
        }
        s.acknowledge(received);
        let last = s.last_request;
        let again: Vec<Message> = s.unacknowledged.iter().map(|m| m.message.clone()).collect();
        self.outputs.extend(again.into_iter().map(|message| Output::Send { session, message }));
        self.emit_session(now, RecordKind::SessionResumed, session);
        Ok(last)
    }

    /// Ends a session that did not say Goodbye. False: there is no such session.
    pub fn handle_lost(&mut self, now: Time, session: SessionId, cause: Cause) -> bool {
        self.call(now, Input::Lost { session, cause });
        self.lose(now, session, cause)
    }

    pub(crate) fn lose(&mut self, now: Time, session: SessionId, cause: Cause) -> bool {
        if !self.sessions.contains_key(&session) {
            return false;
        }
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
        if let Some(at) = s.grace_until.take() {
            self.deadlines.remove(at, Reason::Grace { session });
        }
        // Waits first, so that nothing it gives up comes back to it. One that vanishes may take
        // others along: a broken barrier's.
        while let Some((_, &waiter)) = self.sessions[&session].waiters.first_key_value() {
            self.vanish(now, waiter);
        }
        let s = self.sessions.get_mut(&session).expect("checked by the callers");
        for hold in std::mem::take(&mut s.holds).into_values() {
            self.abandon(now, hold, cause);
        }
        let objects: Vec<(Ix, u32)> =
            self.sessions[&session].references.iter().map(|(_, r)| (r.object, r.count)).collect();
        for &(ix, _) in &objects {
            self.leave_barrier(now, session, ix);
        }
        self.sessions.remove(&session);
        for (ix, count) in objects {
            self.dereference(now, ix, count);
        }
    }

    /// If the session was asked to run a barrier's action and can't any longer, the
    /// barrier breaks.
    pub(crate) fn leave_barrier(&mut self, now: Time, session: SessionId, ix: Ix) {
        if let Kind::Barrier(barrier) = &self.objects[ix as usize].kind
            && barrier.action.is_some_and(|action| action.session == session)
        {
            self.break_barrier(now, ix);
        }
    }

    /// A session's owner, for events and holders.
    pub(crate) fn party(&self, session: SessionId, owner: Owner) -> Option<Party> {
        let process = self.sessions.get(&session)?.process.clone();
        Some(Party { session, process, owner })
    }

    pub(crate) fn reply(&mut self, session: SessionId, id: RequestId, reply: crate::Reply) {
        self.deliver(session, Body::Reply(id, reply), None);
    }

    /// Sends a message and keeps it until it is acknowledged.
    pub(crate) fn deliver(&mut self, session: SessionId, body: Body, undo: Option<Undo>) {
        let Some(s) = self.sessions.get_mut(&session).filter(|s| !s.ended) else { return };
        let message = Message { seq: s.next_seq, body };
        s.next_seq += 1;
        if s.unacknowledged.len() >= self.config.limits.unacknowledged {
            s.unacknowledged.pop_front();
        }
        s.unacknowledged.push_back(Sent { message: message.clone(), undo });
        self.outputs.push(Output::Send { session, message });
    }

    /// Withdraws a request. If it waits, it is answered; if its grant is on its way to a
    /// client that has given up (`give_back`), the grant is undone.
    pub(crate) fn cancel(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        give_back: bool,
    ) {
        let s = self.sessions.get_mut(&session).expect("the caller's session is open");
        if let Some(&waiter) = s.waiters.get(&request) {
            return if give_back { self.give_up(now, waiter) } else { self.recall(now, waiter) };
        }
        if !give_back {
            return;
        }
        let sent = s
            .unacknowledged
            .iter_mut()
            .rev()
            .find(|sent| matches!(&sent.message.body, Body::Reply(id, _) if *id == request));
        let Some(sent) = sent else { return };
        let Some(undo) = sent.undo.take() else { return };
        // Should the session resume, the client must not take the grant for good.
        let object = self.objects.get(undo.object as usize).map(|o| o.label());
        let refusal = Err(refuse(object, ErrorKind::Cancelled));
        let reply = std::mem::replace(&mut sent.message.body, Body::Reply(request, refusal));
        let grant = match reply {
            Body::Reply(_, Ok(Answer::Granted(grant) | Answer::Woken { grant, .. })) => grant,
            _ => return,
        };
        self.undo_grant(now, session, undo, grant.abandoned);
    }
}
