//! The driver's books: requests not known to have arrived, replies to be collected, what may be
//! acknowledged, and how a request is taken back. Never here: the socket, or whose turn it is.

use std::hash::Hasher;

use syncd_proto::v1::{
    Attached, BarrierAction, Cancel, ClientMessage, Detach, Release, ServerMessage, Woken,
    client_message::Request, server_message::Message,
};

use super::{
    Undo,
    driver::{Driver, State},
    link::encode,
};
use crate::error::SessionLost;

/// How far the acknowledgement stays behind a reply that is still to be collected, and might
/// have to be given back.
const ACK_LAG: u64 = 512;

/// Unacknowledged requests above which a release asks for a reply, to learn what has arrived.
const QUIET_LIMIT: usize = 1024;

/// Ids are consecutive, and nobody else's to choose: they need no hashing.
#[derive(Default)]
pub(super) struct ById(u64);

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

impl Driver {
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

    pub(super) fn dispatch(&mut self, message: ServerMessage) {
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
                    self.after.wake.extend(waker.flatten());
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
}
