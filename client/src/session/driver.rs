//! Who of those that wait at a session reads for all, and what they do: send, read, hand out,
//! reconnect. Everything happens under the session's mutex, by calls; nothing here has a thread
//! or a task of its own. Never here: what a request means.
//!
//! # Who reads
//!
//! One of those who wait *leads*. When it is polled it reads all that came and wakes those whose
//! replies are among it. No wake-up is lost, for these reasons:
//!
//! - The connection only ever sees the waker of a [`Relay`], which wakes the leader: anybody may
//!   poll it, say to send, without taking the leader's wake-ups away.
//! - A leader is set in the relay before it polls the connection, under the relay's own mutex.
//!   What became readable before is found by that poll; what does after, wakes the leader.
//! - Somebody else who polls the connection may read the leader's own reply: then it wakes the
//!   leader as it would any other.
//! - Who stops leading, having its reply or having been dropped, wakes one of those who wait.
//!   If that one is dropped instead of being polled, its own departure wakes another.
//! - A future may be kept and not polled. If it led, others would starve. So, among tasks, an
//!   [attendant](super::wait::Attendant) takes the lead as soon as a second one waits; and a
//!   thread that returns from a wait without its reply [steps aside](Driver::step_aside).
//!   Futures of one task or thread share its wake-ups, and simply take the lead from each other.
//!
//! Tasks have their runtime's reactor, which wakes the leader. A thread of the blocking client
//! is its own reactor: the one that leads polls the socket, and says when it is to be read.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::BuildHasherDefault,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use syncd_proto::v1::{
    Ack, ClientMessage, ServerMessage, client_message::Request, server_message::Message,
};

use super::{
    Identity, Undo,
    link::{Link, Resume, encode},
    relay::Relay,
    requests::ById,
};
use crate::error::SessionLost;

/// Bytes not yet taken by the connection, above which new requests wait.
const BACKLOG: usize = 1 << 18;

/// Replies after which an acknowledgement is sent by itself.
const ACK_EVERY: u64 = 1024;

pub(super) struct Driver {
    identity: Arc<Identity>,
    pub(super) state: State,
    pub(super) relay: Arc<Relay>,
    relay_waker: Waker,
    pub(super) leader: Option<u64>,
    /// The leader is being polled at this moment: it need not be woken.
    pub(super) leading: bool,
    /// Those who wait are threads of the blocking client.
    blocking: bool,
    pub(super) last_id: u64,
    pub(super) last_seq: u64,
    pub(super) acked: u64,
    /// Sent, and not known to have arrived.
    pub(super) sent: VecDeque<ClientMessage>,
    pub(super) out: BytesMut,
    received: Vec<ServerMessage>,
    /// Those who wait and don't lead, by request.
    /// None is one that has stepped aside: it wants its reply, but may not be polled for long.
    pub(super) waiting: BTreeMap<u64, Option<Waker>>,
    /// Replies to be collected, by request, with their seq.
    pub(super) done: HashMap<u64, (u64, Message), BuildHasherDefault<ById>>,
    /// Requests that were withdrawn, until they are answered.
    pub(super) withdrawn: HashMap<u64, Undo>,
    /// Those who wait for the backlog to shrink.
    crowded: Vec<Waker>,
    /// Tokens of holds that were taken away.
    pub(super) taken: HashSet<u64>,
    /// What to do when the mutex is free again.
    pub(super) after: After,
}

pub(super) enum State {
    Up(Box<Link>),
    Down(Resume),
    Lost(SessionLost),
}

#[derive(Default)]
pub(super) struct After {
    pub(super) wake: Vec<Waker>,
    pub(super) attend: bool,
    /// Where the thread that did it is to wait.
    pub(super) post: Option<Posting>,
}

pub(super) enum Posting {
    /// By this number; and whether it leads.
    Wait(u64, bool),
    /// No longer by this number.
    Leave(u64),
}

impl Driver {
    pub(super) fn new(link: Link, identity: Arc<Identity>, blocking: bool) -> Self {
        let relay = Relay::new();
        Self {
            identity,
            state: State::Up(Box::new(link)),
            relay_waker: relay.clone().into(),
            relay,
            leader: None,
            leading: false,
            blocking,
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
            State::Up(_) => !self.out.is_empty() || self.is_full(),
            State::Down(_) => !self.sent.is_empty(),
            State::Lost(_) => false,
        }
    }

    /// The socket took less than it was given.
    fn is_full(&self) -> bool {
        matches!(&self.state, State::Up(link) if link.outlet().is_full())
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

    /// Leads, if nobody else does, or else waits.
    pub(super) fn attend(&mut self, id: u64, cx: &mut Context<'_>) {
        let leads = self.leader.is_none_or(|leader| {
            leader == id || self.relay.get().is_some_and(|held| held.will_wake(cx.waker()))
        });
        if leads {
            self.lead(id, cx);
        } else {
            self.wait_behind(id, cx);
        }
        if self.blocking {
            self.after.post = Some(Posting::Wait(id, leads));
        }
    }

    /// Waits until the leader has what is for `id`.
    fn wait_behind(&mut self, id: u64, cx: &mut Context<'_>) {
        match self.waiting.get_mut(&id) {
            Some(Some(waker)) => waker.clone_from(cx.waker()),
            _ => drop(self.waiting.insert(id, Some(cx.waker().clone()))),
        }
        if self.blocking {
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
                self.waiting.insert(deposed, self.relay.set(None));
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
        if self.blocking && !matches!(self.after.post, Some(Posting::Wait(other, _)) if other != id)
        {
            self.after.post = Some(Posting::Leave(id));
        }
        self.call_leader();
    }

    /// A thread isn't polled for some time: what it wants is kept for it, but another is to lead.
    pub(super) fn step_aside(&mut self, thread: &Waker) {
        if self.relay.get().is_some_and(|leader| leader.will_wake(thread)) {
            self.relay.set(None);
            self.waiting.extend(self.leader.take().map(|id| (id, None)));
        }
        for waker in self.waiting.values_mut() {
            waker.take_if(|waker| waker.will_wake(thread));
        }
        self.call_leader();
    }

    /// If nobody leads, one of those who wait is to.
    fn call_leader(&mut self) {
        if self.leader.is_none() {
            self.after.wake.extend(self.waiting.values().flatten().next().cloned());
        }
    }

    /// Nobody waits but the one who leads, and nothing is left to send.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_unsent()
    }

    /// Reads although the reactor hasn't said that there is something to read.
    pub(super) fn look(&mut self) {
        if let State::Up(link) = &self.state {
            link.outlet().look();
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
        if self.blocking && !self.leading && self.is_full() {
            // Whoever leads is to wait for room as well: who found none may not for long.
            self.after.wake.extend(self.relay.get());
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
                    self.identity.set_descriptor(link.outlet().descriptor());
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
        self.after.wake.extend(mem::take(&mut self.waiting).into_values().flatten());
        self.after.wake.extend(self.relay.get());
    }
}
