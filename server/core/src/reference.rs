//! References: attaching to an object, detaching from it, and the end of an object without
//! references.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Abandonment, Answer, Attachment, Cause, Error, ErrorKind, Handle, ObjectKey, RecordKind,
    RequestId, SessionId, Time,
    arena::Idx,
    condition::Condition,
    deadline::Reason,
    object::{Kind, Object, check_name},
    space::{Outcome, Space, refuse},
    work::{Progress, Task},
};

impl Space {
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

    pub(crate) fn attach(&mut self, session: SessionId, ix: Idx<Object>, created: bool) -> Outcome {
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

    /// Refuses if the session may not attach to `more` objects.
    pub(crate) fn check_references(
        &self,
        session: SessionId,
        more: usize,
    ) -> Result<(), Box<Error>> {
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

    pub(crate) fn add_reference(&mut self, ix: Idx<Object>) -> Result<(), Box<Error>> {
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

    /// Continues a session's last Detach: ends its waits at the object and its holds of it.
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

    /// Removes references to an object, and settles it after the last.
    pub(crate) fn dereference(&mut self, now: Time, ix: Idx<Object>, count: u32) {
        let object = &mut self.objects[ix];
        object.references -= count;
        if object.references == 0 {
            self.settle(now, ix);
        }
    }

    /// Keeps, removes or lets linger an object without references.
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
        self.count_of(object.creator, |share| share.objects -= 1);
        self.ids.remove(&id);
        if let Some(name) = object.name {
            self.names.remove(&name);
        }
        if let Some(trouble) = object.trouble {
            self.begin(now, Task::Discard { untold: trouble.untold });
        }
        if let Kind::Condition(Condition { lock }) = object.kind {
            self.dereference(now, lock, 1);
        }
    }

    pub(crate) fn go_on_discarding(&mut self, untold: &mut VecDeque<Arc<Abandonment>>) -> Progress {
        while !untold.is_empty() {
            if !self.spend() {
                return Progress::More;
            }
            self.untold -= 1;
            if let Some(left) = untold.pop_front() {
                self.count_of(left.by.process.uid, |share| share.untold -= 1);
            }
        }
        Progress::Over
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
