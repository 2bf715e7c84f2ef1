//! Shares: what each user has of a shared namespace, so that no user can use it up. A user may have
//! half of what the others leave, so that a newcomer always finds a part.

use std::collections::BTreeMap;

use crate::{ErrorKind, SessionId, space::Space, work::Task};

/// What one user has of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Open sessions, connected or not.
    pub sessions: usize,
    /// Objects that the user created.
    pub objects: usize,
    /// Owned permits.
    pub holds: usize,
    /// Waiting requests.
    pub waiters: usize,
    /// Abandonments by the user's sessions that no owner was told of yet.
    pub untold: usize,
}

/// By user id. `None` in a private namespace, where nothing is counted.
pub(crate) type Shares = Option<BTreeMap<u32, Share>>;

/// How much of a limit a user may have that has `own` of `all`.
pub fn fair_limit(limit: usize, all: usize, own: usize) -> usize {
    limit.saturating_sub(all - own).div_ceil(2)
}

impl Space {
    /// What a user has; all zero in a private namespace.
    pub fn share(&self, user: u32) -> Share {
        self.shares.as_ref().and_then(|shares| shares.get(&user)).copied().unwrap_or_default()
    }

    /// The shares of all users, counted from the tables.
    pub(crate) fn counted_shares(&self) -> BTreeMap<u32, Share> {
        let mut counted: BTreeMap<u32, Share> = BTreeMap::new();
        for session in self.sessions.values() {
            let share = counted.entry(session.process.uid).or_default();
            share.sessions += 1;
            share.holds += session.holds.len();
            share.waiters += session.waiters.len();
        }
        for (_, object) in self.objects.iter() {
            counted.entry(object.creator).or_default().objects += 1;
        }
        let troubles = self.objects.iter().filter_map(|(_, object)| object.trouble.as_ref());
        let discarded = self.agenda.iter().filter_map(|task| match task {
            Task::Discard { untold } => Some(untold),
            _ => None,
        });
        for left in troubles.map(|trouble| &trouble.untold).chain(discarded).flatten() {
            counted.entry(left.by.process.uid).or_default().untold += 1;
        }
        counted
    }

    pub(crate) fn count_of(&mut self, user: u32, change: impl FnOnce(&mut Share)) {
        let Some(shares) = &mut self.shares else { return };
        let share = shares.entry(user).or_default();
        change(share);
        if *share == Share::default() {
            shares.remove(&user);
        }
    }

    /// As `count_of`, for the user of a session.
    pub(crate) fn count(&mut self, session: SessionId, change: impl FnOnce(&mut Share)) {
        if self.shares.is_some() {
            self.count_of(self.sessions[&session].process.uid, change);
        }
    }

    /// Refuses one more of `field` if the user's limit is reached. There are `all`, of which the
    /// user has `own`.
    pub(crate) fn check_share(
        &self,
        user: u32,
        field: &'static str,
        (limit, all): (usize, usize),
        own: impl FnOnce(Share) -> usize,
    ) -> Result<(), ErrorKind> {
        let (limit, used) = match &self.shares {
            None => (limit, all),
            Some(_) => {
                let own = own(self.share(user));
                (fair_limit(limit, all, own), own)
            }
        };
        if used < limit { Ok(()) } else { Err(ErrorKind::Quota { field, limit: limit as u64 }) }
    }
}
