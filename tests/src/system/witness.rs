//! The checker. It stands outside: it knows what clients called and when, what passed the
//! daemon's door in either direction, and what clients were told. What a client believes follows
//! from that, and must never contradict the rules. Never here: the core's state, or the client's.

mod abandonments;
mod conditions;
mod count;
mod end;
mod holds;
mod meetings;
pub(super) mod sessions;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use syncd_core::{Answer, Body, Cause, Message, SessionId};
use syncd_proto::v1::{ClientMessage, client_message::Request};

pub use self::count::Count;
use super::{
    Checked,
    plan::{Kind, Plan},
};

/// A session as its client has it, numbered through the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sid(pub usize);

/// A place in the order in which things passed the daemon's door, and the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub position: u64,
    pub at: u64,
}

/// What an owner asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum What {
    Attach,
    Detach,
    Acquire { unowned: bool, careful: bool },
    Release { token: u64 },
    Bare,
    Forget { token: u64 },
    Mark,
    Wait { depth: u32 },
    Notify { n: u32 },
    Set(bool),
    Await,
    Meet,
    Report,
    Reset,
    Abort,
    Query,
    Close,
}

/// What a request asks for, in microseconds.
fn timeout(message: &ClientMessage) -> Option<u64> {
    match message.request.as_ref()? {
        Request::Acquire(acquire) => acquire.timeout_us,
        Request::Wait(wait) => wait.timeout_us,
        Request::EventWait(wait) => wait.timeout_us,
        Request::BarrierWait(wait) => wait.timeout_us,
        _ => None,
    }
}

/// A request whose answer somebody waits for, or did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub owner: u64,
    pub object: usize,
    pub what: What,
    /// The daemon's, in microseconds.
    pub timeout: Option<u64>,
    /// When it was made.
    made: u64,
    /// The client's own clock may end it.
    pub deadline: bool,
    /// The highest token that anybody had been told of.
    floor: u64,
    pub arrived: Option<Moment>,
    pub decided: Option<Decided>,
    /// A Cancel for it has come to the daemon.
    recalled: Option<Moment>,
    given_up: Option<Moment>,
    /// Its grant was given back before the client had acknowledged it.
    undone: bool,
    /// Its caller is gone.
    pub withdrawn: bool,
    pub collected: bool,
    /// The session gave up the object meanwhile.
    pub detached: bool,
}

/// The daemon's answer, as it left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    pub when: Moment,
    seq: u64,
    granted: bool,
    /// Of a Wait; of a Notify how many.
    notified: bool,
    count: u32,
    refused: bool,
    poisoned: bool,
}

/// See the [module](self).
pub(super) struct Witness {
    pub now: u64,
    grace: u64,
    /// What a call of the core begins, it may leave to the next ones.
    is_piecemeal: bool,
    position: u64,
    pub sessions: Vec<sessions::Seen>,
    by_id: HashMap<SessionId, Sid>,
    pub objects: Vec<Object>,
    pub calls: BTreeMap<(Sid, u64), Call>,
    /// Releases that came by the door without anybody waiting for their answer.
    posts: HashMap<(Sid, u64), (usize, u64)>,
    tokens: BTreeMap<u64, holds::FencingToken>,
    beliefs: BTreeMap<u64, holds::Belief>,
    highest_told: u64,
    pub count: Count,
}

/// What is known of an object.
pub(super) struct Object {
    pub kind: Kind,
    /// Tokens by the arrival of their acquires.
    order: BTreeMap<u64, u64>,
    /// Permits that are nobody's: granted and told of, less the releases that were called.
    unowned_told: i64,
    bare_called: i64,
    unowned: BTreeMap<Sid, holds::Unowned>,
    /// Sessions that gave up their reference while they used it.
    left_by: BTreeSet<Sid>,
    /// Of an event: set or cleared, by arrival.
    toggles: Vec<(Moment, bool)>,
    /// Of a barrier.
    arrivals: u64,
    firsts: u64,
    acting: BTreeSet<(Sid, u64)>,
}

impl Witness {
    pub fn new(plan: &Plan) -> Self {
        let object = |&kind: &Kind| Object {
            kind,
            order: BTreeMap::new(),
            unowned_told: 0,
            bare_called: 0,
            unowned: BTreeMap::new(),
            left_by: BTreeSet::new(),
            toggles: Vec::new(),
            arrivals: 0,
            firsts: 0,
            acting: BTreeSet::new(),
        };
        Self {
            now: 0,
            grace: plan.grace,
            is_piecemeal: plan.step < 100,
            position: 0,
            sessions: Vec::new(),
            by_id: HashMap::new(),
            objects: plan.objects.iter().map(object).collect(),
            calls: BTreeMap::new(),
            posts: HashMap::new(),
            tokens: BTreeMap::new(),
            beliefs: BTreeMap::new(),
            highest_told: 0,
            count: Count::default(),
        }
    }

    fn moment(&mut self) -> Moment {
        self.position += 1;
        Moment { position: self.position, at: self.now }
    }

    /// An owner has made a request and waits for the answer.
    pub fn called(
        &mut self,
        (sid, id): (Sid, u64),
        owner: u64,
        object: usize,
        what: What,
        timeout: Option<u64>,
        deadline: bool,
    ) {
        let call = Call {
            owner,
            object,
            what,
            timeout,
            made: self.now,
            deadline,
            floor: self.highest_told,
            arrived: None,
            decided: None,
            recalled: None,
            given_up: None,
            undone: false,
            withdrawn: false,
            collected: false,
            detached: false,
        };
        self.calls.insert((sid, id), call);
        match what {
            What::Release { token } => self.release_called(token, false),
            What::Forget { token } => self.forget_called(token),
            What::Bare => self.bare_called(sid, object, false),
            What::Wait { .. } => {
                let lock = self.lock_of(object);
                self.end_beliefs(holds::End::Lent, |belief| {
                    (belief.sid, belief.owner, belief.object) == (sid, owner, lock)
                });
            }
            What::Detach => self.detached(sid, object),
            What::Close => self.closing(sid),
            _ => {}
        }
    }

    /// Nobody waits for the answer any more.
    pub fn withdrawn(&mut self, sid: Sid, id: u64) {
        if let Some(call) = self.calls.get_mut(&(sid, id)) {
            call.withdrawn = true;
        }
    }

    /// A client writes a request: the time for which it had no connection counts. Rule R33.
    pub fn written(&mut self, sid: Sid, message: &ClientMessage) -> Checked {
        let Some(call) = self.calls.get(&(sid, message.id)) else { return Ok(()) };
        let (Some(asked), Some(timeout)) = (call.timeout, timeout(message)) else { return Ok(()) };
        let away = self.sessions[sid.0].up_since.saturating_sub(call.made);
        if timeout > asked.saturating_sub(away) {
            return Err(format!("{sid:?} asks for {timeout} us, {away} us later: {call:?}"));
        }
        Ok(())
    }

    /// A request came by the daemon's door.
    pub fn arrived(&mut self, session: SessionId, message: &ClientMessage) -> Checked {
        let Some(sid) = self.sid(session) else { return Ok(()) };
        let moment = self.moment();
        let seen = &mut self.sessions[sid.0];
        seen.ack = seen.ack.max(message.ack);
        if seen.ack > seen.sent {
            return Err(format!(
                "{sid:?} acknowledges {} and was sent no more than {}",
                seen.ack, seen.sent
            ));
        }
        let key = (sid, message.id);
        match &message.request {
            Some(Request::Cancel(cancel)) => {
                return self.cancel_arrived((sid, cancel.id), cancel.give_back, moment);
            }
            Some(Request::Release(release)) => {
                if let Some(&object) = seen.handles.get(&release.handle) {
                    self.release_arrived(key, object, release.token);
                }
            }
            _ => {}
        }
        let Some(call) = self.calls.get_mut(&key) else { return Ok(()) };
        // What was left of it then.
        call.timeout = timeout(message).or(call.timeout);
        if call.arrived.replace(moment).is_some() {
            return Err(format!("request {} of {sid:?} is handed on twice: {call:?}", key.1));
        }
        let (object, what, owner) = (call.object, call.what, call.owner);
        self.meeting_arrived(sid, owner, object, what, moment);
        Ok(())
    }

    fn cancel_arrived(&mut self, key: (Sid, u64), give_back: bool, moment: Moment) -> Checked {
        let ack = self.sessions[key.0.0].ack;
        let Some(call) = self.calls.get_mut(&key) else { return Ok(()) };
        match call.decided {
            None if give_back => drop(call.given_up.get_or_insert(moment)),
            None => drop(call.recalled.get_or_insert(moment)),
            Some(decided) if give_back && decided.granted && decided.seq > ack && !call.undone => {
                call.undone = true;
                call.given_up = Some(moment);
                self.count.undone += 1;
                let Call { object, what, .. } = *call;
                if matches!(what, What::Acquire { unowned: true, .. }) {
                    self.unowned_at(key.0, object).returned += 1;
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Something for a session left the core. What a resume sends again was seen before.
    pub fn decided(&mut self, session: SessionId, message: &Message) -> Checked {
        let Some(sid) = self.sid(session) else { return Ok(()) };
        let seen = &mut self.sessions[sid.0];
        // A session's last message doesn't wait for those that are to come again.
        if !seen.is_away && message.seq <= seen.last_out.max(seen.ack) + 1 {
            seen.last_out = seen.last_out.max(message.seq);
        }
        seen.sent = seen.sent.max(message.seq);
        if !seen.out.insert(message.seq) {
            return Ok(());
        }
        let when = self.moment();
        match &message.body {
            Body::Reply(id, reply) => {
                let key = (sid, id.0);
                if let Err(error) = reply {
                    self.post_refused(key, error)?;
                }
                let Some(call) = self.calls.get_mut(&key) else { return Ok(()) };
                let mut decided = Decided {
                    when,
                    seq: message.seq,
                    granted: false,
                    notified: false,
                    count: 0,
                    refused: reply.is_err(),
                    poisoned: matches!(
                        reply.as_ref().err().map(|error| &error.kind),
                        Some(syncd_core::ErrorKind::Poisoned { .. })
                    ),
                };
                match reply {
                    Ok(Answer::Granted(_)) => decided.granted = true,
                    Ok(Answer::Woken { notified, .. }) => {
                        (decided.granted, decided.notified) = (true, *notified);
                    }
                    Ok(Answer::Done { count }) => decided.count = *count,
                    _ => {}
                }
                call.decided = Some(decided);
                let call = *call;
                self.answer_decided(key, &call, reply)
            }
            Body::HoldLost { token, cause, .. } => {
                self.condemn(token.0, *cause);
                Ok(())
            }
            Body::SessionEnd(cause) => {
                // Who has lost its connection for so long must know by itself.
                if !matches!(cause, Cause::Disconnected | Cause::Died) {
                    let theirs: Vec<u64> = self.tokens_of(sid).collect();
                    theirs.into_iter().for_each(|token| self.condemn(token, *cause));
                }
                Ok(())
            }
        }
    }

    fn answer_decided(
        &mut self,
        key: (Sid, u64),
        call: &Call,
        reply: &syncd_core::Reply,
    ) -> Checked {
        match reply {
            Ok(Answer::Granted(grant) | Answer::Woken { grant, .. }) => {
                self.grant_decided(key, call, grant)
            }
            Ok(Answer::Attached(attachment)) => {
                let handles = &mut self.sessions[key.0.0].handles;
                handles.insert(attachment.handle.0, call.object);
                Ok(())
            }
            Ok(Answer::BarrierPassed { index, run_action }) => {
                self.pass_decided(key.0, call, *index, *run_action)
            }
            Ok(_) if matches!(call.what, What::Forget { .. }) => {
                self.unowned_at(key.0, call.object).granted += 1;
                Ok(())
            }
            Err(error) => {
                self.meeting_refused(call, error);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
