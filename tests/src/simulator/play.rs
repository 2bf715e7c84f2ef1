//! Plays a life on the core and on the model, and compares.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use syncd_core::{
    Body, FencingToken, Handle, Message, ObjectId, ObjectKey, Output, Process, Reason, Record,
    RecordKind, SessionId, Space, Spec, Step, Time,
};

use super::{
    compare::{Checked, agree},
    generate::{Call, World},
    restart::Kept,
};
use crate::{
    model::{Kind, Model, Oid, Said, Sent, Sid, Ticket, Word},
    panics::caught,
    steps::steps,
};

/// What is wrong, and after which call.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Failure {
    pub at: usize,
    pub why: String,
}

/// A life that went well.
#[derive(Debug)]
pub(super) struct Played {
    pub outputs: u64,
    pub trace: u64,
}

pub(super) fn play(world: &World, calls: &[Call]) -> Result<Played, Failure> {
    let mut player = Player::new(world);
    for (at, call) in calls.iter().enumerate() {
        player.attempt(call).map_err(|why| Failure { at, why })?;
    }
    Ok(Played { outputs: player.outputs, trace: player.trace.finish() })
}

/// Both worlds, and which of the one is which of the other.
#[derive(Clone, Debug)]
pub struct Player<'a> {
    pub(super) world: &'a World,
    pub(super) now: Time,
    pub(super) space: Space,
    pub(super) model: Model,
    pub(super) places: BTreeMap<usize, Place>,
    pub(super) sessions: Vec<SessionId>,
    pub(super) objects: Vec<(ObjectId, ObjectKey)>,
    tokens: HashMap<FencingToken, Ticket>,
    pub(super) tickets: HashMap<Ticket, FencingToken>,
    last_event: u64,
    outputs: u64,
    trace: DefaultHasher,
    pub(super) kept: Kept,
}

/// A session, as its client sees it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub session: Sid,
    pub last_request: u64,
    pub received: u64,
    /// By the object's place: the last that it attached to.
    pub objects: HashMap<usize, Oid>,
    pub handles: HashMap<Oid, Handle>,
    pub grants: Vec<Ticket>,
    /// Whose object's place a request is about.
    pub asked: HashMap<u64, usize>,
}

const FIRST_EVENT: u64 = 1_000;

impl<'a> Player<'a> {
    /// Two empty worlds.
    pub fn new(world: &'a World) -> Self {
        let space = Space::new(world.config.clone(), FIRST_EVENT);
        Player {
            world,
            now: Time(0),
            kept: Kept::of(&space),
            space,
            model: Model::new(world.config.clone()),
            places: BTreeMap::new(),
            sessions: vec![],
            objects: vec![],
            tokens: HashMap::new(),
            tickets: HashMap::new(),
            last_event: FIRST_EVENT - 1,
            outputs: 0,
            trace: DefaultHasher::new(),
        }
    }

    /// As [`call`](Self::call), and the core may panic. After an error nothing makes sense any more.
    pub(super) fn attempt(&mut self, call: &Call) -> Checked {
        caught(|| self.call(call))
    }

    /// Makes one call on both, and compares.
    pub fn call(&mut self, call: &Call) -> Checked {
        self.now = Time(self.now.0 + 1);
        self.model.at(self.now.0);
        match *call {
            Call::Open { place } => self.open(place)?,
            Call::Ask { place, owner, object, unacked, aptly, ref verb } => {
                let (mut place, mut owner, mut verb) = (place, owner, verb.clone());
                if aptly {
                    (place, owner) = self.aptly(place, owner, object, &mut verb)?;
                }
                if self.places.contains_key(&place) {
                    self.ask(place, owner, object, unacked, &verb)?;
                }
            }
            Call::Disconnect { place } => {
                if let Some(session) = self.session(place) {
                    self.model.disconnect(session);
                    self.space.handle_disconnect(self.now, self.sessions[session]);
                }
            }
            Call::Resume { place, missed } => self.resume(place, missed)?,
            Call::Lost { place, cause } => {
                if let Some(session) = self.session(place) {
                    let was = self.model.lost(session, cause);
                    let id = self.sessions[session];
                    agree("lost", self.space.handle_lost(self.now, id, cause), was)?;
                }
            }
            Call::Force { object } => {
                let place = self.places.values().find_map(|p| p.objects.get(&object));
                if let Some(&o) = place.filter(|&&o| !self.model.objects[o].gone) {
                    self.model.force(o);
                    let forced = self.space.handle_force_release(self.now, self.objects[o].0);
                    agree("forced", forced.is_some(), true)?;
                }
            }
            Call::Restart { resume } => self.restart(resume)?,
            Call::Advance { by, late } => {
                self.now = self.now + by;
                self.model.at(self.now.0);
                if !late {
                    self.model.timeout();
                    self.time_out()?;
                }
            }
        }
        self.drain()?;
        self.compare()
    }

    /// The session in a place, if it isn't over.
    pub(super) fn living(&self, place: usize) -> Option<Sid> {
        self.session(place).filter(|&session| !self.model.sessions[session].over)
    }

    /// An object is made to poison.
    pub(super) fn poisons(&self, object: usize) -> bool {
        self.world.objects[object].poison
    }

    /// Forgets grants that are gone, which only a stale release would name.
    pub(super) fn forget(&mut self) {
        let held = |ticket: &Ticket| self.model.holds.iter().any(|hold| hold.ticket == *ticket);
        for place in self.places.values_mut() {
            place.grants.retain(held);
            place.asked.clear();
        }
    }

    fn session(&self, place: usize) -> Option<Sid> {
        self.places.get(&place).map(|place| place.session)
    }

    pub(super) fn open(&mut self, place: usize) -> Checked {
        let old = self.session(place).filter(|&s| !self.model.sessions[s].over);
        if old.is_some() {
            return Ok(());
        }
        let process = Process { pid: place as u32, uid: 1, command: Arc::from("simulated") };
        let opened = self.space.handle_open(self.now, process);
        let session = self.model.open();
        agree("opened", opened.is_ok(), session.is_some())?;
        if let (Ok(id), Some(session)) = (opened, session) {
            self.sessions.push(id);
            let place_ = Place {
                session,
                last_request: 0,
                received: 0,
                objects: HashMap::new(),
                handles: HashMap::new(),
                grants: vec![],
                asked: HashMap::new(),
            };
            self.places.insert(place, place_);
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, place: usize, missed: u64) -> Checked {
        let Some(place) = self.places.get(&place) else { return Ok(()) };
        // Says at times that it got more than there was.
        let received = match missed {
            5 => u64::MAX,
            _ => place.received.saturating_sub(missed),
        };
        let session = place.session;
        let core = self.space.handle_resume(self.now, self.sessions[session], received);
        let model = self.model.resume(session, received);
        agree("resumed", core.as_ref().ok().map(|id| id.0), model.as_ref().ok().copied())?;
        if model.is_ok() {
            // What was missed comes again as it was, before anything else.
            let missed = self.model.sessions[session].sent.clone();
            let mut outputs = self.outputs();
            let is_message = |output: &Output| matches!(output, Output::Send { .. });
            for Sent { seq, said, .. } in missed {
                let Some(at) = outputs.iter().position(is_message) else {
                    return Err(format!("{said:?} is not sent again"));
                };
                let Output::Send { session: whom, message } = outputs.remove(at) else {
                    unreachable!("it is a message")
                };
                agree("resumed session", whom, self.sessions[session])?;
                agree("message again", (message.seq, self.said(&message)?), (seq, said))?;
            }
            return self.hear(outputs.into_iter());
        }
        Ok(())
    }

    /// Does all that is due: what one time-out brings with it before the next.
    fn time_out(&mut self) -> Checked {
        while let Some(due) = self.space.poll_timeout().filter(|due| due.at <= self.now) {
            match due.reason {
                Reason::Work => self.space.handle_work(self.now),
                _ => self.space.handle_timeout(self.now),
            }
            let step = self.take_step().expect("just called");
            self.listen(step.outputs.into_iter())?;
        }
        Ok(())
    }

    fn take_step(&mut self) -> Option<Step> {
        let step = self.space.take_step()?;
        self.space.check();
        self.kept.add(&step);
        Some(step)
    }

    /// Every output of the core must be one that the model has.
    pub(super) fn drain(&mut self) -> Checked {
        let outputs = self.outputs();
        self.hear(outputs.into_iter())
    }

    /// What came of the last call, and of the work that it left to later ones.
    fn outputs(&mut self) -> Vec<Output> {
        let steps = steps(&mut self.space, self.now);
        steps.iter().for_each(|step| self.kept.add(step));
        steps.into_iter().flat_map(|step| step.outputs).collect()
    }

    fn hear(&mut self, outputs: impl Iterator<Item = Output>) -> Checked {
        self.listen(outputs)?;
        self.model.unheard().map_or(Ok(()), Err)
    }

    fn listen(&mut self, outputs: impl Iterator<Item = Output>) -> Checked {
        for output in outputs {
            self.outputs += 1;
            format!("{output:?}").hash(&mut self.trace);
            match output {
                Output::Record(event) => self.event(&event)?,
                Output::Ready { .. } => {}
                Output::Send { session, message } => {
                    let session = self.sessions.iter().position(|&id| id == session);
                    let session = session.ok_or("a message for nobody")?;
                    let said = self.said(&message)?;
                    self.model.hear(session, message.seq, &said, message.weight())?;
                    self.learn(session, &message, &said)?;
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Record) -> Checked {
        agree("event's number", event.number, self.last_event + 1)?;
        self.last_event = event.number;
        match &event.kind {
            RecordKind::Granted { token, .. } if token.0 == event.number => {
                let label = event.object.as_ref().ok_or("a grant of nothing")?;
                let object = self.oid(label.id)?;
                let before = self.tickets.keys().filter(|t| t.object == object).count() as u64;
                let ticket = Ticket { object, nth: before + 1 };
                self.tokens.insert(*token, ticket);
                self.tickets.insert(ticket, *token);
            }
            RecordKind::Created => {
                let label = event.object.as_ref().ok_or("nothing was created")?;
                let key = "0-0-0".parse().expect("a key's form");
                self.objects.push((label.id, key));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a client keeps of what it is told.
    fn learn(&mut self, session: Sid, message: &Message, said: &Said) -> Checked {
        let place = self.places.values_mut().find(|place| place.session == session);
        let Some(place) = place else { return Ok(()) };
        place.received = message.seq;
        match (&message.body, said) {
            (
                Body::Reply(id, Ok(syncd_core::Answer::Attached(attachment))),
                Said::Reply(_, Word::Attached { object, .. }),
            ) => {
                self.objects[*object].1 = attachment.key;
                place.objects.insert(place.asked[&id.0], *object);
                place.handles.insert(*object, attachment.handle);
                if let (Spec::Condition { lock: handle }, Kind::Condition { lock }) =
                    (attachment.spec, self.model.objects[*object].kind)
                {
                    place.handles.insert(lock, handle);
                }
            }
            (_, Said::Reply(_, Word::Granted { ticket, .. })) => place.grants.push(*ticket),
            (Body::HoldLost { handle, .. }, Said::HoldLost { ticket, .. }) => {
                agree("handle", place.handles.get(&ticket.object), Some(handle))?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn oid(&self, id: ObjectId) -> Result<Oid, String> {
        let found = self.objects.iter().position(|(known, _)| *known == id);
        found.ok_or_else(|| format!("an unknown object: {id:?}"))
    }

    pub(super) fn sid(&self, id: SessionId) -> Result<Sid, String> {
        let found = self.sessions.iter().position(|&known| known == id);
        found.ok_or_else(|| format!("an unknown session: {id:?}"))
    }

    pub(super) fn ticket(&self, token: FencingToken) -> Result<Ticket, String> {
        self.tokens.get(&token).copied().ok_or_else(|| format!("an unknown token: {token:?}"))
    }
}
