//! A request of a life, as the core's and as the model's.

use std::sync::Arc;

use syncd_core::{Acquire, Create, Handle, Owner, Request, RequestId, Spec};

use super::{compare::Checked, generate::Verb, play::Player};
use crate::model::{Ask, Make, Oid, Ticket};

impl Player<'_> {
    /// Gives the session what it takes to ask so, or finds one that can.
    pub(super) fn aptly(
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
        self.drain()?;
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

    pub(super) fn ask(
        &mut self,
        at: usize,
        owner: u64,
        object: usize,
        unacked: u64,
        verb: &Verb,
    ) -> Checked {
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
            Verb::Acquire { unowned, timeout, careful } => (
                Request::Acquire(Acquire {
                    handle,
                    owner: who,
                    unowned,
                    timeout,
                    fail_on_deadlock: careful,
                }),
                Ask::Acquire { o, owner, unowned, timeout, careful },
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
}
