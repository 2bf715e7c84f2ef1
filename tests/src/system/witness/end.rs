//! What must hold when all is quiet, and at the very end.

use super::{Call, Sid, What, Witness, sessions::Standing};
use crate::system::{Checked, plan::Kind};

/// How many messages may be unacknowledged when all is quiet, and how many requests not known to
/// have arrived: the client acknowledges every 1024 replies, and asks for a reply to every
/// release beyond 1024.
const UNCONFIRMED: u64 = 1100;

impl Witness {
    /// Links work, nothing is under way, and no time-out is due. Rules R30, R34, R37.
    pub fn quiet(&mut self) -> Checked {
        self.releases_arrived()?;
        self.losses_told()?;
        self.nobody_waits_in_vain()?;
        self.nobody_waits_for_a_free_permit()?;
        for (sid, seen) in self.sessions.iter().enumerate() {
            if seen.standing != Standing::Living {
                continue;
            }
            let bare: i64 = self.bare_arrived(sid);
            if bare < seen.posted_bare {
                let missing = seen.posted_bare - bare;
                return Err(format!("{missing} bare releases of session {sid} never arrived"));
            }
            let unacknowledged = seen.sent - seen.ack;
            let unconfirmed = seen.written - seen.known.min(seen.written);
            if unacknowledged > UNCONFIRMED || unconfirmed > UNCONFIRMED {
                return Err(format!(
                    "session {sid}: {unacknowledged} unacknowledged, {unconfirmed} unconfirmed"
                ));
            }
        }
        Ok(())
    }

    fn bare_arrived(&self, sid: usize) -> i64 {
        self.objects.iter().filter_map(|o| o.unowned.get(&Sid(sid))).map(|u| u.came).sum()
    }

    fn nobody_waits_for_a_free_permit(&self) -> Checked {
        for ((sid, id), call) in &self.calls {
            let waits = call.arrived.is_some() && call.decided.is_none() && call.given_up.is_none();
            let acquires = matches!(call.what, What::Acquire { .. });
            if !waits || !acquires || self.sessions[sid.0].ended.is_some() {
                continue;
            }
            let object = &self.objects[call.object];
            let out = self.believers(call.object) + self.unowned_out(call.object);
            let free = i64::from(object.kind.permits()) - out;
            // It may wait for itself, but not for nobody.
            if free > 0 {
                let held: Vec<_> = self.beliefs.values().collect();
                return Err(format!(
                    "{sid:?} waits ({id}) while {free} permits are free: {call:?}; held: {held:?}"
                ));
            }
        }
        Ok(())
    }

    /// The object's free permits, when nobody holds any.
    pub fn free(&self, object: usize) -> i64 {
        i64::from(self.objects[object].kind.permits()) - self.unowned_out(object)
    }

    /// Calls of a kind that wait at an object and whose callers are there.
    pub fn waiting(&self, object: usize) -> impl Iterator<Item = &Call> {
        let living = |sid: Sid| self.sessions[sid.0].standing == Standing::Living;
        let waits = move |((sid, _), call): &(&(Sid, u64), &Call)| {
            call.object == object && !call.collected && !call.withdrawn && living(*sid)
        };
        self.calls.iter().filter(waits).map(|(_, call)| call)
    }

    /// Everybody has let go of everything and left.
    pub fn end(&mut self) -> Checked {
        self.abandonments_told()?;
        self.notifies_add_up()?;
        if let Some(belief) = self.beliefs.values().next() {
            return Err(format!("{belief:?} is left"));
        }
        for (at, object) in self.objects.iter().enumerate() {
            if !matches!(object.kind, Kind::Semaphore { .. }) {
                continue;
            }
            for (sid, unowned) in &object.unowned {
                let left = unowned.granted - unowned.returned;
                let in_order = self.sessions[sid.0].in_order && !object.left_by.contains(sid);
                if in_order && left > 0 {
                    return Err(format!("{left} permits of {at} were never returned by {sid:?}"));
                }
            }
        }
        // Rule R6, and what a lost session says of its releases.
        for (sid, seen) in self.sessions.iter().enumerate() {
            let missing = seen.posted_bare - self.bare_arrived(sid);
            if seen.standing == Standing::Lost && missing > seen.undelivered {
                return Err(format!(
                    "{missing} releases of session {sid} never arrived, and it was told of {}",
                    seen.undelivered
                ));
            }
        }
        Ok(())
    }
}
