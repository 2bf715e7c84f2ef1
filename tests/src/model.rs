//! A deliberately naive model of the core: flat lists, linear scans, everything that can be
//! counted is counted anew. It predicts each message and the whole state. Written from
//! SEMANTICS.md; never here: anything fast, or anything of the core's own code.

mod canonical;
mod deadlines;
mod objects;
mod queues;
mod semlocks;
mod sessions;

use std::time::Duration;

use syncd_core::{Cause, Class, Config};

pub(crate) use deadlines::Due;

/// A session, by the order of opening. Never used twice.
pub type Sid = usize;
/// An object, by the order of creation. Never used twice.
pub type Oid = usize;

/// An owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Who {
    pub session: Sid,
    pub owner: u64,
}

/// A grant: the `nth` of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Ticket {
    pub object: Oid,
    pub nth: u64,
}

/// A request, with objects for handles; `None` is a handle that the session doesn't have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Ask {
    Create { name: Option<String>, make: Make, keep: bool, poison: bool, exclusive: bool },
    AttachName(String),
    AttachKey(Option<Oid>),
    Detach(Option<Oid>),
    Unlink(String),
    Acquire { o: Option<Oid>, owner: u64, unowned: bool, timeout: Option<Duration>, careful: bool },
    Release { o: Option<Oid>, owner: u64, ticket: Option<Ticket>, quiet: bool },
    Forget { o: Option<Oid>, ticket: Ticket },
    Mark { o: Option<Oid>, owner: u64 },
    Wait { o: Option<Oid>, owner: u64, timeout: Option<Duration> },
    Notify { o: Option<Oid>, owner: u64, n: Option<u32> },
    Set(Option<Oid>, bool),
    Await { o: Option<Oid>, owner: u64, timeout: Option<Duration> },
    Meet { o: Option<Oid>, owner: u64, timeout: Option<Duration>, acting: bool },
    Act { o: Option<Oid>, owner: u64, ok: bool },
    Reset(Option<Oid>),
    Abort(Option<Oid>),
    Query(Option<Oid>),
    Cancel { request: u64, give_back: bool },
    Goodbye,
}

/// What Create makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Make {
    Sem { class: Class, value: u32, max: u32 },
    Condition(Option<Oid>),
    Event,
    Barrier(u32),
}

/// One message to a session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Said {
    Reply(u64, Word),
    HoldLost { owner: u64, ticket: Ticket, cause: u8 },
    End(u8),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Word {
    Done(u32),
    /// `notified` is of a Condition's wait.
    Granted {
        ticket: Ticket,
        depth: u32,
        left: Option<Left>,
        notified: Option<bool>,
    },
    Attached {
        object: Oid,
        created: bool,
    },
    Passed {
        index: u32,
        acting: bool,
    },
    State {
        value: u32,
        waiters: u32,
        broken: bool,
        holders: Vec<Holder>,
    },
    Refused(Option<Oid>, No),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum No {
    Invalid(&'static str),
    NotFound,
    Exists,
    Mismatch,
    NotOwner(Option<Holder>),
    OverReleased,
    Stale,
    TimedOut(Vec<Holder>),
    Cancelled,
    /// Who waits for what, for how long, and for how long it has been held.
    Deadlock(Vec<(Who, Oid, u64, u64)>),
    Poisoned(Left),
    Broken,
    Quota(&'static str),
}

/// Who holds something; `held` in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Holder {
    pub who: Who,
    pub ticket: Ticket,
    pub held: u64,
    pub depth: u32,
}

/// An abandonment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Left {
    pub who: Who,
    pub ticket: Ticket,
    pub held: u64,
    pub at: u64,
    pub cause: u8,
}

/// The world.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) now: u64,
    /// Rises with everything that happens.
    stamp: u64,
    pub(crate) sessions: Vec<Session>,
    pub(crate) objects: Vec<Object>,
    /// Everybody who waits, anywhere, in the order in which they joined their queue.
    pub(crate) waits: Vec<Wait>,
    /// Every hold, oldest first.
    pub(crate) holds: Vec<Hold>,
    /// What was said and not yet taken.
    said: Vec<(Sid, Said, Option<Undo>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub over: bool,
    pub grace_until: Option<u64>,
    pub references: Vec<Oid>,
    pub last_request: u64,
    /// Not acknowledged yet, with its number.
    pub sent: Vec<Sent>,
    /// While disconnected: the first message that it was never sent.
    pub unsent: Option<u64>,
    pub last_seq: u64,
    /// The highest number that it ever acknowledged, of those that there were.
    pub acknowledged: u64,
}

/// A message that isn't acknowledged yet.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub seq: u64,
    pub said: Said,
    pub undo: Option<Undo>,
    /// In bytes.
    pub weight: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    who: Who,
    object: Oid,
    /// `None`: an unowned permit.
    ticket: Option<Ticket>,
    /// Of a Condition's wait, which takes all levels: the Condition, and the notify.
    woken: Option<(Oid, Option<u64>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub gone: bool,
    pub name: Option<String>,
    anonymous: bool,
    pub keep: bool,
    poison: bool,
    lingers_until: Option<u64>,
    pub untold: Vec<Left>,
    inconsistent: Option<Left>,
    pub poisoned: Option<Left>,
    granted: u64,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sem { class: Class, value: u32, max: u32, capacity: u32, unowned: u32 },
    Condition { lock: Oid },
    Event { set: bool },
    Barrier { parties: u32, broken: bool, action: Option<(Who, u64)> },
}

#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub who: Who,
    pub ticket: Ticket,
    since: u64,
    depth: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Wait {
    pub who: Who,
    pub request: u64,
    pub object: Oid,
    since: u64,
    pub deadline: Option<u64>,
    stamp: u64,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Acquire { unowned: bool },
    Notify { depth: u32 },
    Back { condition: Oid, depth: u32, notified: Option<u64> },
    Event,
    Barrier { acting: bool },
}

type Outcome = Result<Option<Word>, (Option<Oid>, No)>;

pub(crate) fn cause_number(cause: Cause) -> u8 {
    cause as u8
}

impl Model {
    /// An empty world.
    pub fn new(config: Config) -> Self {
        Model {
            config,
            now: 0,
            stamp: 0,
            sessions: vec![],
            objects: vec![],
            waits: vec![],
            holds: vec![],
            said: vec![],
        }
    }

    /// Moves time, without doing what is due.
    pub fn at(&mut self, now: u64) {
        self.now = now;
    }

    /// Handles one request, as the core does.
    pub fn ask(&mut self, s: Sid, id: u64, ack: u64, ask: Ask) {
        if self.sessions[s].over {
            return;
        }
        let session = &mut self.sessions[s];
        session.sent.retain(|sent| sent.seq > ack);
        session.acknowledged = session.acknowledged.max(ack.min(session.last_seq));
        if id <= self.sessions[s].last_request {
            return self.say(s, Said::Reply(id, Word::Refused(None, No::Invalid("id"))), None);
        }
        self.sessions[s].last_request = id;
        let quiet = matches!(ask, Ask::Release { quiet: true, .. });
        match self.dispatch(s, id, ask) {
            Ok(Some(word)) if !quiet => self.say(s, Said::Reply(id, word), None),
            Ok(_) => {}
            Err((o, no)) => self.say(s, Said::Reply(id, Word::Refused(o, no)), None),
        }
    }

    fn dispatch(&mut self, session: Sid, id: u64, ask: Ask) -> Outcome {
        let who = |owner| Who { session, owner };
        match ask {
            Ask::Create { name, make, keep, poison, exclusive } => {
                self.create(session, name, make, keep, poison, exclusive)
            }
            Ask::AttachName(name) => {
                let found = self.named(&name).ok_or((None, No::NotFound))?;
                self.attach(session, found, false)
            }
            Ask::AttachKey(o) => {
                let found = o.filter(|&o| !self.objects[o].gone).ok_or((None, No::NotFound))?;
                self.attach(session, found, false)
            }
            Ask::Detach(o) => self.detach(session, self.have(session, o)?),
            Ask::Unlink(name) => self.unlink(&name),
            Ask::Acquire { o, owner, unowned, timeout, careful } => {
                let o = self.have(session, o)?;
                self.acquire(o, who(owner), id, unowned, timeout, careful)
            }
            Ask::Release { o, owner, ticket, .. } => {
                self.release(self.have(session, o)?, who(owner), ticket)
            }
            Ask::Forget { o, ticket } => self.forget(self.have(session, o)?, session, ticket),
            Ask::Mark { o, owner } => self.mark(self.have(session, o)?, who(owner)),
            Ask::Wait { o, owner, timeout } => {
                self.wait(self.have(session, o)?, who(owner), id, timeout)
            }
            Ask::Notify { o, owner, n } => self.notify(self.have(session, o)?, who(owner), n),
            Ask::Set(o, set) => self.set(self.have(session, o)?, set),
            Ask::Await { o, owner, timeout } => {
                self.await_event(self.have(session, o)?, who(owner), id, timeout)
            }
            Ask::Meet { o, owner, timeout, acting } => {
                self.meet(self.have(session, o)?, who(owner), id, timeout, acting)
            }
            Ask::Act { o, owner, ok } => self.act(self.have(session, o)?, who(owner), ok),
            Ask::Reset(o) => self.reset(self.have(session, o)?),
            Ask::Abort(o) => self.abort(self.have(session, o)?),
            Ask::Query(o) => Ok(Some(self.query(self.have(session, o)?))),
            Ask::Cancel { request, give_back } => {
                self.cancel(session, request, give_back);
                Ok(None)
            }
            Ask::Goodbye => {
                self.goodbye(session, id);
                Ok(None)
            }
        }
    }

    fn have(&self, s: Sid, o: Option<Oid>) -> Result<Oid, (Option<Oid>, No)> {
        o.filter(|o| self.sessions[s].references.contains(o)).ok_or((None, No::NotFound))
    }

    fn say(&mut self, s: Sid, said: Said, undo: Option<Undo>) {
        if !self.sessions[s].over {
            self.said.push((s, said, undo));
        }
    }

    fn tick(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Takes what was said to a session, if it is among what the model has to say: only then
    /// does it get its number.
    pub(crate) fn hear(
        &mut self,
        s: Sid,
        seq: u64,
        said: &Said,
        weight: usize,
    ) -> Result<(), String> {
        let found = self.said.iter().position(|(whom, what, _)| *whom == s && what == said);
        let Some(found) = found else {
            let wanted: Vec<_> = self.said.iter().filter(|(whom, ..)| *whom == s).collect();
            return Err(format!("session {s} was told {said:?}\n  the model says {wanted:?}"));
        };
        let (_, said, undo) = self.said.remove(found);
        let limit = self.config.limits.unacknowledged_per_session;
        let session = &mut self.sessions[s];
        if seq != session.last_seq + 1 {
            return Err(format!("message {seq} after {}", session.last_seq));
        }
        session.last_seq = seq;
        session.sent.push(Sent { seq, said, undo, weight });
        while session.sent.iter().map(|sent| sent.weight).sum::<usize>() > limit {
            session.sent.remove(0);
        }
        Ok(())
    }

    /// What the model says and nobody has heard.
    pub(crate) fn unheard(&self) -> Option<String> {
        self.said.first().map(|said| format!("nobody was told {said:?}"))
    }
}
