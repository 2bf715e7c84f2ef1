//! The core's whole state beside the model's, as far as the getters show it.

use std::fmt::Debug;

use syncd_core::Reason;

use super::play::Player;
use crate::model::{Due, Kind, Oid, Who};

pub(super) type Checked = Result<(), String>;

pub(super) fn agree<T: PartialEq + Debug>(what: &str, core: T, model: T) -> Checked {
    if core == model { Ok(()) } else { Err(format!("{what}: core {core:?}, model {model:?}")) }
}

impl Player<'_> {
    /// The whole state, as far as the getters show it.
    pub(super) fn compare(&self) -> Checked {
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
                Reason::Work => unreachable!("the work is done by now"),
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
        agree("abandonments", object.abandonments.len(), untold.min(16))?;
        if let Kind::Sem { class, capacity, unowned, .. } = model.objects[o].kind {
            let holders = detail.holders.len() as u32;
            agree("unowned", object.unowned, unowned)?;
            agree("free + held + unowned", object.value + holders + object.unowned, capacity)?;
            let waits_beside_free = object.value > 0 && object.waiters > 0;
            agree("a waiter beside a free permit", waits_beside_free, false)?;
            agree("one owner", class.is_exclusive() && holders > 1, false)?;
        }
        Ok(())
    }
}
