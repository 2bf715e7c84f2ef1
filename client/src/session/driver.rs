//! What one session knows: requests on their way, replies not yet collected, who waits, and
//! who of them reads for all. Everything happens under the session's mutex, by calls; nothing
//! here has a thread or a task of its own. Never here: what a request means.
//!
//! # Who reads
//!
//! One of those who wait *leads*: whatever the socket wakes is sent to the leader's waker, by
//! way of [`Relay`]. When it is polled it reads all that came and wakes those whose replies are
//! among it. No wake-up is lost, for these reasons:
//!
//! - The connection only ever sees the relay's waker, so anybody may poll it, say to send,
//!   without taking the leader's wake-ups away.
//! - A leader is set in the relay before it polls the connection, under the relay's own mutex.
//!   What became readable before is found by that poll; what does after, wakes the leader.
//! - Somebody else who polls the connection may read the leader's own reply: then it wakes the
//!   leader as it would any other.
//! - Who stops leading, having its reply or having been dropped, wakes one of those who wait.
//!   If that one is dropped instead of being polled, its own departure wakes another.
//! - A future may be kept and not polled. If it led, others would starve; so as soon as a
//!   second task waits, an [attendant](super::Attendant) takes the lead. Futures of one task
//!   share its wake-ups, and simply take the lead from each other.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use bytes::BytesMut;
use syncd_proto::v1::{
    Ack, Attached, BarrierAction, Cancel, ClientMessage, Detach, Release, ServerMessage, Woken,
    client_message::Request, server_message::Message,
};

use super::{
    Identity, Undo,
    link::{Link, Resume, encode},
};
use crate::error::SessionLost;

/// Bytes not yet taken by the connection, above which new requests wait.
const BACKLOG: usize = 1 << 18;

/// Replies after which an acknowledgement is sent by itself.
const ACK_EVERY: u64 = 1024;

/// How far the acknowledgement stays behind a reply that is still to be collected, and might
/// have to be given back.
const ACK_LAG: u64 = 512;

/// Unacknowledged requests above which a release asks for a reply, to learn what has arrived.
const QUIET_LIMIT: usize = 1024;

pub(super) struct Driver {
    identity: Arc<Identity>,
    state: State,
    relay: Arc<Relay>,
    relay_waker: Waker,
    leader: Option<u64>,
    /// The leader is being polled at this moment: it need not be woken.
    leading: bool,
    /// If set, only who is polled with this waker leads: it belongs to the thread that runs
    /// the blocking client's reactor.
    reactor: Option<Waker>,
    last_id: u64,
    last_seq: u64,
    acked: u64,
    /// Sent, and not known to have arrived.
    sent: VecDeque<ClientMessage>,
    out: BytesMut,
    received: Vec<ServerMessage>,
    /// Those who wait and don't lead, by request.
    waiting: BTreeMap<u64, Waker>,
    /// Replies to be collected, by request, with their seq.
    done: HashMap<u64, (u64, Message), BuildHasherDefault<ById>>,
    /// Requests that were withdrawn, until they are answered.
    withdrawn: HashMap<u64, Undo>,
    /// Those who wait for the backlog to shrink.
    crowded: Vec<Waker>,
    /// Tokens of holds that were taken away.
    taken: HashSet<u64>,
    /// What to do when the mutex is free again.
    pub(super) after: After,
}

enum State {
    Up(Box<Link>),
    Down(Resume),
    Lost(SessionLost),
}

#[derive(Default)]
pub(super) struct After {
    pub(super) wake: Vec<Waker>,
    pub(super) attend: bool,
}

/// Ids are consecutive, and nobody else's to choose: they need no hashing.
#[derive(Default)]
struct ById(u64);

impl Hasher for ById {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is a u64");
    }

    fn write_u64(&mut self, id: u64) {
        // The table takes its buckets by the low bits, its tags by the high ones.
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Passes the connection's wake-ups on to whoever leads.
struct Relay(Mutex<Option<Waker>>);

impl Relay {
    fn set(&self, leader: Option<Waker>) -> Option<Waker> {
        mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), leader)
    }

    fn get(&self) -> Option<Waker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(leader) = self.get() {
            leader.wake();
        }
    }
}

impl Driver {
    pub(super) fn new(link: Link, identity: Arc<Identity>, reactor: Option<Waker>) -> Self {
        let relay = Arc::new(Relay(Mutex::new(None)));
        Self {
            identity,
            state: State::Up(Box::new(link)),
            relay_waker: relay.clone().into(),
            relay,
            leader: None,
            leading: false,
            reactor,
            last_id: 0,
            last_seq: 0,
            acked: 0,
            sent: VecDeque::new(),
            out: BytesMut::new(),
            received: Vec::new(),
            waiting: BTreeMap::new(),
            done: HashMap::default(),
            withdrawn: HashMap::new(),
            crowded: Vec::new(),
            taken: HashSet::new(),
            after: After::default(),
        }
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.out.len() > BACKLOG
    }

    /// Something is still to leave this process.
    pub(super) fn is_unsent(&self) -> bool {
        match &self.state {
            State::Up(link) => !self.out.is_empty() || link.is_full(),
            State::Down(_) => !self.sent.is_empty(),
            State::Lost(_) => false,
        }
    }

    pub(super) fn lost(&self) -> Option<&SessionLost> {
        match &self.state {
            State::Lost(why) => Some(why),
            _ => None,
        }
    }

    /// Whether the hold was taken away; says so once.
    pub(super) fn forget_taken(&mut self, token: u64) -> bool {
        !self.taken.is_empty() && self.taken.remove(&token)
    }

    pub(super) fn is_taken(&self, token: u64) -> bool {
        self.taken.contains(&token)
    }

    /// A number to wait by that no request has.
    pub(super) fn draw_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Queues a request, and returns its id. It leaves with the next [`drive`](Self::drive).
    pub(super) fn enqueue(&mut self, request: Request) -> u64 {
        let ack = self.acknowledgement();
        self.enqueue_with(request, ack)
    }

    /// Queues a request whose refusal alone would be answered, and that nobody waits for.
    pub(super) fn enqueue_quiet(&mut self, mut request: Request) {
        if self.sent.len() >= QUIET_LIMIT
            && let Request::Release(release) = &mut request
        {
            release.quiet = false;
        }
        self.enqueue(request);
    }

    fn enqueue_with(&mut self, request: Request, ack: u64) -> u64 {
        let id = self.draw_id();
        if self.lost().is_some() {
            return id;
        }
        self.acked = ack;
        let message = ClientMessage { id, ack, request: Some(request) };
        if matches!(self.state, State::Up(_)) {
            encode(&message, &mut self.out);
        }
        self.sent.push_back(message);
        id
    }

    /// What may be acknowledged: a grant that was acknowledged can't be given back by a
    /// Cancel, so one that is still to be collected holds it back, for a while.
    fn acknowledgement(&self) -> u64 {
        if self.done.is_empty() {
            return self.last_seq;
        }
        if self.last_seq - self.acked < ACK_LAG {
            return self.acked;
        }
        let oldest = self.done.values().map(|(seq, _)| seq - 1).min().unwrap_or(self.last_seq);
        oldest.max(self.last_seq - ACK_LAG)
    }

    /// The reply to request `id`, or the wait for it.
    pub(super) fn poll_reply(
        &mut self,
        id: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Message, SessionLost>> {
        if !self.done.contains_key(&id) {
            self.attend(id, cx);
        }
        if let Some((_, message)) = self.done.remove(&id) {
            self.leave(id);
            return Poll::Ready(Ok(message));
        }
        if let State::Lost(why) = &self.state {
            let why = why.clone();
            self.leave(id);
            return Poll::Ready(Err(why));
        }
        Poll::Pending
    }

    /// Waits for room to queue a request, under a number drawn for the purpose.
    pub(super) fn poll_room(&mut self, ticket: u64, cx: &mut Context<'_>) -> Poll<()> {
        self.attend(ticket, cx);
        if self.is_crowded() && self.lost().is_none() {
            self.crowded.push(cx.waker().clone());
            return Poll::Pending;
        }
        self.leave(ticket);
        Poll::Ready(())
    }

    /// Leads, if `id` is to lead, or else waits.
    pub(super) fn attend(&mut self, id: u64, cx: &mut Context<'_>) {
        let leads = match (&self.reactor, self.leader) {
            (Some(reactor), _) => reactor.will_wake(cx.waker()),
            (None, None) => true,
            (None, Some(leader)) => {
                leader == id || self.relay.get().is_some_and(|held| held.will_wake(cx.waker()))
            }
        };
        if leads {
            self.lead(id, cx);
            return;
        }
        match self.waiting.get_mut(&id) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => drop(self.waiting.insert(id, cx.waker().clone())),
        }
        if self.reactor.is_some() {
            self.drive();
        } else {
            // The leader sends what is queued, together with what else will be by then.
            self.after.attend = true;
            if !self.out.is_empty() {
                self.after.wake.extend(self.relay.get());
            }
        }
    }

    /// Takes the lead from whoever has it, drives, and reconnects if need be.
    pub(super) fn lead(&mut self, id: u64, cx: &mut Context<'_>) {
        if self.leader != Some(id) {
            self.waiting.remove(&id);
            if let Some(deposed) = self.leader.replace(id) {
                self.waiting.extend(self.relay.set(None).map(|waker| (deposed, waker)));
            }
        }
        // Before the poll: what comes after it must find this waker.
        self.relay.set(Some(cx.waker().clone()));
        self.leading = true;
        self.drive();
        self.resume();
        self.leading = false;
    }

    /// Gives up waiting, or having waited.
    pub(super) fn leave(&mut self, id: u64) {
        self.waiting.remove(&id);
        if self.leader == Some(id) {
            self.leader = None;
            self.relay.set(None);
        }
        // The blocking client's next reader is whoever gets the reactor.
        if self.leader.is_none()
            && self.reactor.is_none()
            && let Some((_, heir)) = self.waiting.first_key_value()
        {
            self.after.wake.push(heir.clone());
        }
    }

    /// Nobody wants the reply to `id` any more: what it brings, or has brought, goes back.
    pub(super) fn withdraw(&mut self, id: u64, undo: Option<Undo>) {
        match (self.done.remove(&id), undo) {
            (None, None) => {}
            (Some((seq, message)), undo) if seq <= self.acked || undo.is_none() => {
                self.undo(message, undo);
            }
            // With an acknowledgement that doesn't cover the reply, or it would stand.
            (reply, undo) => {
                self.enqueue_with(Request::Cancel(Cancel { id, give_back: true }), self.acked);
                match reply {
                    Some((_, message @ Message::BarrierPassed(_))) => self.undo(message, undo),
                    Some(_) => {}
                    None => self.withdrawn.extend(undo.map(|undo| (id, undo))),
                }
            }
        }
        self.leave(id);
        self.drive();
    }

    /// Gives back what an unwanted reply has brought.
    fn undo(&mut self, message: Message, undo: Option<Undo>) {
        let (grant, levels) = match message {
            Message::Attached(Attached { handle, .. }) => {
                self.enqueue(Request::Detach(Detach { handle, quiet: true }));
                return;
            }
            Message::BarrierPassed(passed) if passed.run_action => {
                if let Some(Undo { handle, owner }) = undo {
                    self.enqueue(Request::BarrierAction(BarrierAction {
                        handle,
                        owner,
                        ok: false,
                    }));
                }
                return;
            }
            Message::Granted(grant) => (grant, 1),
            Message::Woken(Woken { granted: Some(grant), .. }) => {
                let depth = grant.depth;
                (grant, depth)
            }
            _ => return,
        };
        if let Some(Undo { handle, owner }) = undo {
            let release = Release { handle, owner, token: grant.token, quiet: true };
            (0..levels).for_each(|_| self.enqueue_quiet(Request::Release(release)));
        }
    }

    /// Nobody waits but the one who leads, and nothing is left to send.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_unsent()
    }

    /// Reads although the reactor hasn't said that there is something to read.
    pub(super) fn look(&mut self) {
        if let State::Up(link) = &self.state {
            link.look();
        }
        self.drive();
    }

    /// Sends, reads and hands out whatever can be without waiting. Doesn't reconnect.
    pub(super) fn drive(&mut self) {
        while let State::Up(link) = &mut self.state {
            let before = self.out.len();
            if before > 0 {
                // Queueing wakes the connection's task. That is us: no need to bother whoever
                // leads.
                let leader = self.leader.and_then(|_| self.relay.set(None));
                let sent = link.send(&mut self.out);
                if leader.is_some() {
                    self.relay.set(leader);
                }
                if sent.is_err() {
                    self.go_down();
                    break;
                }
            }
            let mut cx = Context::from_waker(&self.relay_waker);
            let turned = link.turn(&mut cx, &mut self.received);
            let mut received = mem::take(&mut self.received);
            received.drain(..).for_each(|message| self.dispatch(message));
            self.received = received;
            if self.last_seq - self.acked >= ACK_EVERY {
                self.enqueue(Request::Acknowledge(Ack {}));
            }
            match turned {
                // It said why as the last thing.
                Poll::Ready(_) if self.lost().is_some() => break,
                Poll::Ready(error) if error.is_final() => self.lose(SessionLost::by_link(&error)),
                Poll::Ready(_) => self.go_down(),
                Poll::Pending if self.out.is_empty() || self.out.len() == before => break,
                Poll::Pending => {}
            }
        }
        if !self.crowded.is_empty() && !self.is_crowded() {
            self.after.wake.append(&mut self.crowded);
        }
        self.after.attend |= self.is_unsent();
    }

    fn dispatch(&mut self, message: ServerMessage) {
        if message.seq <= self.last_seq {
            return;
        }
        self.last_seq = message.seq;
        let (id, seq) = (message.id, message.seq);
        // Requests are handled in order, so an answer tells of all before it, too.
        while self.sent.front().is_some_and(|sent| sent.id <= id) {
            self.sent.pop_front();
        }
        match message.message {
            None => {}
            Some(Message::HoldLost(hold)) => drop(self.taken.insert(hold.token)),
            // A daemon that merely leaves may come back.
            Some(Message::SessionEnd(end)) if end.shutting_down => {}
            Some(Message::SessionEnd(end)) => self.lose(SessionLost::by_daemon(&end)),
            Some(message) => {
                let leads = self.leader == Some(id);
                let waker = self.waiting.remove(&id);
                if leads || waker.is_some() {
                    self.done.insert(id, (seq, message));
                    self.after.wake.extend(waker);
                    if leads && !self.leading {
                        // Whoever reads this has emptied the socket, which will wake nobody.
                        self.after.wake.extend(self.relay.get());
                    }
                } else {
                    let undo = self.withdrawn.remove(&id);
                    // A grant was undone by the Cancel itself.
                    if matches!(message, Message::Attached(_) | Message::BarrierPassed(_)) {
                        self.undo(message, undo);
                    }
                }
            }
        }
    }

    fn go_down(&mut self) {
        self.identity.set_descriptor(-1);
        self.out.clear();
        // From what was acknowledged, not from what was received: a Cancel that was lost on
        // the way must still be able to give back.
        self.state = State::Down(self.identity.clone().resume(self.acked));
        if self.leader.is_some() {
            // It may be somebody else who found out, and only the leader reconnects.
            self.after.wake.extend(self.relay.get());
        }
    }

    fn resume(&mut self) {
        while let State::Down(resume) = &mut self.state {
            match resume.as_mut().poll(&mut Context::from_waker(&self.relay_waker)) {
                Poll::Pending => return,
                Poll::Ready(Err(why)) => self.lose(why),
                Poll::Ready(Ok((link, opened))) => {
                    self.identity.set_descriptor(link.descriptor());
                    self.state = State::Up(Box::new(link));
                    self.sent.retain(|message| message.id > opened.last_id);
                    self.sent.iter().for_each(|message| encode(message, &mut self.out));
                    self.drive();
                }
            }
        }
    }

    pub(super) fn lose(&mut self, why: SessionLost) {
        self.identity.set_lost();
        self.state = State::Lost(why);
        self.out.clear();
        self.sent.clear();
        self.after.wake.append(&mut self.crowded);
        self.after.wake.extend(mem::take(&mut self.waiting).into_values());
        self.after.wake.extend(self.relay.get());
    }
}
