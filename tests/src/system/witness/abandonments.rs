//! What owners lose and leave behind, from outside: who loses a hold is told; each hold that
//! ended without a release is told of once, to the next owner, and truly. Rules R26, R36, R38.

use syncd_core::{Cause, Record, RecordKind};
use syncd_proto::v1::{self, Abandonment};

use super::{
    Call, Sid, Witness,
    holds::{End, FencingToken},
    sessions::Standing,
};
use crate::system::{Checked, plan::Kind};

impl Witness {
    /// An owner is told who left the object before. Rule R38.
    pub(super) fn abandonment_told(&mut self, call: &Call, left: &Abandonment) -> Checked {
        self.count.abandoned += 1;
        let lock = self.lock_of(call.object);
        let Some(token) = self.tokens.get_mut(&left.token) else {
            return Err(format!("{left:?} was never granted"));
        };
        token.abandonment_told += 1;
        let token = &*token;
        let seen = &self.sessions[token.sid.0];
        let fits = match left.cause() {
            v1::Cause::Died => seen.dead,
            v1::Cause::Kicked => seen.kicked,
            v1::Cause::Misbehaved => seen.dropped,
            v1::Cause::Forced => token.forced,
            // The daemon gave up on it, which the client must have done before.
            v1::Cause::Disconnected => seen.standing != Standing::Living,
            v1::Cause::Left => {
                seen.standing == Standing::Closed
                    || token.end == Some(End::Gone)
                    || token.call.is_some_and(|id| self.calls[&(token.sid, id)].detached)
            }
            v1::Cause::Unspecified => false,
        };
        if !fits || token.object != lock || !token.owned || token.abandonment_told > 1 {
            return Err(format!("{left:?} is told to {call:?}, of {token:?}"));
        }
        Ok(())
    }

    /// Each hold that ended without a release was told of, once. Rules R36, R38.
    pub(super) fn abandonments_told(&self) -> Checked {
        for (number, token) in &self.tokens {
            let forced = token.told && token.forced;
            let taken = forced && matches!(token.end, None | Some(End::Taken));
            let gone = token.end == Some(End::Gone) && token.posted == 0 && !token.forgetting;
            let left = (gone || taken) && !token.by_another;
            // It was told to somebody who left before hearing it.
            let living = |sid: Sid| self.sessions[sid.0].standing == Standing::Living;
            let mut later = self.tokens.range(number + 1..).map(|(_, token)| token);
            // Or by an answer that had to wait for others, and never left.
            let unsent = later.any(|later| {
                later.object == token.object && later.call.is_none() && !living(later.sid)
            });
            let excused = unsent || token.carriers.iter().any(|(sid, _)| !living(*sid));
            if left && token.owned && token.abandonment_told == 0 && !excused {
                return Err(format!("nobody was told that {number} was abandoned: {token:?}"));
            }
        }
        Ok(())
    }

    /// News is on its way that a hold is gone.
    pub(super) fn condemn(&mut self, token: u64, cause: Cause) {
        if let Some(token) = self.tokens.get_mut(&token) {
            token.condemned.get_or_insert(cause);
            token.forced |= cause == Cause::Forced;
        }
    }

    /// A client was told that its hold is gone. Rule R26.
    pub(super) fn told_lost(&mut self, sid: Sid, number: u64) -> Checked {
        let Some(token) = self.tokens.get_mut(&number).filter(|token| token.sid == sid) else {
            return Err(format!("{sid:?} is told that it lost {number}, which it never held"));
        };
        token.told_lost = true;
        if self.beliefs.remove(&number).is_some() {
            self.tokens.get_mut(&number).expect("it is known").end = Some(End::Taken);
        }
        Ok(())
    }

    /// The daemon has recorded something: what was granted, and what was taken from its owner.
    pub fn recorded(&mut self, record: &Record) {
        let place = record.object.as_ref().and_then(|label| label.name.as_ref()?[1..].parse().ok());
        let (Some(object), Some(party)) = (place, &record.party) else { return };
        let Some(sid) = self.sid(party.session) else { return };
        match record.kind {
            RecordKind::Granted { token, .. } => {
                let token = self.tokens.entry(token.0);
                token.or_insert_with(|| FencingToken::new(object, sid));
            }
            RecordKind::Abandoned { token, cause }
                if matches!(cause, Cause::Forced | Cause::Kicked | Cause::Misbehaved) =>
            {
                self.condemn(token.0, cause);
            }
            // Somebody else may have released it.
            RecordKind::Released { token: Some(token), depth: 0 }
                if matches!(self.objects[object].kind, Kind::Lock { stolen: true, .. }) =>
            {
                let end = self.tokens.get(&token.0).and_then(|token| token.end);
                if matches!(end, None | Some(End::Gone)) {
                    self.condemn(token.0, Cause::Released);
                    let token = self.tokens.get_mut(&token.0).expect("it is known");
                    token.by_another = true;
                }
            }
            _ => {}
        }
    }

    /// Whoever has lost something has been told. Rule R26.
    pub(super) fn losses_told(&self) -> Checked {
        let untold = self.beliefs.iter().find(|(number, belief)| {
            let living = self.sessions[belief.sid.0].standing == Standing::Living;
            living && self.tokens[*number].condemned.is_some()
        });
        untold.map_or(Ok(()), |(number, belief)| {
            Err(format!("{belief:?} has lost {number} and was never told"))
        })
    }
}
