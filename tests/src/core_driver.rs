//! The core as a [`Driver`]: a `Space` whose time moves by hand, and for each session what a client
//! would know of it.

mod words;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use syncd_core::{
    Acquire, Answer, Body, Cause, Class, Config, Create, FencingToken, Grant, Handle, ObjectId,
    ObjectKey, Output, Owner, Process, RequestId, SEM_VALUE_MAX, SessionId, Space, Spec, Time,
};
use words::{FIRST_PID, granted, lock_of, parties, refusal};

use crate::{
    conformance::Driver,
    script::{Actor, Case, Kind, Line, Needs, Object, Op, Step},
    steps,
};

/// The core, its sessions and what they were told.
#[derive(Debug)]
pub struct CoreDriver {
    space: Space,
    now: Time,
    objects: Vec<Object>,
    keys: HashMap<String, ObjectKey>,
    sessions: BTreeMap<char, Session>,
    outcomes: VecDeque<(Actor, String)>,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    alive: bool,
    connected: bool,
    last_request: u64,
    received: u64,
    handles: HashMap<String, Handle>,
    /// What each request was about.
    asked: HashMap<RequestId, (Actor, Op)>,
    latest: HashMap<u64, RequestId>,
    /// Held permits, latest last; `None`: an unowned one.
    holds: HashMap<(u64, String), Vec<Option<FencingToken>>>,
    lost: HashSet<FencingToken>,
}

impl Default for CoreDriver {
    fn default() -> Self {
        CoreDriver {
            space: Space::new(Config::default(), 1),
            now: Time(0),
            objects: Vec::new(),
            keys: HashMap::new(),
            sessions: BTreeMap::new(),
            outcomes: VecDeque::new(),
        }
    }
}

impl CoreDriver {
    fn session(&mut self, name: char) -> Result<&mut Session, String> {
        if !self.sessions.contains_key(&name) {
            let pid = FIRST_PID + name as u32;
            let process = Process { pid, uid: 1, command: Arc::from(name.to_string()) };
            let id = self.space.handle_open(self.now, process).map_err(|e| e.to_string())?;
            let session = Session {
                id,
                alive: true,
                connected: true,
                last_request: 0,
                received: 0,
                handles: HashMap::new(),
                asked: HashMap::new(),
                latest: HashMap::new(),
                holds: HashMap::new(),
                lost: HashSet::new(),
            };
            self.sessions.insert(name, session);
            self.drain();
        }
        Ok(self.sessions.get_mut(&name).expect("just made"))
    }

    /// The session's handle of a declared object, which it gets or creates by itself.
    fn handle(&mut self, actor: Actor, name: &str) -> Result<Handle, String> {
        if let Some(&handle) = self.session(actor.session)?.handles.get(name) {
            return Ok(handle);
        }
        let object = self.objects.iter().find(|o| o.name == name).expect("declared").clone();
        let op = match self.keys.get(name) {
            Some(_) if object.anonymous => Op::Attach { object: name.into(), by_key: true },
            _ => Op::Create { object: name.into(), exclusive: false },
        };
        self.ask(actor, op)?;
        match self.outcomes.pop_back() {
            Some((_, outcome)) if outcome == "created" || outcome == "attached" => {
                Ok(self.sessions[&actor.session].handles[name])
            }
            outcome => Err(format!("{name}: {outcome:?}")),
        }
    }

    fn spec(&mut self, actor: Actor, kind: &Kind) -> Result<Spec, String> {
        let sem = |class, value, max| Spec::SemLock { class, value, max };
        Ok(match kind {
            Kind::Lock => sem(Class::Lock, 1, 1),
            Kind::RLock => sem(Class::RLock, 1, 1),
            Kind::Semaphore { value, max: 0 } => sem(Class::Semaphore, *value, SEM_VALUE_MAX),
            Kind::Semaphore { value, max } => sem(Class::Semaphore, *value, *max),
            Kind::BoundedSemaphore { value } => sem(Class::BoundedSemaphore, *value, *value),
            Kind::Condition { lock } => Spec::Condition { lock: self.handle(actor, lock)? },
            Kind::Event => Spec::Event,
            Kind::Barrier { parties } => Spec::Barrier { parties: *parties },
        })
    }

    fn ask(&mut self, actor: Actor, op: Op) -> Result<(), String> {
        let request = self.request(actor, &op)?;
        let now = self.now;
        let session = self.session(actor.session)?;
        session.last_request += 1;
        let id = RequestId(session.last_request);
        session.asked.insert(id, (actor, op.clone()));
        if !matches!(op, Op::Cancel { .. }) {
            session.latest.insert(actor.owner, id);
        }
        let (session, ack) = (session.id, 0);
        self.space.handle_request(now, session, id, ack, request);
        self.drain();
        Ok(())
    }

    fn request(&mut self, actor: Actor, op: &Op) -> Result<syncd_core::Request, String> {
        use syncd_core::Request;
        let handle = match op {
            Op::Create { .. } | Op::Attach { .. } | Op::Unlink { .. } => Handle(0),
            _ => op.object().map_or(Ok(Handle(0)), |object| self.handle(actor, object))?,
        };
        let owner = Owner(actor.owner);
        Ok(match op.clone() {
            Op::Acquire { unowned, timeout, unless_deadlock: fail_on_deadlock, .. } => {
                Request::Acquire(Acquire { handle, owner, unowned, timeout, fail_on_deadlock })
            }
            Op::Release { object, bare } => {
                let holds = self.session(actor.session)?.holds.entry((actor.owner, object));
                let hold = if bare { None } else { Some(holds.or_default().pop()) };
                let token = hold.map(|h| h.ok_or("it holds nothing")).transpose()?.flatten();
                Request::Release { handle, owner, token, quiet: false }
            }
            Op::Forget { object } => {
                let holds = self.session(actor.session)?.holds.entry((actor.owner, object));
                let hold = holds.or_default().last_mut().ok_or("it holds nothing")?;
                let token = hold.take().ok_or("its latest permit is unowned")?;
                Request::Forget { handle, owner, token, quiet: false }
            }
            Op::Mark { .. } => Request::MarkConsistent { handle, owner },
            Op::Query { .. } => Request::Query { handle },
            Op::Wait { timeout, .. } => Request::Wait { handle, owner, timeout },
            Op::Notify { n, .. } => Request::Notify { handle, owner, n },
            Op::Set { .. } => Request::EventSet { handle },
            Op::Clear { .. } => Request::EventClear { handle },
            Op::Await { timeout, .. } => Request::EventWait { handle, owner, timeout },
            Op::Meet { timeout, acting: has_action, .. } => {
                Request::BarrierWait { handle, owner, timeout, has_action }
            }
            Op::Act { ok, .. } => Request::BarrierAction { handle, owner, ok },
            Op::Reset { .. } => Request::BarrierReset { handle },
            Op::Abort { .. } => Request::BarrierAbort { handle },
            Op::Create { object, exclusive } => {
                let object = self.objects.iter().find(|o| o.name == object).expect("declared");
                let Object { name, kind, poison, keep, anonymous } = object.clone();
                let spec = self.spec(actor, &kind)?;
                let name = (!anonymous).then(|| Arc::from(name));
                Request::Create(Create { name, spec, keep, poison, exclusive, secret: 7 })
            }
            Op::Attach { object, by_key: true } => Request::AttachKey(self.keys[&object]),
            Op::Attach { object, by_key: false } => Request::AttachName(object.into()),
            Op::Detach { .. } => Request::Detach { handle, quiet: false },
            Op::Unlink { object } => Request::Unlink { name: object.into() },
            Op::Cancel { give_back } => {
                let latest = &self.session(actor.session)?.latest;
                let request = *latest.get(&actor.owner).ok_or("it asked for nothing")?;
                Request::Cancel { request, give_back }
            }
            Op::Leave => Request::Goodbye,
            Op::Valid { .. } | Op::Open { .. } | Op::Disconnect | Op::Resume => {
                unreachable!("no request")
            }
        })
    }

    /// Whether the actor's latest hold is good, as far as its client was told.
    fn valid(&mut self, actor: Actor, object: &str) -> Result<bool, String> {
        let session = self.session(actor.session)?;
        let holds = session.holds.get(&(actor.owner, object.to_owned()));
        let token = holds.and_then(|h| h.last()).ok_or("it never held it")?;
        Ok(session.alive && token.is_none_or(|token| !session.lost.contains(&token)))
    }

    /// Hands every output to whom it concerns.
    fn drain(&mut self) {
        let outputs = steps::outputs(&mut self.space, self.now);
        self.hear(outputs);
    }

    fn hear(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let Output::Send { session: id, message } = output else { continue };
            let Some((_, session)) = self.sessions.iter_mut().find(|(_, s)| s.id == id) else {
                continue;
            };
            if !session.alive || !session.connected || message.seq <= session.received {
                continue;
            }
            session.received = message.seq;
            match message.body {
                Body::HoldLost { token, .. } => drop(session.lost.insert(token)),
                Body::SessionEnd(_) => session.alive = false,
                Body::Reply(request, reply) => {
                    let (actor, op) = session.asked[&request].clone();
                    let outcome = match reply {
                        Ok(answer) => {
                            let (objects, keys) = (&self.objects, &mut self.keys);
                            session.accept(actor, &op, answer, objects, keys)
                        }
                        Err(error) => refusal(&error.kind),
                    };
                    self.outcomes.push_back((actor, outcome));
                }
            }
        }
    }

    fn find(&self, object: &str) -> Option<ObjectId> {
        match self.keys.get(object) {
            Some(key) if self.objects.iter().any(|o| o.name == object && o.anonymous) => {
                self.space.find(&key.to_string())
            }
            _ => self.space.find(object),
        }
    }
}

impl Session {
    /// Keeps what a client keeps of an answer, and writes it down.
    fn accept(
        &mut self,
        actor: Actor,
        op: &Op,
        answer: Answer,
        objects: &[Object],
        keys: &mut HashMap<String, ObjectKey>,
    ) -> String {
        let mut hold = |object: &str, grant: &Grant, unowned: bool| {
            let token = (!unowned).then_some(grant.token);
            self.holds.entry((actor.owner, object.to_owned())).or_default().push(token);
        };
        match answer {
            Answer::Done { count: 0 } if !matches!(op, Op::Notify { .. } | Op::Set { .. }) => {
                "ok".into()
            }
            Answer::Done { count } => format!("ok {count}"),
            Answer::Granted(grant) => {
                if let Op::Acquire { object, unowned, .. } = op {
                    hold(object, &grant, *unowned);
                }
                granted("granted", &grant)
            }
            Answer::Woken { notified, grant } => {
                let lock = lock_of(objects, op.object().expect("of Wait")).clone();
                let holds = vec![Some(grant.token); grant.depth as usize];
                self.holds.insert((actor.owner, lock), holds);
                granted(if notified { "notified" } else { "unnotified" }, &grant)
            }
            Answer::Attached(attachment) => {
                let name = op.object().expect("of Create or Attach").to_owned();
                keys.insert(name.clone(), attachment.key);
                if let Spec::Condition { lock } = attachment.spec {
                    self.handles.insert(lock_of(objects, &name).clone(), lock);
                }
                self.handles.insert(name, attachment.handle);
                if attachment.created { "created" } else { "attached" }.into()
            }
            Answer::BarrierPassed { index, run_action } => {
                format!("passed {index}{}", if run_action { " acting" } else { "" })
            }
            Answer::State(state) => format!(
                "value {} waiters {}{}{}",
                state.value,
                state.waiters,
                if state.broken { " broken" } else { "" },
                parties(" held", state.holders.iter().map(|h| &h.party))
            ),
        }
    }
}

impl Driver for CoreDriver {
    fn ability(&self) -> Needs {
        Needs::Clock
    }

    fn begin(&mut self, case: &Case) {
        self.objects = case.objects.clone();
    }

    fn perform(&mut self, line: &Line) -> Result<(), String> {
        // Moments differ, as they would.
        self.now = Time(self.now.0 + 1);
        match &line.step {
            Step::Do(actor, Op::Valid { object }) => {
                let valid = self.valid(*actor, object)?.to_string();
                self.outcomes.push_back((*actor, valid));
            }
            Step::Do(actor, Op::Open { object }) => {
                self.handle(*actor, object)?;
                self.outcomes.push_back((*actor, "ok".into()));
            }
            Step::Do(actor, Op::Disconnect) => {
                let now = self.now;
                let session = self.session(actor.session)?;
                session.connected = false;
                let id = session.id;
                self.space.handle_disconnect(now, id);
            }
            Step::Do(actor, Op::Resume) => {
                let now = self.now;
                let session = self.session(actor.session)?;
                session.connected = true;
                let (id, received) = (session.id, session.received);
                self.space.handle_resume(now, id, received).map_err(|e| e.to_string())?;
            }
            Step::Do(actor, op) => self.ask(*actor, op.clone())?,
            Step::Dies(name) => {
                let session = self.session(*name)?;
                session.alive = false;
                let id = session.id;
                self.space.handle_lost(self.now, id, Cause::Died);
            }
            Step::Kicked(name) => {
                let id = self.session(*name)?.id;
                self.space.handle_lost(self.now, id, Cause::Kicked);
            }
            Step::Forced(object) => {
                let id = self.find(object).ok_or("no such object")?;
                self.space.handle_force_release(self.now, id);
            }
            Step::Advance(time) => {
                self.now = self.now + *time;
                self.space.handle_timeout(self.now);
            }
            Step::Shows(..) => unreachable!("the runner asks for it"),
        }
        self.drain();
        Ok(())
    }

    fn outcome(&mut self, actor: Actor) -> Option<String> {
        let at = self.outcomes.iter().position(|(whose, _)| *whose == actor)?;
        self.outcomes.remove(at).map(|(_, outcome)| outcome)
    }

    fn settle(&mut self, waiting: &BTreeMap<char, usize>) -> Result<(), String> {
        if let Some((actor, outcome)) = self.outcomes.pop_front() {
            return Err(format!("besides, {actor} {outcome}"));
        }
        for (&name, session) in &self.sessions {
            let waits = self.space.session(self.now, session.id).map_or(0, |view| view.waits);
            let wanted = waiting.get(&name).copied().unwrap_or(0);
            if waits != wanted {
                return Err(format!("{name} waits with {waits} requests, not {wanted}"));
            }
        }
        Ok(())
    }

    fn shows(&mut self, object: &str, _wanted: &str) -> String {
        let detail = self.find(object).and_then(|id| self.space.describe(self.now, id));
        let Some(detail) = detail else { return "nothing".into() };
        let (held, waits) = (
            parties(" held", detail.holders.iter().map(|h| &h.party)),
            parties(" waits", detail.waiters.iter().map(|w| &w.party)),
        );
        let object = &detail.object;
        let is_sem = matches!(object.kind, "Lock" | "RLock" | "Semaphore" | "BoundedSemaphore");
        let (what, broken) = if is_sem { ("free", " poisoned") } else { ("value", " broken") };
        let unowned =
            if object.unowned > 0 { format!(" unowned {}", object.unowned) } else { "".into() };
        let broken = if object.broken { broken } else { "" };
        format!("{what} {}{unowned}{held}{waits}{broken}", object.value)
    }
}
