//! Permits from outside: who believes to hold what, in which order they were granted, what was
//! given back, and who was told of what others left.

use syncd_core::{Cause, Error, Grant};
use syncd_proto::v1::Granted;

use super::{Call, Sid, What, Witness, sessions::Standing};
use crate::system::{Checked, plan::Kind};

/// A client that was told that it holds something, and not that it doesn't.
#[derive(Clone, Copy, Debug)]
pub(super) struct Belief {
    pub sid: Sid,
    pub owner: u64,
    pub object: usize,
    pub depth: u32,
}

/// How a belief ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Released,
    /// To a condition's wait.
    Lent,
    /// The client was told so.
    Taken,
    Forgotten,
    /// With the session, or its reference to the object.
    Gone,
}

/// All that is known of a fencing token.
#[derive(Clone, Debug)]
pub(super) struct FencingToken {
    pub object: usize,
    pub sid: Sid,
    pub call: Option<u64>,
    pub owned: bool,
    /// A message is on its way that says that it is gone, and why.
    pub condemned: Option<Cause>,
    pub forced: bool,
    /// Another's bare release may have freed it.
    pub by_another: bool,
    /// Its owner asked to make it nobody's.
    pub forgetting: bool,
    /// That message has come.
    pub told_lost: bool,
    pub told: bool,
    pub end: Option<End>,
    /// Releases that were called and not waited for, and releases that came to the daemon.
    pub posted: u32,
    pub arrived: u32,
    /// Who was told that it was abandoned, and by which answers that left the daemon.
    pub abandonment_told: u32,
    pub carriers: Vec<(Sid, u64)>,
}

/// A session's permits of an object that are nobody's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unowned {
    pub granted: i64,
    /// Released, or undone.
    pub returned: i64,
    /// Releases that came, refused or not.
    pub came: i64,
}

impl FencingToken {
    pub fn new(object: usize, sid: Sid) -> Self {
        Self {
            object,
            sid,
            call: None,
            owned: true,
            condemned: None,
            forced: false,
            by_another: false,
            forgetting: false,
            told_lost: false,
            told: false,
            end: None,
            posted: 0,
            arrived: 0,
            abandonment_told: 0,
            carriers: Vec::new(),
        }
    }
}

impl Witness {
    /// The object whose permits a call is about: of a condition, its lock.
    pub(super) fn lock_of(&self, object: usize) -> usize {
        match self.objects[object].kind {
            Kind::Condition { lock } => lock,
            _ => object,
        }
    }

    /// The hold is gone, and not by its owner's doing: it is told, or will be.
    pub(super) fn was_taken(&self, token: u64) -> bool {
        let gone = |token: &FencingToken| token.condemned.is_some() || token.end == Some(End::Gone);
        self.tokens.get(&token).is_some_and(gone)
    }

    /// As much of any of the session's holds of an object.
    pub(super) fn has_lost_some(&self, sid: Sid, object: usize) -> bool {
        let object = self.lock_of(object);
        let theirs = |token: &&FencingToken| token.sid == sid && token.object == object;
        let mut tokens = self.tokens.values().filter(theirs);
        tokens.any(|token| token.condemned.is_some() || token.end == Some(End::Gone))
    }

    pub(super) fn unowned_at(&mut self, sid: Sid, object: usize) -> &mut Unowned {
        self.objects[object].unowned.entry(sid).or_default()
    }

    /// Permits that are nobody's and out; less than none if more were released than taken.
    pub(super) fn unowned_out(&self, object: usize) -> i64 {
        if self.objects[object].kind.is_exclusive() {
            return 0;
        }
        self.objects[object].unowned.values().map(|u| u.granted - u.returned).sum()
    }

    pub(super) fn tokens_of(&self, sid: Sid) -> impl Iterator<Item = u64> {
        self.tokens.iter().filter(move |(_, token)| token.sid == sid).map(|(number, _)| *number)
    }

    /// How many believe to hold the object, but for those to whom the news is on its way.
    pub(super) fn believers(&self, object: usize) -> i64 {
        let held = |(token, belief): &(&u64, &Belief)| {
            belief.object == object && self.tokens[*token].condemned.is_none()
        };
        self.beliefs.iter().filter(held).count() as i64
    }

    pub(super) fn end_beliefs(&mut self, end: End, which: impl Fn(&Belief) -> bool) {
        self.beliefs.retain(|token, belief| {
            let ends = which(belief);
            if ends {
                self.tokens.get_mut(token).expect("it is believed").end = Some(end);
            }
            !ends
        });
    }

    /// The session gives up its reference, and so what it holds and waits for there.
    pub(super) fn detached(&mut self, sid: Sid, object: usize) {
        self.objects[object].left_by.insert(sid);
        self.end_beliefs(End::Gone, |belief| belief.sid == sid && belief.object == object);
        for (_, call) in self.calls.range_mut((sid, 0)..=(sid, u64::MAX)) {
            call.detached |= call.object == object && !call.collected;
        }
    }

    /// An owner makes its permit nobody's.
    pub(super) fn forget_called(&mut self, number: u64) {
        if let Some(token) = self.tokens.get_mut(&number) {
            token.forgetting = true;
        }
    }

    /// An owner lets go of a level of a hold: `posted` if it doesn't wait for the answer.
    pub fn release_called(&mut self, number: u64, posted: bool) {
        let Some(token) = self.tokens.get_mut(&number) else { return };
        if posted && !token.told_lost {
            token.posted += 1;
        }
        if let Some(belief) = self.beliefs.get_mut(&number) {
            belief.depth -= 1;
            if belief.depth == 0 {
                self.beliefs.remove(&number);
                token.end = Some(End::Released);
            }
        }
    }

    /// An owner releases whatever there is.
    pub fn bare_called(&mut self, sid: Sid, object: usize, posted: bool) {
        self.objects[object].bare_called += 1;
        self.objects[object].unowned_told -= 1;
        self.sessions[sid.0].posted_bare += i64::from(posted);
    }

    pub(super) fn release_arrived(&mut self, key: (Sid, u64), object: usize, token: u64) {
        if token == 0 {
            let unowned = self.unowned_at(key.0, object);
            unowned.returned += 1;
            unowned.came += 1;
        } else if let Some(token) = self.tokens.get_mut(&token) {
            token.arrived += 1;
        }
        self.posts.insert(key, (object, token));
    }

    /// A release was refused: then it freed nothing, and that must be the rules'. Rule R24.
    pub(super) fn post_refused(&mut self, key: (Sid, u64), error: &Error) -> Checked {
        let Some((object, number)) = self.posts.remove(&key) else { return Ok(()) };
        let kind = self.objects[object].kind;
        if number == 0 {
            self.unowned_at(key.0, object).returned -= 1;
            let left = self.objects[object].left_by.contains(&key.0);
            let may = left || matches!(kind, Kind::Lock { stolen: true, .. });
            return if may || self.calls.contains_key(&key) {
                Ok(())
            } else {
                Err(format!("a release of {kind:?} by {:?} was refused: {error}", key.0))
            };
        }
        let token = &self.tokens[&number];
        let gone = token.condemned.is_some() || token.end == Some(End::Gone);
        if gone || self.sessions[key.0.0].ended.is_some() {
            return Ok(());
        }
        Err(format!("a release of {number} by {:?} was refused: {error}", key.0))
    }

    /// A grant left the core.
    pub(super) fn grant_decided(&mut self, key: (Sid, u64), call: &Call, grant: &Grant) -> Checked {
        let unowned = matches!(call.what, What::Acquire { unowned: true, .. });
        if unowned {
            self.unowned_at(key.0, call.object).granted += 1;
        }
        let (number, object) = (grant.token.0, self.lock_of(call.object));
        let Some(token) = self.tokens.get_mut(&number) else {
            return Err(format!("{call:?} is granted {number}, of which there is no record"));
        };
        let is_again = grant.depth > 1 && !matches!(call.what, What::Wait { .. });
        if (token.object, token.sid) != (object, key.0) || token.call.is_some() && !is_again {
            return Err(format!("token {number} is granted again: {call:?}"));
        }
        token.call.get_or_insert(key.1);
        token.owned = !unowned;
        if let Some(left) = &grant.abandoned {
            if let Some(token) = self.tokens.get_mut(&left.token.0) {
                token.carriers.push(key);
            } else {
                return Err(format!("{left:?} was abandoned, and never granted"));
            }
        }
        Ok(())
    }

    /// An owner is told that it holds a permit. Rules R24, R28, R31, R32.
    pub(super) fn granted(&mut self, key: (Sid, u64), call: &Call, granted: &Granted) -> Checked {
        self.count.granted += 1;
        let Granted { token: number, depth, abandoned } = granted;
        let (number, depth) = (*number, *depth);
        let lent = match call.what {
            What::Wait { depth } => Some(depth),
            _ => None,
        };
        if let Some(left) = abandoned {
            self.abandonment_told(call, left)?;
        }
        let token = self.tokens.get_mut(&number).ok_or("a grant that nobody made")?;
        let is_detached = call.detached && lent.is_none();
        if self.sessions[key.0.0].standing != Standing::Living || is_detached {
            // The answer was there, and the session or its reference is not: its owner has nothing.
            token.end.get_or_insert(End::Gone);
            token.told = true;
            return Ok(());
        }
        let object = &self.objects[self.lock_of(call.object)];
        if let (None, true, Some(belief)) = (lent, depth > 1, self.beliefs.get_mut(&number)) {
            let same =
                (belief.sid, belief.owner, belief.object) == (key.0, call.owner, call.object);
            if !same || depth != belief.depth + 1 || !matches!(object.kind, Kind::RLock { .. }) {
                return Err(format!("{call:?} deepens {belief:?} to {depth}"));
            }
            belief.depth = depth;
            return Ok(());
        }
        if lent.is_none() && depth > 1 && self.is_taken(number) {
            // It was taken by force between the two.
            return Ok(());
        }
        if lent.is_some_and(|lent| lent != depth) || lent.is_none() && depth != 1 {
            return Err(format!("{call:?} is granted at depth {depth}"));
        }
        if number <= call.floor {
            let floor = call.floor;
            return Err(format!("token {number} after {floor}, which was told before: {call:?}"));
        }
        self.highest_told = self.highest_told.max(number);
        let token = self.tokens.get_mut(&number).ok_or("a grant that nobody made")?;
        if std::mem::replace(&mut token.told, true) {
            return Err(format!("token {number} is told twice: {call:?}"));
        }
        if let (None, Some(arrived)) = (lent, call.arrived) {
            self.ordered(call, arrived.position, number)?;
        }
        if matches!(call.what, What::Acquire { unowned: true, .. }) {
            self.count.unowned += 1;
            self.objects[call.object].unowned_told += 1;
            return self.has_room(call, 0);
        }
        if self.is_taken(number) {
            self.tokens.get_mut(&number).expect("it is known").end = Some(End::Taken);
            return Ok(());
        }
        // That it is gone again may be on its way.
        if self.tokens[&number].condemned.is_none() {
            self.has_room(call, 1)?;
        }
        let object = self.lock_of(call.object);
        let belief = Belief { sid: key.0, owner: call.owner, object, depth };
        self.beliefs.insert(number, belief);
        Ok(())
    }

    /// The client has heard that the hold was taken away.
    fn is_taken(&self, number: u64) -> bool {
        self.tokens.get(&number).is_some_and(|token| token.told_lost)
    }

    /// There is no more out than there is. Rules R1, R31.
    fn has_room(&self, call: &Call, more: i64) -> Checked {
        let at = self.lock_of(call.object);
        let object = &self.objects[at];
        let permits = i64::from(object.kind.permits());
        // Whoever releases another's lock is told of no permit.
        let unowned = if object.kind.is_exclusive() { 0 } else { object.unowned_told };
        let out = self.believers(at) + unowned + more;
        if out <= permits {
            return Ok(());
        }
        let held: Vec<_> = self.beliefs.iter().filter(|(_, b)| b.object == at).collect();
        Err(format!("{out} permits of {:?} are out: {held:?}, and now {call:?}", object.kind))
    }

    /// Grants come in the order of arrival. Rules R28, R29.
    fn ordered(&mut self, call: &Call, position: u64, number: u64) -> Checked {
        let order = &mut self.objects[call.object].order;
        let before = order.range(..position).next_back().filter(|(_, token)| **token > number);
        let after = order.range(position..).next().filter(|(_, token)| **token < number);
        if let Some((other, token)) = before.or(after) {
            return Err(format!(
                "the request that came {other}th got {token}, the one that came {position}th \
                 {number}: {call:?}"
            ));
        }
        order.insert(position, number);
        Ok(())
    }

    /// Everything that its caller was told is given back has come to the daemon.
    pub(super) fn releases_arrived(&self) -> Checked {
        let living = |sid: &Sid| self.sessions[sid.0].standing == Standing::Living;
        let missing = self
            .tokens
            .iter()
            .find(|(_, token)| living(&token.sid) && token.arrived < token.posted);
        missing.map_or(Ok(()), |(number, token)| {
            Err(format!("a release of {number} never arrived: {token:?}"))
        })
    }

    /// The forgotten permit is nobody's now.
    pub(super) fn forgotten(&mut self, object: usize, number: u64) {
        if self.beliefs.remove(&number).is_some() {
            self.tokens.get_mut(&number).expect("it is believed").end = Some(End::Forgotten);
        }
        self.objects[object].unowned_told += 1;
    }

    /// Whether somebody believes to hold the object.
    pub fn is_held(&self, object: usize) -> bool {
        self.beliefs.values().any(|belief| belief.object == object)
    }

    /// Whether the owner believes to hold the object, and nothing to the contrary is on its way.
    pub(super) fn held_by(&self, sid: Sid, owner: u64, object: usize) -> Option<u64> {
        let held =
            |belief: &Belief| (belief.sid, belief.owner, belief.object) == (sid, owner, object);
        let (number, _) = self.beliefs.iter().find(|(_, belief)| held(belief))?;
        self.tokens[number].condemned.is_none().then_some(*number)
    }
}
