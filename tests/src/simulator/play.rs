//! Plays a life on the core and on the model, and compares. Never here: chance, or rules.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use syncd_core::{
    Acquire, Body, Create, Event, EventKind, Handle, Message, ObjectId, ObjectKey, Output, Owner,
    Process, Reason, Request, RequestId, SessionId, Space, Spec, Time, Token,
};

use super::generate::{Call, Verb, World};
use crate::model::{Ask, Due, Kind, Make, Model, No, Oid, Said, Sid, Ticket, Who, Word};

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
        player.call(call).map_err(|why| Failure { at, why })?;
    }
    Ok(Played { outputs: player.outputs, trace: player.trace.finish() })
}

/// Both worlds, and which of the one is which of the other.
#[derive(Clone, Debug)]
pub struct Player<'a> {
    world: &'a World,
    now: Time,
    pub(super) space: Space,
    pub(super) model: Model,
    places: BTreeMap<usize, Place>,
    sessions: Vec<SessionId>,
    objects: Vec<(ObjectId, ObjectKey)>,
    tokens: HashMap<Token, Ticket>,
    tickets: HashMap<Ticket, Token>,
    last_event: u64,
    outputs: u64,
    trace: DefaultHasher,
}

/// A session, as its client sees it.
#[derive(Clone, Debug)]
struct Place {
    session: Sid,
    last_request: u64,
    received: u64,
    /// By the object's place: the last that it attached to.
    objects: HashMap<usize, Oid>,
    handles: HashMap<Oid, Handle>,
    grants: Vec<Ticket>,
    /// Whose object's place a request is about.
    asked: HashMap<u64, usize>,
}

type Checked = Result<(), String>;

fn agree<T: PartialEq + Debug>(what: &str, core: T, model: T) -> Checked {
    if core == model { Ok(()) } else { Err(format!("{what}: core {core:?}, model {model:?}")) }
}

const FIRST_EVENT: u64 = 1_000;

impl<'a> Player<'a> {
    /// Two empty worlds.
    pub fn new(world: &'a World) -> Self {
        Player {
            world,
            now: Time(0),
            space: Space::new(world.config.clone(), FIRST_EVENT),
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
            Call::Advance { by, late } => {
                self.now = self.now + by;
                self.model.at(self.now.0);
                if !late {
                    self.model.timeout();
                    self.space.handle_timeout(self.now);
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

    fn open(&mut self, place: usize) -> Checked {
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

    fn resume(&mut self, place: usize, missed: u64) -> Checked {
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
            for (seq, said, _) in self.model.sessions[session].sent.clone() {
                let Some(Output::Send { session: whom, message }) = self.space.poll_output() else {
                    return Err(format!("{said:?} is not sent again"));
                };
                agree("resumed session", whom, self.sessions[session])?;
                agree("message again", (message.seq, self.said(&message)?), (seq, said))?;
            }
        }
        Ok(())
    }

    /// Gives the session what it takes to ask so, or finds one that can.
    fn aptly(
        &mut self,
        mut place: usize,
        mut owner: u64,
        object: usize,
        verb: &mut Verb,
    ) -> Result<(usize, u64), String> {
        let lock = match self.world.objects[object].make {
            Make::Condition(Some(lock)) => lock,
            _ => object,
        };
        if matches!(
            verb,
            Verb::Release { back: Some(_), .. }
                | Verb::Forget { .. }
                | Verb::Mark
                | Verb::Wait { .. }
                | Verb::Notify { .. }
                | Verb::Act { .. }
        ) {
            let who = self.places.values().find_map(|p| self.model.doer(*p.objects.get(&lock)?));
            let found =
                self.places.iter().find(|(_, p)| Some(p.session) == who.map(|w| w.0.session));
            if let (Some((who, ticket)), Some((&at, found))) = (who, found) {
                (place, owner) = (at, who.owner);
                let of = |t: &&Ticket| Some(t.object) == ticket.map(|t| t.object);
                let nth = found.grants.iter().rev().filter(of).position(|&t| Some(t) == ticket);
                match (verb, nth) {
                    (Verb::Release { back, .. }, Some(nth)) => *back = Some(nth),
                    (Verb::Forget { back }, Some(nth)) => *back = nth,
                    _ => {}
                }
            }
        }
        self.open(place)?;
        for object in [lock, object] {
            let Some(here) = self.places.get(&place) else { continue };
            let has = here.objects.get(&object);
            if !has.is_some_and(|o| self.model.sessions[here.session].references.contains(o)) {
                self.ask(place, owner, object, 0, &Verb::Create { exclusive: false })?;
                self.drain()?;
            }
        }
        Ok((place, owner))
    }

    fn ask(&mut self, at: usize, owner: u64, object: usize, unacked: u64, verb: &Verb) -> Checked {
        let place = &self.places[&at];
        let session = place.session;
        let o = place.objects.get(&object).copied();
        let has = |o: &Oid| self.model.sessions[session].references.contains(o);
        let handle_of = |o: Option<Oid>| match o.filter(has) {
            Some(o) => place.handles[&o],
            None => Handle(u32::MAX),
        };
        let (handle, who) = (handle_of(o), Owner(owner));
        let ticket = |back: usize| {
            let grants = place.grants.iter().filter(|grant| Some(grant.object) == o);
            grants.rev().nth(back).copied()
        };
        let id = place.last_request + u64::from(!matches!(verb, Verb::Again));
        let name = || Some(format!("object {object}"));
        let plan = self.world.objects[object];
        let (request, ask) = match *verb {
            Verb::Create { exclusive } => {
                let (make, spec) = match plan.make {
                    Make::Sem { class, value, max } => {
                        (plan.make, Spec::SemLock { class, value, max })
                    }
                    Make::Condition(lock) => {
                        let lock = lock.and_then(|lock| place.objects.get(&lock)).copied();
                        (Make::Condition(lock), Spec::Condition { lock: handle_of(lock) })
                    }
                    Make::Event => (plan.make, Spec::Event),
                    Make::Barrier(parties) => (plan.make, Spec::Barrier { parties }),
                };
                let (keep, poison, secret) = (plan.keep, plan.poison, at as u64);
                let name = name().filter(|_| plan.named);
                let text = name.as_deref().map(Arc::from);
                let create = Create { name: text, spec, keep, poison, exclusive, secret };
                (Request::Create(create), Ask::Create { name, make, keep, poison, exclusive })
            }
            Verb::AttachName => {
                let name = name().expect("always one");
                (Request::AttachName(Arc::from(name.as_str())), Ask::AttachName(name))
            }
            Verb::AttachKey => {
                // By the key of whatever somebody last knew in this place.
                let known = self.places.values().filter_map(|p| p.objects.get(&object)).max();
                let Some(&known) = known else { return Ok(()) };
                (Request::AttachKey(self.objects[known].1), Ask::AttachKey(Some(known)))
            }
            Verb::Detach => (Request::Detach { handle, quiet: false }, Ask::Detach(o)),
            Verb::Unlink => {
                let name = name().expect("always one");
                (Request::Unlink { name: Arc::from(name.as_str()) }, Ask::Unlink(name))
            }
            Verb::Acquire { loose, timeout, careful } => (
                Request::Acquire(Acquire {
                    handle,
                    owner: who,
                    loose,
                    timeout,
                    fail_on_deadlock: careful,
                }),
                Ask::Acquire { o, owner, loose, timeout, careful },
            ),
            Verb::Release { back, quiet } => {
                let ticket = back.map(|back| ticket(back).ok_or(())).transpose();
                let Ok(ticket) = ticket else { return Ok(()) };
                let token = ticket.map(|ticket| self.tickets[&ticket]);
                (
                    Request::Release { handle, owner: who, token, quiet },
                    Ask::Release { o, owner, ticket, quiet },
                )
            }
            Verb::Forget { back } => {
                let Some(ticket) = ticket(back) else { return Ok(()) };
                let token = self.tickets[&ticket];
                let request = Request::Forget { handle, owner: who, token, quiet: false };
                (request, Ask::Forget { o, ticket })
            }
            Verb::Mark => (Request::MarkConsistent { handle, owner: who }, Ask::Mark { o, owner }),
            Verb::Wait { timeout } => {
                (Request::Wait { handle, owner: who, timeout }, Ask::Wait { o, owner, timeout })
            }
            Verb::Notify { n } => {
                (Request::Notify { handle, owner: who, n }, Ask::Notify { o, owner, n })
            }
            Verb::Set(true) => (Request::EventSet { handle }, Ask::Set(o, true)),
            Verb::Set(false) => (Request::EventClear { handle }, Ask::Set(o, false)),
            Verb::Await { timeout } => (
                Request::EventWait { handle, owner: who, timeout },
                Ask::Await { o, owner, timeout },
            ),
            Verb::Meet { timeout, acting } => (
                Request::BarrierWait { handle, owner: who, timeout, has_action: acting },
                Ask::Meet { o, owner, timeout, acting },
            ),
            Verb::Act { ok } => {
                (Request::BarrierAction { handle, owner: who, ok }, Ask::Act { o, owner, ok })
            }
            Verb::Reset => (Request::BarrierReset { handle }, Ask::Reset(o)),
            Verb::Abort => (Request::BarrierAbort { handle }, Ask::Abort(o)),
            Verb::Query | Verb::Again => (Request::Query { handle }, Ask::Query(o)),
            Verb::Cancel { back, give_back } => {
                let request = place.last_request.saturating_sub(back);
                let cancel = Request::Cancel { request: RequestId(request), give_back };
                (cancel, Ask::Cancel { request, give_back })
            }
            Verb::Goodbye => (Request::Goodbye, Ask::Goodbye),
        };
        let ack = place.received.saturating_sub(unacked);
        let place = self.places.get_mut(&at).expect("checked by the caller");
        place.last_request = id;
        place.asked.insert(id, object);
        self.model.ask(session, id, ack, ask);
        let core = self.sessions[session];
        self.space.handle_request(self.now, core, RequestId(id), ack, request);
        Ok(())
    }

    /// Every output of the core must be one that the model has.
    fn drain(&mut self) -> Checked {
        while let Some(output) = self.space.poll_output() {
            self.outputs += 1;
            format!("{output:?}").hash(&mut self.trace);
            match output {
                Output::Event(event) => self.event(&event)?,
                Output::Send { session, message } => {
                    let session = self.sessions.iter().position(|&id| id == session);
                    let session = session.ok_or("a message for nobody")?;
                    let said = self.said(&message)?;
                    self.model.hear(session, message.seq, &said)?;
                    self.learn(session, &message, &said)?;
                }
            }
        }
        self.model.unheard().map_or(Ok(()), Err)
    }

    fn event(&mut self, event: &Event) -> Checked {
        agree("event's number", event.number, self.last_event + 1)?;
        self.last_event = event.number;
        match &event.kind {
            EventKind::Granted { token, .. } if token.0 == event.number => {
                let label = event.object.as_ref().ok_or("a grant of nothing")?;
                let object = self.oid(label.id)?;
                let before = self.tickets.keys().filter(|t| t.object == object).count() as u64;
                let ticket = Ticket { object, nth: before + 1 };
                self.tokens.insert(*token, ticket);
                self.tickets.insert(ticket, *token);
            }
            EventKind::Created => {
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

    pub(super) fn ticket(&self, token: Token) -> Result<Ticket, String> {
        self.tokens.get(&token).copied().ok_or_else(|| format!("an unknown token: {token:?}"))
    }

    /// The whole state, as far as the getters show it.
    fn compare(&self) -> Checked {
        let (space, model) = (&self.space, &self.model);
        let totals = space.totals();
        let open = model.sessions.iter().filter(|s| !s.over).count();
        let here = model.objects.iter().filter(|o| !o.gone).count();
        agree("sessions", totals.sessions, open)?;
        agree("objects", totals.objects, here)?;
        agree("holds", totals.holds, model.holds.len())?;
        agree("waiters", totals.waiters, model.waits.len())?;
        let due = space.poll_timeout().map(|deadline| {
            let rank = match deadline.reason {
                Reason::Timeout { .. } => 0,
                Reason::Grace { .. } => 1,
                Reason::Linger { .. } => 2,
            };
            (deadline.at.0, rank)
        });
        let wanted = model.deadline().map(|(at, due)| {
            let rank = match due {
                Due::Timeout(..) => 0,
                Due::Grace(..) => 1,
                Due::Linger(..) => 2,
            };
            (at, rank)
        });
        agree("next deadline", due, wanted)?;
        for (o, object) in model.objects.iter().enumerate().filter(|(_, object)| !object.gone) {
            self.compare_object(o)
                .map_err(|why| format!("object {o} ({:?}): {why}", object.kind))?;
        }
        for (s, session) in model.sessions.iter().enumerate() {
            let view = space.session(self.now, self.sessions[s]);
            let view = view.map(|v| (v.connected, v.holds, v.waits, v.references));
            let mut references = session.references.clone();
            references.sort_unstable();
            references.dedup();
            let holds = model.holds.iter().filter(|h| h.who.session == s).count();
            let waits = model.waits.iter().filter(|w| w.who.session == s).count();
            let wanted = (session.grace_until.is_none(), holds, waits, references.len());
            agree("session", view, (!session.over).then_some(wanted))?;
        }
        Ok(())
    }

    fn compare_object(&self, o: Oid) -> Checked {
        let (space, model) = (&self.space, &self.model);
        let detail = space.describe(self.now, self.objects[o].0).ok_or("isn't there")?;
        let object = &detail.object;
        let holders: Result<Vec<_>, _> = detail.holders.iter().map(|h| self.holder(h)).collect();
        agree("holders", holders?, model.holders(o))?;
        let mut waiters = vec![];
        for waiter in &detail.waiters {
            let session = self.sid(waiter.party.session)?;
            let who = Who { session, owner: waiter.party.owner.0 };
            waiters.push((who, waiter.timeout_in.is_some()));
        }
        let wanted: Vec<_> = model.queue(o).map(|w| (w.who, w.deadline.is_some())).collect();
        agree("queue", waiters, wanted)?;
        agree("value", object.value, model.value(o))?;
        agree("broken", object.broken, model.is_broken(o))?;
        agree("keep", object.keep, model.objects[o].keep)?;
        agree("references", object.references as usize, model.references(o))?;
        agree("name", object.label.name.as_deref(), model.objects[o].name.as_deref())?;
        let untold =
            model.objects[o].untold.len() + usize::from(model.objects[o].poisoned.is_some());
        agree("abandonments", object.abandonments.len(), untold)?;
        if let Kind::Sem { class, capacity, loose, .. } = model.objects[o].kind {
            let holders = detail.holders.len() as u32;
            agree("loose", object.loose, loose)?;
            agree("free + held + loose", object.value + holders + object.loose, capacity)?;
            let waits_beside_free = object.value > 0 && object.waiters > 0;
            agree("a waiter beside a free permit", waits_beside_free, false)?;
            agree("one owner", class.is_exclusive() && holders > 1, false)?;
        }
        Ok(())
    }
}

/// Why the core refuses, in the model's words.
pub(super) fn no(player: &Player<'_>, kind: &syncd_core::ErrorKind) -> Result<No, String> {
    use syncd_core::ErrorKind;
    let holders = |holders: &[syncd_core::Holder]| {
        holders.iter().map(|holder| player.holder(holder)).collect::<Result<Vec<_>, _>>()
    };
    Ok(match kind {
        ErrorKind::Invalid { field, .. } => No::Invalid(field),
        ErrorKind::NotFound { .. } => No::NotFound,
        ErrorKind::Exists => No::Exists,
        ErrorKind::KindMismatch { .. } | ErrorKind::SpecMismatch { .. } => No::Mismatch,
        ErrorKind::NotOwner { holder } => {
            No::NotOwner(holder.as_ref().map(|holder| player.holder(holder)).transpose()?)
        }
        ErrorKind::OverReleased { .. } => No::OverReleased,
        ErrorKind::Stale => No::Stale,
        ErrorKind::TimedOut { holders: by } => No::TimedOut(holders(by)?),
        ErrorKind::Cancelled => No::Cancelled,
        ErrorKind::Deadlock { cycle } => {
            let edge = |edge: &syncd_core::Edge| {
                let nanos = |time: std::time::Duration| time.as_nanos() as u64;
                let object = player.oid(edge.object.id)?;
                Ok((player.who(&edge.waiter)?, object, nanos(edge.waited), nanos(edge.held)))
            };
            No::Deadlock(cycle.iter().map(edge).collect::<Result<_, String>>()?)
        }
        ErrorKind::Poisoned { by } => No::Poisoned(player.left(by)?),
        ErrorKind::BrokenBarrier => No::Broken,
        ErrorKind::Quota { field, .. } => No::Quota(field),
        ErrorKind::SessionLost => return Err("a request is refused as of a lost session".into()),
    })
}
