//! What a session was told: kept until the client has acknowledged it, as far as its quota of
//! bytes goes. It is what a resume sends again, and what a cancel can still undo.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    Body, FencingToken, Input, Message, ObjectId, Owner, RequestId, Space, Time, arena::Idx,
    object::Object, session::Session, undoable::Undoable,
};

/// Messages by number, from 1 upwards, without a gap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    last_seq: u64,
    /// The last that the client is known to have.
    acknowledged: u64,
    /// The latest. Among them may be some that are acknowledged, and that no call has thrown
    /// away yet.
    sent: VecDeque<Sent>,
    /// Bytes of those.
    weight: usize,
    /// The replies among them that can be undone, by their requests.
    undoable: Undoable,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub message: Message,
    pub undo: Option<Undo>,
    /// The message's bytes.
    weight: usize,
}

/// What it takes to undo a grant that its client never learnt of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Undo {
    pub object: Idx<Object>,
    pub id: ObjectId,
    pub owner: Owner,
    /// `None`: an unowned permit.
    pub token: Option<FencingToken>,
    /// Of a wait that ended: the condition, and the number of the notify.
    pub notified: Option<(Idx<Object>, u64)>,
    /// All levels of a recursive lock, as a wait takes them.
    pub whole: bool,
}

impl Outgoing {
    pub fn next_seq(&self) -> u64 {
        self.last_seq + 1
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub fn weight(&self) -> usize {
        self.weight
    }

    /// A client that has all up to a message can be sent the rest: nothing of that is gone, and
    /// it doesn't claim what it can't have, or take back what it said before.
    pub fn has_all_after(&self, received: u64) -> bool {
        let oldest = self.sent.front().map_or(self.next_seq(), |sent| sent.message.seq);
        let received_to = oldest.max(self.acknowledged + 1) - 1;
        (received_to..=self.last_seq).contains(&received)
    }

    /// Keeps a message. Returns it with its number, and its bytes.
    pub fn keep(&mut self, body: Body, undo: Option<Undo>) -> (Message, usize) {
        self.last_seq += 1;
        let message = Message { seq: self.last_seq, body };
        if undo.is_some()
            && let Body::Reply(request, _) = &message.body
        {
            self.undoable.insert(*request, message.seq);
        }
        let weight = message.weight();
        self.weight += weight;
        self.sent.push_back(Sent { message: message.clone(), undo, weight });
        (message, weight)
    }

    /// The client has all up to a message. Throws away as many of them as one call may, and
    /// returns their bytes.
    pub fn acknowledge(&mut self, seq: u64, most: u32) -> usize {
        self.acknowledged = self.acknowledged.max(seq.min(self.last_seq));
        (0..most).map_while(|_| self.forget_acknowledged()).sum()
    }

    pub fn forget_acknowledged(&mut self) -> Option<usize> {
        let known = self.sent.front()?.message.seq <= self.acknowledged;
        known.then(|| self.forget_oldest()).flatten()
    }

    pub fn forget_oldest(&mut self) -> Option<usize> {
        let sent = self.sent.pop_front()?;
        Some(self.forgotten(&sent))
    }

    pub fn forget_latest(&mut self) -> Option<(Sent, usize)> {
        let sent = self.sent.pop_back()?;
        let weight = self.forgotten(&sent);
        Some((sent, weight))
    }

    fn forgotten(&mut self, sent: &Sent) -> usize {
        if sent.undo.is_some()
            && let Body::Reply(request, _) = &sent.message.body
        {
            self.undoable.remove(*request);
        }
        self.weight -= sent.weight;
        sent.weight
    }

    pub fn get(&self, seq: u64) -> Option<&Message> {
        let first = self.sent.front()?.message.seq;
        let at = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.sent.get(at).map(|sent| &sent.message)
    }

    /// What it takes to undo a request's grant of which the client isn't known to have heard,
    /// and the reply, to be put right.
    pub fn take_undo(&mut self, request: RequestId) -> Option<(&mut Body, Undo)> {
        let seq = self.undoable.get(request).filter(|&seq| seq > self.acknowledged)?;
        self.undoable.remove(request);
        let first = self.sent.front()?.message.seq;
        let sent = self.sent.get_mut(usize::try_from(seq - first).ok()?)?;
        Some((&mut sent.message.body, sent.undo.take()?))
    }

    /// Asserts that all is in order, and returns the bytes.
    pub fn check(&self, ended: bool) -> usize {
        if let Some(last) = self.sent.back().map(|sent| sent.message.seq) {
            let seqs = self.sent.iter().rev().map(|sent| sent.message.seq);
            assert!(seqs.eq((0..self.sent.len() as u64).map(|back| last - back)), "no gap");
            assert!(last == self.last_seq || ended, "the latest messages are kept");
        }
        let undoable = self.sent.iter().filter(|sent| sent.undo.is_some()).count();
        assert_eq!(undoable, self.undoable.len(), "replies that can be undone");
        let weight = self.sent.iter().map(|sent| sent.weight).sum();
        assert_eq!(self.weight, weight, "bytes of messages kept");
        weight
    }
}

impl Space {
    /// There is no room for the state: of what connected sessions were sent and haven't acknowledged,
    /// the latest `most` bytes of each stay, as if that were their quota.
    pub fn handle_shortage(&mut self, now: Time, most: usize) {
        self.call(now, Input::Shortage { most });
        // Others have yet to be told, or to give back what they will never be told of.
        let connected =
            |s: &&mut Session| !s.ended && s.grace_until.is_none() && s.resend.is_none();
        for session in self.sessions.values_mut().filter(connected) {
            while session.outgoing.weight() > most
                && let Some(weight) = session.outgoing.forget_oldest()
            {
                self.unacknowledged -= weight;
            }
        }
    }
}
