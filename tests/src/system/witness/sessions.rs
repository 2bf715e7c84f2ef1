//! Sessions from outside: how they were opened, resumed and lost, what of their messages came,
//! and whether their loss has a reason.

use std::collections::{BTreeSet, HashMap};

use syncd_client::protocol::Failure;
use syncd_core::SessionId;
use syncd_proto::v1::{ServerMessage, server_message::Message};

use super::{Moment, Sid, What, Witness, holds::End};
use crate::system::Checked;

/// How a session stands, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::system) enum Standing {
    Living,
    Closed,
    Lost,
    Dead,
}

/// A session, and what has passed between it and the daemon.
pub(in crate::system) struct Seen {
    pub standing: Standing,
    pid: u32,
    pub id: Option<SessionId>,
    /// When its connection was last seen to work; none while it does.
    pub broken_since: Option<u64>,
    /// When the last one was answered.
    pub up_since: u64,
    pub dead: bool,
    pub kicked: bool,
    /// It has given everything back before it left.
    pub in_order: bool,
    /// The daemon dropped it for reading too slowly.
    pub dropped: bool,
    /// When the daemon ended it.
    pub ended: Option<Moment>,
    pub handles: HashMap<u32, usize>,
    /// Numbers of messages: the last that the daemon sent, and that was acknowledged to it.
    pub sent: u64,
    pub ack: u64,
    pub out: BTreeSet<u64>,
    /// The last up to which all have left the core for a connection.
    pub last_out: u64,
    /// The daemon knows of no connection.
    pub is_away: bool,
    /// The last that the client received, by any connection and by the last one.
    received: u64,
    by_link: Option<(usize, u64)>,
    answered: BTreeSet<u64>,
    /// Bare releases that nobody waited for.
    pub posted_bare: i64,
    /// Releases that the client said may not have arrived.
    pub undelivered: i64,
    /// Ids of requests: the last that the client wrote, and that it knows to have arrived.
    pub written: u64,
    pub known: u64,
}

impl Witness {
    /// A client begins to open a session.
    pub fn begun(&mut self, pid: u32) -> Sid {
        self.sessions.push(Seen {
            standing: Standing::Living,
            pid,
            id: None,
            broken_since: Some(self.now),
            up_since: 0,
            dead: false,
            kicked: false,
            in_order: false,
            dropped: false,
            ended: None,
            handles: HashMap::new(),
            sent: 0,
            ack: 0,
            out: BTreeSet::new(),
            last_out: 0,
            is_away: false,
            received: 0,
            by_link: None,
            answered: BTreeSet::new(),
            posted_bare: 0,
            undelivered: 0,
            written: 0,
            known: 0,
        });
        Sid(self.sessions.len() - 1)
    }

    /// Whose session that is; one whose client never heard of it is nobody's.
    pub fn sid(&self, id: SessionId) -> Option<Sid> {
        self.by_id.get(&id).copied()
    }

    /// The daemon has resumed it: what the client has not got comes again.
    pub fn resumed(&mut self, id: SessionId, received: u64) {
        let Some(sid) = self.sid(id) else { return };
        let seen = &mut self.sessions[sid.0];
        seen.ack = seen.ack.max(received);
        (seen.last_out, seen.is_away) = (seen.last_out.max(received), false);
        self.count.resumed += 1;
    }

    /// The daemon knows of no connection of it.
    pub fn away(&mut self, id: SessionId) {
        if let Some(sid) = self.sid(id) {
            self.sessions[sid.0].is_away = true;
        }
    }

    /// The daemon has ended it.
    pub fn ended(&mut self, id: SessionId) {
        let when = self.moment();
        let Some(sid) = self.sid(id) else { return };
        if self.sessions[sid.0].ended.replace(when).is_none() {
            self.return_unheard(sid);
        }
        self.objects.iter_mut().for_each(|object| object.acting.retain(|(of, _)| *of != sid));
    }

    pub fn kicked(&mut self, sid: Sid) {
        self.sessions[sid.0].kicked = true;
    }

    /// The daemon drops it, since it reads too slowly.
    pub fn dropped(&mut self, id: SessionId) {
        if let Some(sid) = self.sid(id) {
            self.sessions[sid.0].dropped = true;
            self.sessions[sid.0].broken_since.get_or_insert(self.now);
        }
    }

    /// Its connection broke.
    pub fn broken(&mut self, sid: Sid) {
        self.sessions[sid.0].broken_since.get_or_insert(self.now);
    }

    /// Its client has a connection whose greeting was answered.
    pub fn up(&mut self, sid: Sid) {
        let seen = &mut self.sessions[sid.0];
        (seen.broken_since, seen.up_since) = (None, self.now);
    }

    /// A message came to the client by a connection. Rules R3, R5.
    pub fn received(&mut self, sid: Sid, link: usize, message: &ServerMessage) -> Checked {
        let seen = &mut self.sessions[sid.0];
        if message.seq == 0 {
            if let Some(Message::Opened(opened)) = &message.message {
                seen.known = seen.known.max(opened.last_id);
                let id = *seen.id.get_or_insert(SessionId(opened.session));
                self.by_id.insert(id, sid);
            }
            return Ok(());
        }
        let last = match seen.by_link {
            Some((by, last)) if by == link => last,
            _ => message.seq.min(seen.received + 1) - 1,
        };
        seen.by_link = Some((link, message.seq));
        // The last of all doesn't wait for what was to come again; and what it has got and
        // acknowledged need not come again.
        let is_end = matches!(message.message, Some(Message::SessionEnd(_)));
        let follows = message.seq <= last.max(seen.received) + 1 || is_end;
        if message.seq <= last || !follows {
            return Err(format!("message {} comes to {sid:?} after {last}", message.seq));
        }
        if message.seq <= seen.received {
            return Ok(());
        }
        seen.received = message.seq;
        seen.known = seen.known.max(message.id);
        if message.id > 0 && !seen.answered.insert(message.id) {
            return Err(format!("request {} of {sid:?} is answered twice", message.id));
        }
        if let Some(Message::HoldLost(lost)) = &message.message {
            self.count.taken += 1;
            self.told_lost(sid, lost.token)?;
        }
        Ok(())
    }

    /// The client's session is over: by its loss, its own wish, or the death of its process.
    /// Nothing that it held is believed any more.
    pub fn over(&mut self, sid: Sid, standing: Standing) {
        if self.sessions[sid.0].standing == Standing::Living {
            self.sessions[sid.0].standing = standing;
        }
        self.end_beliefs(End::Gone, |belief| belief.sid == sid);
    }

    /// A process is dead, with all the sessions that it ever had.
    pub fn died(&mut self, pid: u32) {
        self.count.died += 1;
        self.sessions.iter_mut().filter(|seen| seen.pid == pid).for_each(|seen| seen.dead = true);
    }

    /// The daemon has seen a process exit: its sessions are over at once. Rule R7.
    pub fn reaped(&self, pid: u32) -> Checked {
        let left = |seen: &&Seen| seen.pid == pid && seen.id.is_some() && seen.ended.is_none();
        match self.sessions.iter().find(left) {
            Some(seen) => Err(format!("process {pid} is dead, and its session {:?} not", seen.id)),
            None => Ok(()),
        }
    }

    /// A Goodbye was called.
    pub(super) fn closing(&mut self, sid: Sid) {
        self.end_beliefs(End::Gone, |belief| belief.sid == sid);
    }

    /// The client learns that its session is lost, which must have a reason: it was kicked, or
    /// dropped, or without a connection for as long as a client tries to get one. Rules R5, R6.
    pub fn lost(&mut self, sid: Sid, undelivered: u32, why: &str) -> Checked {
        self.count.lost += 1;
        let seen = &mut self.sessions[sid.0];
        seen.undelivered = undelivered.into();
        let broken = seen.broken_since.map_or(0, |since| self.now - since);
        let justified = seen.kicked
            || seen.dropped
            || seen.standing == Standing::Closed
            || broken >= self.grace * 3 / 4;
        self.over(sid, Standing::Lost);
        if justified {
            return Ok(());
        }
        Err(format!("{sid:?} is lost for no reason ({why}): its connection broke {broken} us ago"))
    }

    /// Permits that are nobody's, granted to a session that was away and has not been told since,
    /// return with its end. Rule R39.
    fn return_unheard(&mut self, sid: Sid) {
        let Seen { last_out, ack, .. } = self.sessions[sid.0];
        let calls = self.calls.range((sid, 0)..=(sid, u64::MAX));
        let granted = calls.filter(|(_, call)| {
            let seq = call.decided.filter(|decided| decided.granted).map_or(0, |d| d.seq);
            let unowned = matches!(call.what, What::Acquire { unowned: true, .. });
            unowned && !call.undone && seq > last_out.max(ack)
        });
        let objects: Vec<usize> = granted.map(|(_, call)| call.object).collect();
        for object in objects {
            self.unowned_at(sid, object).returned += 1;
        }
    }

    /// The answer says that there is none, and may say so.
    pub(super) fn failed(&self, sid: Sid, call: &super::Call, failure: &Failure) -> Checked {
        match failure {
            Failure::Lost(_) if self.sessions[sid.0].standing != Standing::Living => Ok(()),
            Failure::Overdue if call.deadline => Ok(()),
            _ => Err(format!("{sid:?} is told {failure:?}: {call:?}")),
        }
    }
}
