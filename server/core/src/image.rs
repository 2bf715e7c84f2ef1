//! A namespace's state in serialized form. It contains the tables as they are, so that a restored
//! `Space` continues exactly as the original would. What can be derived is skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Config, Input, ObjectId, Output, SessionId, Space, Time,
    arena::{Arena, Idx},
    deadline::Deadlines,
    deadlock::Blocked,
    hold::Hold,
    object::Object,
    sabotage::{Bug, sabotaged},
    session::Session,
    share::Shares,
    waiter::Waiter,
    work::Agenda,
};

#[derive(Serialize, Deserialize)]
#[serde(remote = "Space")]
struct Image {
    #[serde(skip)]
    config: Config,
    next_number: u64,
    #[serde(skip)]
    call: Option<(Time, Input)>,
    #[serde(skip)]
    budget: u32,
    #[serde(skip)]
    outputs: Vec<Output>,
    sessions: BTreeMap<SessionId, Session>,
    objects: Arena<Object>,
    #[serde(skip)]
    ids: BTreeMap<ObjectId, Idx<Object>>,
    #[serde(skip)]
    names: BTreeMap<std::sync::Arc<str>, Idx<Object>>,
    holds: Arena<Hold>,
    waiters: Arena<Waiter>,
    deadlines: Deadlines,
    blocked: Blocked,
    agenda: Agenda,
    unacknowledged: usize,
    untold: usize,
    #[serde(skip)]
    shares: Shares,
}

impl Space {
    /// Serializes the state, without the configuration. All steps must have been taken.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn save<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        debug_assert!(self.call.is_none(), "the step hasn't been taken");
        Image::serialize(self, to)
    }

    /// Deserializes the state that [`save`](Self::save) wrote. With the same `config`, the same
    /// calls at the same times have the same outputs as those of the original.
    ///
    /// # Errors
    /// Those of the deserializer. The state's consistency isn't checked: the caller must verify a
    /// checksum.
    pub fn restore<'de, D: Deserializer<'de>>(config: Config, from: D) -> Result<Self, D::Error> {
        let mut space = Image::deserialize(from)?;
        space.config = config;
        space.next_number -= u64::from(sabotaged(Bug::TokenReused));
        if sabotaged(Bug::DepthOffByOne) {
            let deep = space.holds.iter().filter(|(_, hold)| hold.depth > 1).map(|(ix, _)| ix);
            deep.collect::<Vec<_>>().into_iter().for_each(|ix| space.holds[ix].depth -= 1);
        }
        space.shares = space.config.limits.shared.then(|| space.counted_shares());
        let there = || space.objects.iter();
        space.ids = there().map(|(ix, object)| (object.id, ix)).collect();
        space.names = there().filter_map(|(ix, object)| Some((object.name.clone()?, ix))).collect();
        Ok(space)
    }
}

/// A constant text. It has a name of its own since serde would derive a borrowing deserializer for
/// a reference.
pub type Constant = &'static str;

/// Deserializes a text that was a constant of the program that wrote it.
pub(crate) fn constant<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    /// All texts read so far. They are leaked, but there are only as many as programs have constants.
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

    let text = String::deserialize(from)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(match known.get(&*text) {
        Some(constant) => constant,
        None => {
            let constant: &'static str = text.leak();
            known.insert(constant);
            constant
        }
    })
}
