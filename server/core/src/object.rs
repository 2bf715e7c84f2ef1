//! Objects: how they are made, found, referenced and removed. What a kind does lies in
//! `semlock`, `condition`, `event` and `barrier`.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Abandonment, Answer, Attachment, Cause, Create, Error, ErrorKind, Handle, Label, ObjectId,
    ObjectKey, RecordKind, RequestId, SEM_VALUE_MAX, SessionId, Spec, Time,
    arena::{Idx, List},
    barrier::Barrier,
    condition::Condition,
    deadline::Reason,
    event::Event,
    semlock::SemLock,
    space::{Outcome, Space, refuse},
    waiter::Waiter,
    work::{Progress, Task},
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
    pub lingers_until: Option<Time>,
    pub keep: bool,
    pub poison: bool,
    /// It was made without a name.
    anonymous: bool,
    /// Its queue is on the agenda.
    pub served_later: bool,
    pub waiters: List<Waiter>,
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
    Condition(Condition),
    Event(Event),
    Barrier(Box<Barrier>),
}

impl Object {
    pub fn label(&self) -> Label {
        Label { id: self.id, name: self.name.clone() }
    }

    pub fn key(&self, ix: Idx<Object>) -> ObjectKey {
        ObjectKey { index: ix.number(), id: self.id.0, secret: self.secret }
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
            Kind::Condition(_) => "Condition",
            Kind::Event(_) => "Event",
            Kind::Barrier(_) => "Barrier",
        }
    }
}

impl Space {
    /// The object behind a session's handle.
    pub(crate) fn resolve(
        &self,
        session: SessionId,
        handle: Handle,
    ) -> Result<Idx<Object>, Box<Error>> {
        self.sessions
            .get(&session)
            .and_then(|s| s.references.get(Idx::new(handle.0)))
            .map(|reference| reference.object)
            .ok_or_else(|| refuse(None, ErrorKind::NotFound { what: "handle" }))
    }

    pub(crate) fn label(&self, ix: Idx<Object>) -> Label {
        self.objects[ix].label()
    }

    /// A refusal that names the object.
    pub(crate) fn refuse(&self, ix: Idx<Object>, kind: ErrorKind) -> Box<Error> {
        refuse(Some(self.label(ix)), kind)
    }

    pub(crate) fn mismatch(&self, ix: Idx<Object>, wanted: &'static str) -> Box<Error> {
        let found = self.objects[ix].kind_name();
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
            self.check_same(ix, &kind, create.poison)?;
            let attached = self.attach(session, ix, false)?;
            self.objects[ix].keep |= create.keep;
            return Ok(attached);
        }
        let limit = self.config.limits.objects;
        if self.objects.len() >= limit {
            let kind = ErrorKind::Quota { field: "objects", limit: limit as u64 };
            return Err(refuse(None, kind));
        }
        self.check_references(session, 1)?;
        if let Kind::Condition(Condition { lock }) = kind {
            self.add_reference(lock)?;
        }
        let id = ObjectId(self.next_number);
        let ix = self.objects.insert(Object {
            id,
            name: create.name.clone(),
            secret: create.secret,
            references: 0,
            lingers_until: None,
            keep: create.keep,
            poison: create.poison,
            anonymous: create.name.is_none(),
            served_later: false,
            waiters: List::default(),
            trouble: None,
            kind,
        });
        self.ids.insert(id, ix);
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
                Ok(Kind::SemLock(SemLock::new(class, value, max)))
            }
            Spec::Condition { lock } => {
                let lock = self.resolve(session, lock)?;
                if !self.is_exclusive(lock) {
                    return Err(self.mismatch(lock, "Lock or RLock"));
                }
                Ok(Kind::Condition(Condition { lock }))
            }
            Spec::Event => Ok(Kind::Event(Event::default())),
            Spec::Barrier { parties: 0 } => invalid("parties", "at least 1"),
            Spec::Barrier { parties } => Ok(Kind::Barrier(Box::new(Barrier::new(parties)))),
        }
    }

    /// A present object must be what its next creator wants.
    fn check_same(&self, ix: Idx<Object>, wanted: &Kind, poison: bool) -> Result<(), Box<Error>> {
        let same = match (&self.objects[ix].kind, wanted) {
            (Kind::SemLock(a), Kind::SemLock(b)) => {
                if a.class != b.class {
                    return Err(self.mismatch(ix, b.class.as_str()));
                }
                (a.initial, a.max) == (b.initial, b.max) && self.objects[ix].poison == poison
            }
            (Kind::Condition(a), Kind::Condition(b)) => a.lock == b.lock,
            (Kind::Event(_), Kind::Event(_)) => true,
            (Kind::Barrier(a), Kind::Barrier(b)) => a.parties == b.parties,
            (_, Kind::SemLock(sem)) => return Err(self.mismatch(ix, sem.class.as_str())),
            (_, Kind::Condition(_)) => return Err(self.mismatch(ix, "Condition")),
            (_, Kind::Event(_)) => return Err(self.mismatch(ix, "Event")),
            (_, Kind::Barrier(_)) => return Err(self.mismatch(ix, "Barrier")),
        };
        if same {
            return Ok(());
        }
        let (found, poison) = (self.spec(ix, Handle(0)), self.objects[ix].poison);
        Err(self.refuse(ix, ErrorKind::SpecMismatch { found, poison }))
    }

    pub(crate) fn spec(&self, ix: Idx<Object>, lock: Handle) -> Spec {
        match &self.objects[ix].kind {
            Kind::SemLock(sem) => {
                Spec::SemLock { class: sem.class, value: sem.initial, max: sem.max }
            }
            Kind::Condition(_) => Spec::Condition { lock },
            Kind::Event(_) => Spec::Event,
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

    pub(crate) fn by_key(&self, key: ObjectKey) -> Option<Idx<Object>> {
        let ix = Idx::new(key.index);
        (self.objects.get(ix)?.key(ix) == key).then_some(ix)
    }

    fn attach(&mut self, session: SessionId, ix: Idx<Object>, created: bool) -> Outcome {
        let lock = match self.objects[ix].kind {
            Kind::Condition(Condition { lock }) => Some(lock),
            _ => None,
        };
        let s = &self.sessions[&session];
        let new = [Some(ix), lock].into_iter().flatten().filter(|&ix| s.handle_of(ix).is_none());
        self.check_references(session, new.count())?;
        let handle = self.reference(session, ix)?;
        let lock = match lock {
            Some(lock) => self.reference(session, lock)?,
            None => Handle(0),
        };
        let object = &self.objects[ix];
        Ok(Some(Answer::Attached(Box::new(Attachment {
            handle,
            key: object.key(ix),
            created,
            name: object.name.clone(),
            spec: self.spec(ix, lock),
        }))))
    }

    /// Refuses if the session may not be attached to so many objects more.
    fn check_references(&self, session: SessionId, more: usize) -> Result<(), Box<Error>> {
        let limit = self.config.limits.references_per_session;
        if self.sessions[&session].references.len() + more > limit {
            let field = "references_per_session";
            return Err(refuse(None, ErrorKind::Quota { field, limit: limit as u64 }));
        }
        Ok(())
    }

    fn reference(&mut self, session: SessionId, ix: Idx<Object>) -> Result<Handle, Box<Error>> {
        self.add_reference(ix)?;
        let object = &mut self.objects[ix];
        if let Some(at) = object.lingers_until.take() {
            self.deadlines.remove(at, Reason::Linger { object: object.id });
        }
        let session = self.sessions.get_mut(&session).expect("the caller's session is open");
        Ok(session.reference(ix))
    }

    fn add_reference(&mut self, ix: Idx<Object>) -> Result<(), Box<Error>> {
        let Some(references) = self.objects[ix].references.checked_add(1) else {
            let (field, limit) = ("references", u64::from(u32::MAX));
            return Err(self.refuse(ix, ErrorKind::Quota { field, limit }));
        };
        self.objects[ix].references = references;
        Ok(())
    }

    pub(crate) fn detach(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        handle: Handle,
        quiet: bool,
    ) -> Outcome {
        let object = self.resolve(session, handle)?;
        let s = self.sessions.get_mut(&session).expect("resolved through it");
        if !s.dereference(handle) {
            self.dereference(now, object, 1);
            return Ok(Some(Answer::Done { count: 0 }));
        }
        self.begin(now, Task::LetGo { session, request, quiet, object });
        Ok(None)
    }

    /// A session's last reference to an object goes: it neither waits there nor holds it
    /// any longer.
    pub(crate) fn go_on_letting_go(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        quiet: bool,
        ix: Idx<Object>,
    ) -> Progress {
        while self.spend() {
            let s = &self.sessions[&session];
            if let Some(waiter) = s.first_wait_at(ix) {
                self.give_up(now, waiter);
            } else if let Some(hold) = s.first_hold_of(ix) {
                self.abandon(now, hold, Cause::Left);
            } else {
                self.leave_barrier(now, session, ix);
                self.dereference(now, ix, 1);
                if !quiet {
                    self.reply(session, request, Ok(Answer::Done { count: 0 }));
                }
                return Progress::Over;
            }
        }
        Progress::More
    }

    /// Takes references from an object, which may be its end.
    pub(crate) fn dereference(&mut self, now: Time, ix: Idx<Object>, count: u32) {
        let object = &mut self.objects[ix];
        object.references -= count;
        if object.references == 0 {
            self.settle(now, ix);
        }
    }

    /// Decides what becomes of an object without references.
    fn settle(&mut self, now: Time, ix: Idx<Object>) {
        let object = &mut self.objects[ix];
        if object.keep {
            return;
        }
        if object.name.is_none() && !object.anonymous {
            return self.remove(now, ix);
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
            self.deadlines.insert(at, Reason::Linger { object: object.id });
        }
    }

    pub(crate) fn remove(&mut self, now: Time, ix: Idx<Object>) {
        let Object { id, lingers_until, .. } = self.objects[ix];
        if let Some(at) = lingers_until {
            self.deadlines.remove(at, Reason::Linger { object: id });
        }
        self.emit(now, RecordKind::Removed, Some(ix), None);
        let object = self.objects.remove(ix);
        self.ids.remove(&id);
        if let Some(name) = object.name {
            self.names.remove(&name);
        }
        if let Kind::Condition(Condition { lock }) = object.kind {
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
        let object = &mut self.objects[ix];
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
