//! Requests: queueing, acknowledgement, replies, withdrawal, undo.

use std::{
    hash::Hasher,
    time::{Duration, Instant},
};

use syncd_proto::v1::{
    Ack, Acquire, Attached, BarrierAction, BarrierWait, Cancel, ClientMessage, Detach, EventWait,
    Goodbye, Release, ServerMessage, Wait, Woken, client_message::Request, server_message::Message,
};

use super::{Event, Failure, Pin, Protocol};
use crate::error::SessionLost;

/// The number of unacknowledged messages after which an acknowledgement is sent alone.
const ACK_EVERY: u64 = 1024;

/// How far the acknowledgement may lag behind because of a reply that has yet to be collected, and
/// may have to be undone.
const ACK_LAG: u64 = 512;

/// The number of requests not known to have arrived above which a release asks for a reply, by
/// which the client learns that they have.
const QUIET_LIMIT: usize = 1024;

/// A hasher for request ids, which are consecutive and can't be chosen by an attacker.
#[derive(Default)]
pub(super) struct ById(u64);

impl Hasher for ById {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is a u64");
    }

    fn write_u64(&mut self, id: u64) {
        // The table uses the low bits for buckets and the high ones for tags.
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How to undo what a request was granted, if its caller withdraws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Release a lock, one level of an RLock, or a permit.
    Grant {
        /// The object's handle.
        handle: u32,
        /// The owner of the grant.
        owner: u64,
        /// The permit is unowned.
        unowned: bool,
    },
    /// Release a condition's lock, all levels of it.
    Lock {
        /// The lock's handle.
        handle: u32,
        /// The owner that waits.
        owner: u64,
    },
    /// Leave a barrier; if the party has to run the action, report a failure.
    Party {
        /// The barrier's handle.
        handle: u32,
        /// The owner that waits.
        owner: u64,
    },
    /// End the wait; nothing is granted.
    Wait,
}

/// A request whose caller waits for the reply.
pub(super) struct Waiting {
    undo: Option<Undo>,
    deadline: Option<Instant>,
}

/// A request with a time-out, which the daemon counts from the request's arrival.
pub(super) struct Timed {
    id: u64,
    timeout_us: u64,
    /// When the request was made; set by the next call that passes the time.
    since: Option<Instant>,
}

/// A reply that its caller has yet to collect.
pub(super) struct Done {
    /// The reply's sequence number; None if the deadline passed first.
    seq: Option<u64>,
    result: Result<Message, Failure>,
    undo: Option<Undo>,
}

/// A request whose caller withdrew, until the daemon answers it.
pub(super) struct Withdrawn {
    undo: Undo,
    /// The id of its Cancel, if one was sent.
    cancel: Option<u64>,
}

/// A request's time-out in microseconds.
fn timeout(request: &mut Request) -> Option<&mut Option<u64>> {
    match request {
        Request::Acquire(Acquire { timeout_us, .. })
        | Request::Wait(Wait { timeout_us, .. })
        | Request::EventWait(EventWait { timeout_us, .. })
        | Request::BarrierWait(BarrierWait { timeout_us, .. }) => Some(timeout_us),
        _ => None,
    }
}

impl Protocol {
    /// An id that no request has, for other kinds of waits.
    pub fn draw_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Queues a request that has a reply, and returns its id. `undo` says how to undo a request
    /// that waits. If no reply comes by the deadline, the request is withdrawn and its reply is
    /// [`Failure::Overdue`].
    pub fn handle_request(
        &mut self,
        request: Request,
        undo: Option<Undo>,
        deadline: Option<Instant>,
    ) -> u64 {
        let id = self.enqueue(request);
        if self.lost().is_none() {
            self.waiting.insert(id, Waiting { undo, deadline });
            self.deadlines.extend(deadline.map(|at| (at, id)));
        }
        id
    }

    /// Queues a request without waiting for a reply. A release of a hold that was released by force
    /// is dropped.
    pub fn handle_post(&mut self, request: Request) {
        if let Request::Release(release) = &request
            && self.forget_taken(release.token)
        {
            return;
        }
        self.enqueue_quiet(request);
    }

    /// Queues the session's goodbye, and returns its id. The session's holds are abandoned.
    pub fn handle_close(&mut self) -> u64 {
        match self.goodbye {
            Some(id) => id,
            None => {
                let id = self.handle_request(Request::Goodbye(Goodbye {}), None, None);
                *self.goodbye.insert(id)
            }
        }
    }

    /// Takes the reply to a request, if it has come.
    pub fn poll_reply(&mut self, id: u64) -> Option<Result<Message, Failure>> {
        match self.done.remove(&id) {
            Some(done) => Some(done.result),
            None => self.lost().cloned().map(|why| Err(Failure::Lost(why))),
        }
    }

    /// The caller of a request withdraws: what the reply grants, or has granted, is given back.
    pub fn handle_withdraw(&mut self, id: u64) {
        match self.done.remove(&id) {
            Some(Done { seq: Some(seq), result: Ok(message), undo }) => {
                self.undo_done(id, seq, message, undo);
            }
            Some(_) => {}
            None => {
                if let Some(waiting) = self.stop_waiting(id) {
                    self.cancel(id, waiting.undo);
                }
            }
        }
    }

    /// Ends a request at its deadline. This bounds calls while the daemon is stopped or gone.
    pub(super) fn expire(&mut self, id: u64) {
        let Some(Waiting { undo, .. }) = self.stop_waiting(id) else { return };
        match undo {
            // No Cancel: the daemon's time-out breaks the barrier for all parties, a Cancel would
            // only remove this one.
            Some(undo @ Undo::Party { .. }) => {
                self.withdrawn.insert(id, Withdrawn { undo, cancel: None });
            }
            undo => self.cancel(id, undo),
        }
        self.done.insert(id, Done { seq: None, result: Err(Failure::Overdue), undo: None });
        self.events.push_back(Event::Reply(id));
    }

    fn stop_waiting(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(at) = waiting.deadline {
            self.deadlines.remove(&(at, id));
        }
        Some(waiting)
    }

    /// Cancels a request that waits. One that doesn't is left alone: its effect can't be undone.
    fn cancel(&mut self, id: u64, undo: Option<Undo>) {
        if let Some(undo) = undo {
            let cancel = self.enqueue(Request::Cancel(Cancel { id, give_back: true }));
            self.withdrawn.insert(id, Withdrawn { undo, cancel: Some(cancel) });
        }
    }

    /// Undoes an answered request: by a Cancel if the reply isn't acknowledged, so that the daemon
    /// still keeps it; else by the opposite request.
    fn undo_done(&mut self, id: u64, seq: u64, message: Message, undo: Option<Undo>) {
        let is_grant = matches!(message, Message::Granted(_) | Message::Woken(_));
        if !is_grant || seq <= self.acked {
            return self.undo(message, undo);
        }
        self.pin_and_cancel(id, seq);
    }

    fn pin_and_cancel(&mut self, id: u64, seq: u64) {
        // Before `enqueue` computes the acknowledgement that the Cancel carries.
        self.pinned.push(Pin { until: self.last_id + 1, seq });
        self.enqueue(Request::Cancel(Cancel { id, give_back: true }));
    }

    fn enqueue(&mut self, request: Request) -> u64 {
        let id = self.draw_id();
        if self.lost().is_none() {
            self.acked = self.acknowledgement();
            let mut request = request;
            if let Some(Some(timeout_us @ 1..)) = timeout(&mut request) {
                self.timed.push_back(Timed { id, timeout_us: *timeout_us, since: None });
            }
            self.sent.push_back(ClientMessage { id, ack: self.acked, request: Some(request) });
        }
        id
    }

    /// Queues a request that is answered only if it is refused.
    fn enqueue_quiet(&mut self, mut request: Request) {
        if self.sent.len() >= QUIET_LIMIT
            && let Request::Release(release) = &mut request
        {
            release.quiet = false;
        }
        self.enqueue(request);
    }

    /// The highest sequence number that may be acknowledged: below any grant that a Cancel on its
    /// way has to undo, and, within `ACK_LAG`, below any reply that has yet to be collected.
    fn acknowledgement(&self) -> u64 {
        let limit = self.pinned.iter().map(|pin| pin.seq - 1).min().unwrap_or(self.last_seq);
        if self.done.is_empty() {
            return limit.max(self.acked);
        }
        if self.last_seq - self.acked < ACK_LAG {
            return self.acked;
        }
        let seqs = self.done.values().filter_map(|done| done.seq);
        let oldest = seqs.min().map_or(self.last_seq, |seq| seq - 1).max(self.last_seq - ACK_LAG);
        limit.min(oldest).max(self.acked)
    }

    /// Sets the start of requests that were made since the last call that passed the time.
    pub(super) fn note_time(&mut self) {
        let new = self.timed.iter_mut().rev().take_while(|timed| timed.since.is_none());
        new.for_each(|timed| timed.since = Some(self.clock));
    }

    /// Deducts the time without a daemon from time-outs that are sent again: a time-out bounds the
    /// call, not only the daemon's part of it.
    pub(super) fn count_time_away(&mut self) {
        for timed in &self.timed {
            let away = timed.since.map_or(Duration::ZERO, |since| self.clock - since);
            let away = u64::try_from(away.as_micros()).unwrap_or(u64::MAX);
            if let Ok(at) = self.sent.binary_search_by_key(&timed.id, |sent| sent.id)
                && let Some(request) = &mut self.sent[at].request
                && let Some(timeout_us) = timeout(request)
            {
                *timeout_us = Some(timed.timeout_us.saturating_sub(away));
            }
        }
    }

    /// All requests up to `id` have arrived.
    pub(super) fn arrived(&mut self, id: u64) {
        while self.timed.front().is_some_and(|timed| timed.id <= id) {
            self.timed.pop_front();
        }
        while self.sent.front().is_some_and(|sent| sent.id <= id) {
            self.sent.pop_front();
            self.transmitted = self.transmitted.saturating_sub(1);
        }
        self.pinned.retain(|pin| pin.until > id);
    }

    pub(super) fn dispatch(&mut self, message: ServerMessage) {
        let ServerMessage { seq, id, message } = message;
        self.last_seq = seq;
        if id > 0 {
            // Requests are handled in order, so a reply confirms all requests before it.
            self.arrived(id);
        }
        match message {
            None => {}
            Some(Message::HoldLost(hold)) => drop(self.taken.insert(hold.token)),
            // A daemon that shuts down may be replaced.
            Some(Message::SessionEnd(end)) if end.shutting_down => self.is_leaving = true,
            Some(Message::SessionEnd(end)) => self.lose(SessionLost::by_daemon(&end)),
            Some(message) => self.answer(id, seq, message),
        }
        if self.last_seq - self.acked >= ACK_EVERY && self.acknowledgement() > self.acked {
            self.enqueue(Request::Acknowledge(Ack {}));
        }
    }

    fn answer(&mut self, id: u64, seq: u64, message: Message) {
        if let Some(Waiting { undo, .. }) = self.stop_waiting(id) {
            let is_over = self.goodbye == Some(id);
            self.done.insert(id, Done { seq: Some(seq), result: Ok(message), undo });
            self.events.push_back(Event::Reply(id));
            if is_over {
                self.lose(SessionLost::closed());
            }
            return;
        }
        let withdrawn = self.withdrawn.remove(&id);
        let is_grant = matches!(message, Message::Granted(_) | Message::Woken(_));
        match withdrawn {
            // The Cancel undoes the grant when it arrives.
            Some(Withdrawn { cancel: Some(cancel), .. }) if is_grant => {
                if self.sent.front().is_some_and(|sent| sent.id <= cancel) {
                    self.pinned.push(Pin { until: cancel, seq });
                }
            }
            withdrawn => self.undo(message, withdrawn.map(|withdrawn| withdrawn.undo)),
        }
    }

    /// Gives back what the reply to a withdrawn request granted.
    fn undo(&mut self, message: Message, undo: Option<Undo>) {
        match (message, undo) {
            (Message::Attached(Attached { handle, .. }), _) => {
                self.enqueue(Request::Detach(Detach { handle, quiet: true }));
            }
            (Message::BarrierPassed(passed), Some(Undo::Party { handle, owner }))
                if passed.run_action =>
            {
                let failed = BarrierAction { handle, owner, ok: false };
                self.enqueue(Request::BarrierAction(failed));
            }
            (Message::Granted(grant), Some(Undo::Grant { handle, owner, unowned })) => {
                // An unowned permit has no hold, so a release names no token.
                let token = if unowned { 0 } else { grant.token };
                let release = Release { handle, owner, token, quiet: true };
                self.enqueue_quiet(Request::Release(release));
            }
            (
                Message::Woken(Woken { granted: Some(grant), .. }),
                Some(Undo::Lock { handle, owner }),
            ) => {
                let release = Release { handle, owner, token: grant.token, quiet: true };
                (0..grant.depth).for_each(|_| self.enqueue_quiet(Request::Release(release)));
            }
            _ => {}
        }
    }

    /// Whether the hold was released by force; true once.
    fn forget_taken(&mut self, token: u64) -> bool {
        !self.taken.is_empty() && self.taken.remove(&token)
    }

    /// The number of quiet releases of unowned permits not known to have arrived. Only these are
    /// lost with the session: holds end with it in any case.
    pub(super) fn unowned_releases(&self) -> u32 {
        let lost = self.sent.iter().filter(|message| {
            matches!(&message.request, Some(Request::Release(release)) if release.token == 0)
                && !self.waiting.contains_key(&message.id)
        });
        u32::try_from(lost.count()).unwrap_or(u32::MAX)
    }
}
