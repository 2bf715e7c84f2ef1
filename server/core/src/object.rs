//! Objects: their common state, creation and lookup. The kinds are in `semlock`, `condition`,
//! `event` and `barrier`.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Create, Error, ErrorKind, Handle, Label, ObjectId, ObjectKey, RecordKind,
    SEM_VALUE_MAX, SessionId, Spec, Time,
    arena::{Idx, List},
    barrier::Barrier,
    condition::Condition,
    event::Event,
    semlock::SemLock,
    space::{Outcome, Space, refuse},
    waiter::Waiter,
};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;

/// One object. Kept small, since a million idle ones are normal: rare parts are boxed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Object {
    pub id: ObjectId,
    pub name: Option<Arc<str>>,
    secret: u64,
    /// The user id of its creator.
    pub creator: u32,
    /// The number of references: attaches by sessions, and conditions on this lock.
    pub references: u32,
    /// Set while the object lingers without references.
    pub lingers_until: Option<Time>,
    pub keep: bool,
    pub poison: bool,
    /// Created without a name.
    pub anonymous: bool,
    /// Whether serving its queue is on the agenda.
    pub served_later: bool,
    pub waiters: List<Waiter>,
    pub trouble: Option<Box<Trouble>>,
    pub kind: Kind,
}

/// Abandonments and poison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// Abandonments that no owner was told of yet.
    pub untold: VecDeque<Arc<Abandonment>>,
    /// The abandonment that the current owner of an object with `poison` was told of, until it
    /// marks the object consistent.
    pub inconsistent: Option<Arc<Abandonment>>,
    /// The abandonment by which the object is poisoned: acquires are refused.
    pub poisoned: Option<Arc<Abandonment>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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

    /// Frees empty trouble, so that a healed object is as small as a new one.
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

    pub(crate) fn create(&mut self, now: Time, session: SessionId, create: &Create) -> Outcome {
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
        let creator = self.sessions[&session].process.uid;
        let all = (self.config.limits.objects, self.objects.len());
        let checked = self.check_share(creator, "objects", all, |share| share.objects);
        checked.map_err(|kind| refuse(None, kind))?;
        self.check_references(session, 1)?;
        if let Kind::Condition(Condition { lock }) = kind {
            self.add_reference(lock)?;
        }
        let id = ObjectId(self.next_number);
        let ix = self.objects.insert(Object {
            id,
            name: create.name.clone(),
            secret: create.secret,
            creator,
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
        self.count_of(creator, |share| share.objects += 1);
        self.ids.insert(id, ix);
        if let Some(name) = create.name.clone() {
            self.names.insert(name, ix);
        }
        let who = self.party(session, crate::Owner(0));
        self.emit(now, RecordKind::Created, Some(ix), who);
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

    /// Refuses unless an existing object has the kind and numbers of a Create.
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
}

pub(crate) fn check_name(name: &str) -> Result<(), Box<Error>> {
    let why = match name {
        "" => "must not be empty",
        _ if name.len() > MAX_NAME => "at most 255 bytes",
        _ if name.contains('\0') => "must not contain a NUL byte",
        _ => return Ok(()),
    };
    Err(refuse(None, ErrorKind::Invalid { field: "name", why }))
}
