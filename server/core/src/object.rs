//! Objects: how they are made, found, referenced and removed. What a kind does lies in
//! `semlock`, `condition`, `flag` and `barrier`.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Abandonment, Answer, Attachment, Class, Create, Error, ErrorKind, Handle, Label, ObjectId,
    ObjectKey, RecordKind, SEM_VALUE_MAX, SessionId, Spec, Time, Token,
    deadline::Reason,
    list::{Ix, List},
    message::Cause,
    space::{Outcome, Space, refuse},
};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;

/// One object. A million idle ones are normal: what only busy ones need is boxed.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub id: ObjectId,
    pub name: Option<Arc<str>>,
    secret: u64,
    /// By sessions, counted as often as they attached, and by conditions.
    pub references: u32,
    /// Set while the object lingers without references.
    lingers_until: Option<Time>,
    pub keep: bool,
    pub poison: bool,
    /// It was made without a name.
    anonymous: bool,
    pub waiters: List,
    pub trouble: Option<Box<Trouble>>,
    pub kind: Kind,
}

/// What owners left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    /// Holds that were abandoned, and of which no owner was told yet.
    pub untold: VecDeque<Arc<Abandonment>>,
    /// A poison object's present owner was told of this, and has not marked it.
    pub inconsistent: Option<Arc<Abandonment>>,
    /// That owner let go: refused to all.
    pub poisoned: Option<Arc<Abandonment>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    SemLock(SemLock),
    Condition { lock: Ix },
    Event { set: bool },
    Barrier(Box<Barrier>),
}

/// Invariant: `value + holds.len() + loose` is the capacity, which nothing changes but
/// a release while no permit is out.
#[derive(Clone, Debug)]
pub(crate) struct SemLock {
    pub class: Class,
    pub initial: u32,
    pub max: u32,
    /// Free permits. Above 0 only while nobody waits.
    pub value: u32,
    /// Permits that are out and nobody's.
    pub loose: u32,
    /// Permits that are out and owned, oldest first.
    pub holds: List,
}

#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    pub parties: u32,
    pub broken: bool,
    /// The last party of a full barrier runs its action; the others still wait.
    pub action: Option<Action>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Action {
    pub session: SessionId,
    pub owner: crate::Owner,
    /// Parties that began to wait before this event belong to the full barrier, later
    /// ones to the next.
    pub number: u64,
}

impl Object {
    pub fn label(&self) -> Label {
        Label { id: self.id, name: self.name.clone() }
    }

    pub fn key(&self, ix: Ix) -> ObjectKey {
        ObjectKey { index: ix, id: self.id.0, secret: self.secret }
    }

    pub fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    pub fn poisoned(&self) -> Option<&Arc<Abandonment>> {
        self.trouble.as_ref()?.poisoned.as_ref()
    }

    /// Forgets trouble that is over, so that a healed object is as small as a fresh one.
    pub fn tidy_trouble(&mut self) {
        if let Some(trouble) = &self.trouble
            && trouble.untold.is_empty()
            && trouble.inconsistent.is_none()
            && trouble.poisoned.is_none()
        {
            self.trouble = None;
        }
    }

    pub fn kind_name(&self) -> &'static str {
        match &self.kind {
            Kind::SemLock(sem) => sem.class.as_str(),
            Kind::Condition { .. } => "Condition",
            Kind::Event { .. } => "Event",
            Kind::Barrier(_) => "Barrier",
        }
    }
}

impl Space {
    /// The object behind a session's handle.
    pub(crate) fn resolve(&self, session: SessionId, handle: Handle) -> Result<Ix, Box<Error>> {
        self.sessions
            .get(&session)
            .and_then(|s| s.references.get(handle.0 as usize))
            .map(|r| r.object)
            .ok_or_else(|| refuse(None, ErrorKind::NotFound { what: "handle" }))
    }

    pub(crate) fn label(&self, ix: Ix) -> Label {
        self.objects[ix as usize].label()
    }

    /// A refusal that names the object.
    pub(crate) fn refuse(&self, ix: Ix, kind: ErrorKind) -> Box<Error> {
        refuse(Some(self.label(ix)), kind)
    }

    pub(crate) fn mismatch(&self, ix: Ix, wanted: &'static str) -> Box<Error> {
        let found = self.objects[ix as usize].kind_name();
        self.refuse(ix, ErrorKind::KindMismatch { wanted, found })
    }

    pub(crate) fn create(&mut self, now: Time, session: SessionId, create: Create) -> Outcome {
        if let Some(name) = &create.name {
            check_name(name)?;
        }
        let kind = self.kind_of(session, create.spec)?;
        if create.poison && !matches!(&kind, Kind::SemLock(sem) if sem.class.is_exclusive()) {
            let why = "only a Lock or an RLock can be poisoned";
            return Err(refuse(None, ErrorKind::Invalid { field: "poison", why }));
        }
        let present = create.name.as_ref().and_then(|name| self.names.get(name).copied());
        if let Some(ix) = present {
            if create.exclusive {
                return Err(self.refuse(ix, ErrorKind::Exists));
            }
            self.check_same(ix, &kind)?;
            self.objects[ix as usize].keep |= create.keep;
            return self.attach(session, ix, false);
        }
        let limit = self.config.limits.objects;
        if self.objects.len() >= limit {
            let kind = ErrorKind::Quota { field: "objects", limit: limit as u64 };
            return Err(refuse(None, kind));
        }
        if let Kind::Condition { lock } = kind {
            self.objects[lock as usize].references += 1;
        }
        let id = ObjectId(self.next_event);
        let ix = self.objects.insert(Object {
            id,
            name: create.name.clone(),
            secret: create.secret,
            references: 0,
            lingers_until: None,
            keep: create.keep,
            poison: create.poison,
            anonymous: create.name.is_none(),
            waiters: List::default(),
            trouble: None,
            kind,
        }) as Ix;
        if let Some(name) = create.name {
            self.names.insert(name, ix);
        }
        let creator = self.party(session, crate::Owner(0));
        self.emit(now, RecordKind::Created, Some(ix), creator);
        self.attach(session, ix, true)
    }

    fn kind_of(&self, session: SessionId, spec: Spec) -> Result<Kind, Box<Error>> {
        let invalid = |field, why| Err(refuse(None, ErrorKind::Invalid { field, why }));
        match spec {
            Spec::SemLock { class, value, max } => {
                let (value, max) = if class.is_exclusive() { (1, 1) } else { (value, max) };
                if value > SEM_VALUE_MAX {
                    return invalid("value", "at most 2147483647");
                }
                if max > SEM_VALUE_MAX {
                    return invalid("max", "at most 2147483647");
                }
                let holds = List::default();
                Ok(Kind::SemLock(SemLock { class, initial: value, max, value, loose: 0, holds }))
            }
            Spec::Condition { lock } => {
                let lock = self.resolve(session, lock)?;
                match &self.objects[lock as usize].kind {
                    Kind::SemLock(sem) if sem.class.is_exclusive() => Ok(Kind::Condition { lock }),
                    _ => Err(self.mismatch(lock, "Lock or RLock")),
                }
            }
            Spec::Event => Ok(Kind::Event { set: false }),
            Spec::Barrier { parties: 0 } => invalid("parties", "at least 1"),
            Spec::Barrier { parties } => {
                Ok(Kind::Barrier(Box::new(Barrier { parties, broken: false, action: None })))
            }
        }
    }

    /// A present object must be what its next creator wants.
    fn check_same(&self, ix: Ix, wanted: &Kind) -> Result<(), Box<Error>> {
        let same = match (&self.objects[ix as usize].kind, wanted) {
            (Kind::SemLock(a), Kind::SemLock(b)) => {
                if a.class != b.class {
                    return Err(self.mismatch(ix, b.class.as_str()));
                }
                (a.initial, a.max) == (b.initial, b.max)
            }
            (Kind::Condition { lock: a }, Kind::Condition { lock: b }) => a == b,
            (Kind::Event { .. }, Kind::Event { .. }) => true,
            (Kind::Barrier(a), Kind::Barrier(b)) => a.parties == b.parties,
            (_, Kind::SemLock(sem)) => return Err(self.mismatch(ix, sem.class.as_str())),
            (_, Kind::Condition { .. }) => return Err(self.mismatch(ix, "Condition")),
            (_, Kind::Event { .. }) => return Err(self.mismatch(ix, "Event")),
            (_, Kind::Barrier(_)) => return Err(self.mismatch(ix, "Barrier")),
        };
        if same {
            return Ok(());
        }
        let found = self.spec(ix, Handle(0));
        Err(self.refuse(ix, ErrorKind::SpecMismatch { found }))
    }

    pub(crate) fn spec(&self, ix: Ix, lock: Handle) -> Spec {
        match &self.objects[ix as usize].kind {
            Kind::SemLock(sem) => {
                Spec::SemLock { class: sem.class, value: sem.initial, max: sem.max }
            }
            Kind::Condition { .. } => Spec::Condition { lock },
            Kind::Event { .. } => Spec::Event,
            Kind::Barrier(barrier) => Spec::Barrier { parties: barrier.parties },
        }
    }

    pub(crate) fn attach_name(&mut self, session: SessionId, name: &str) -> Outcome {
        check_name(name)?;
        match self.names.get(name) {
            Some(&ix) => self.attach(session, ix, false),
            None => Err(refuse(None, ErrorKind::NotFound { what: "name" })),
        }
    }

    pub(crate) fn attach_key(&mut self, session: SessionId, key: ObjectKey) -> Outcome {
        match self.by_key(key) {
            Some(ix) => self.attach(session, ix, false),
            None => Err(refuse(None, ErrorKind::NotFound { what: "key" })),
        }
    }

    pub(crate) fn by_key(&self, key: ObjectKey) -> Option<Ix> {
        let object = self.objects.get(key.index as usize)?;
        (object.key(key.index) == key).then_some(key.index)
    }

    fn attach(&mut self, session: SessionId, ix: Ix, created: bool) -> Outcome {
        let handle = self.reference(session, ix);
        let lock = match self.objects[ix as usize].kind {
            Kind::Condition { lock } => self.reference(session, lock),
            _ => Handle(0),
        };
        let object = &self.objects[ix as usize];
        Ok(Some(Answer::Attached(Box::new(Attachment {
            handle,
            key: object.key(ix),
            created,
            name: object.name.clone(),
            spec: self.spec(ix, lock),
        }))))
    }

    fn reference(&mut self, session: SessionId, ix: Ix) -> Handle {
        let object = &mut self.objects[ix as usize];
        object.references += 1;
        if let Some(at) = object.lingers_until.take() {
            self.deadlines.remove(at, Reason::Linger { slot: ix });
        }
        let session = self.sessions.get_mut(&session).expect("the caller's session is open");
        session.reference(ix)
    }

    pub(crate) fn detach(&mut self, now: Time, session: SessionId, handle: Handle) -> Outcome {
        let ix = self.resolve(session, handle)?;
        let s = self.sessions.get_mut(&session).expect("resolved through it");
        if s.dereference(handle) {
            self.let_go(now, session, ix, Cause::Left);
        }
        self.dereference(now, ix, 1);
        Ok(Some(Answer::Done { count: 0 }))
    }

    /// A session's last reference to an object goes: it neither waits there nor holds it
    /// any longer.
    fn let_go(&mut self, now: Time, session: SessionId, ix: Ix, cause: Cause) {
        let s = &self.sessions[&session];
        let waits: Vec<Ix> =
            s.waiters.values().copied().filter(|&waiter| self.concerns(waiter, ix)).collect();
        let range = (ix, Token(0))..=(ix, Token(u64::MAX));
        let holds: Vec<Ix> = s.holds.range(range).map(|(_, &hold)| hold).collect();
        for waiter in waits {
            self.give_up(now, waiter);
        }
        self.leave_barrier(now, session, ix);
        for hold in holds {
            self.abandon(now, hold, cause);
        }
    }

    /// Takes references from an object, which may be its end.
    pub(crate) fn dereference(&mut self, now: Time, ix: Ix, count: u32) {
        let object = &mut self.objects[ix as usize];
        object.references -= count;
        if object.references == 0 {
            self.settle(now, ix);
        }
    }

    /// Decides what becomes of an object without references.
    fn settle(&mut self, now: Time, ix: Ix) {
        let object = &mut self.objects[ix as usize];
        if object.keep {
            return;
        }
        let news = object.trouble.is_some();
        if news && object.poison && object.name.is_some() {
            return;
        }
        if !news && !object.anonymous {
            return self.remove(now, ix);
        }
        if object.lingers_until.is_none() {
            let at = now + self.config.linger;
            object.lingers_until = Some(at);
            self.deadlines.insert(at, Reason::Linger { slot: ix });
        }
    }

    pub(crate) fn remove(&mut self, now: Time, ix: Ix) {
        if let Some(at) = self.objects[ix as usize].lingers_until {
            self.deadlines.remove(at, Reason::Linger { slot: ix });
        }
        self.emit(now, RecordKind::Removed, Some(ix), None);
        let object = self.objects.remove(ix as usize);
        if let Some(name) = object.name {
            self.names.remove(&name);
        }
        if let Kind::Condition { lock } = object.kind {
            self.dereference(now, lock, 1);
        }
    }

    pub(crate) fn unlink(&mut self, now: Time, session: SessionId, name: &str) -> Outcome {
        check_name(name)?;
        let Some(ix) = self.names.remove(name) else {
            return Err(refuse(None, ErrorKind::NotFound { what: "name" }));
        };
        let who = self.party(session, crate::Owner(0));
        self.emit(now, RecordKind::Unlinked, Some(ix), who);
        let object = &mut self.objects[ix as usize];
        object.name = None;
        object.keep = false;
        if object.references == 0 {
            self.remove(now, ix);
        }
        Ok(Some(Answer::Done { count: 0 }))
    }
}

fn check_name(name: &str) -> Result<(), Box<Error>> {
    let why = match name {
        "" => "must not be empty",
        _ if name.len() > MAX_NAME => "at most 255 bytes",
        _ if name.contains('\0') => "must not contain a NUL byte",
        _ => return Ok(()),
    };
    Err(refuse(None, ErrorKind::Invalid { field: "name", why }))
}
