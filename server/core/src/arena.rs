//! Tables with typed indices, and intrusive lists through their entries: O(1) to append, to take the
//! first and to unlink from the middle; an empty list takes 12 bytes.

use std::{
    cmp, fmt, hash,
    marker::PhantomData,
    ops::{Index, IndexMut},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The index of a `T` in its table. It is reused after the entry is removed.
pub(crate) struct Idx<T> {
    number: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Idx<T> {
    /// The lowest index.
    pub const FIRST: Self = Self::new(0);
    /// Above all indices of entries.
    pub const END: Self = Self::new(u32::MAX);

    pub const fn new(number: u32) -> Self {
        Idx { number, of: PhantomData }
    }

    pub const fn number(self) -> u32 {
        self.number
    }
}

// Derived, these traits would require `T` to have them, too.
impl<T> Clone for Idx<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Idx<T> {}

impl<T> PartialEq for Idx<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Idx<T> {}

impl<T> PartialOrd for Idx<T> {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Idx<T> {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

impl<T> hash::Hash for Idx<T> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl<T> Serialize for Idx<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.number.serialize(to)
    }
}

impl<'de, T> Deserialize<'de> for Idx<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        u32::deserialize(from).map(Self::new)
    }
}

impl<T> fmt::Debug for Idx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// A table. The order of free places is part of its state and is saved with it, so that a restored
/// table assigns the same indices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Arena<T> {
    places: Vec<Place<T>>,
    /// The first free place; the length of `places` if none is free.
    free: u32,
    len: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Place<T> {
    Used(T),
    /// With the next free place.
    Free(u32),
}

impl<T> Arena<T> {
    pub const fn new() -> Self {
        Arena { places: Vec::new(), free: 0, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, entry: T) -> Idx<T> {
        count_visit();
        let ix = Idx::new(self.free);
        match self.places.get_mut(self.free as usize) {
            None => {
                self.places.push(Place::Used(entry));
                self.free = u32::try_from(self.places.len()).expect("fewer than 2^32 entries");
            }
            Some(place) => match std::mem::replace(place, Place::Used(entry)) {
                Place::Free(next) => self.free = next,
                Place::Used(_) => unreachable!("{ix:?} is free"),
            },
        }
        self.len += 1;
        ix
    }

    /// Removes an entry.
    ///
    /// # Panics
    /// If there is none.
    pub fn remove(&mut self, ix: Idx<T>) -> T {
        count_visit();
        let place = &mut self.places[ix.number as usize];
        match std::mem::replace(place, Place::Free(self.free)) {
            Place::Used(entry) => {
                self.free = ix.number;
                self.len -= 1;
                entry
            }
            Place::Free(_) => panic!("{ix:?} is free"),
        }
    }

    pub fn get(&self, ix: Idx<T>) -> Option<&T> {
        count_visit();
        match self.places.get(ix.number as usize) {
            Some(Place::Used(entry)) => Some(entry),
            _ => None,
        }
    }

    /// All entries; visits all places.
    pub fn iter(&self) -> impl Iterator<Item = (Idx<T>, &T)> {
        self.places.iter().zip(0..).filter_map(|(place, number)| match place {
            Place::Used(entry) => {
                count_visit();
                Some((Idx::new(number), entry))
            }
            Place::Free(_) => None,
        })
    }
}

impl<T> Index<Idx<T>> for Arena<T> {
    type Output = T;

    fn index(&self, ix: Idx<T>) -> &T {
        count_visit();
        match &self.places[ix.number as usize] {
            Place::Used(entry) => entry,
            Place::Free(_) => panic!("{ix:?} is free"),
        }
    }
}

impl<T> IndexMut<Idx<T>> for Arena<T> {
    fn index_mut(&mut self, ix: Idx<T>) -> &mut T {
        count_visit();
        match &mut self.places[ix.number as usize] {
            Place::Used(entry) => entry,
            Place::Free(_) => panic!("{ix:?} is free"),
        }
    }
}

/// An entry's neighbours.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Links<T> {
    prev: Idx<T>,
    next: Idx<T>,
}

impl<T> Clone for Links<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Links<T> {}

impl<T> Default for Links<T> {
    fn default() -> Self {
        Links { prev: Idx::END, next: Idx::END }
    }
}

/// An entry that can be in one [`List`] at a time.
pub(crate) trait Linked: Sized {
    fn links(&self) -> &Links<Self>;
    fn links_mut(&mut self) -> &mut Links<Self>;
}

/// A doubly linked list through a table's entries.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct List<T> {
    first: Idx<T>,
    last: Idx<T>,
    len: u32,
}

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<T> {}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { first: Idx::END, last: Idx::END, len: 0 }
    }
}

impl<T: Linked> List<T> {
    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn first(&self) -> Option<Idx<T>> {
        (self.first != Idx::END).then_some(self.first)
    }

    pub fn last(&self) -> Option<Idx<T>> {
        (self.last != Idx::END).then_some(self.last)
    }

    pub fn push_back(&mut self, arena: &mut Arena<T>, ix: Idx<T>) {
        *arena[ix].links_mut() = Links { prev: self.last, next: Idx::END };
        if self.last == Idx::END {
            self.first = ix;
        } else {
            arena[self.last].links_mut().next = ix;
        }
        self.last = ix;
        self.len += 1;
    }

    pub fn unlink(&mut self, arena: &mut Arena<T>, ix: Idx<T>) {
        let Links { prev, next } = std::mem::take(arena[ix].links_mut());
        if prev == Idx::END {
            self.first = next;
        } else {
            arena[prev].links_mut().next = next;
        }
        if next == Idx::END {
            self.last = prev;
        } else {
            arena[next].links_mut().prev = prev;
        }
        self.len -= 1;
    }

    pub fn iter<'a>(&self, arena: &'a Arena<T>) -> impl Iterator<Item = (Idx<T>, &'a T)> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let entry = arena.get(at)?;
            Some((std::mem::replace(&mut at, entry.links().next), entry))
        })
    }
}

/// The entry after another in its list.
pub(crate) fn after<T: Linked>(entry: &T) -> Option<Idx<T>> {
    let next = entry.links().next;
    (next != Idx::END).then_some(next)
}

#[cfg(test)]
thread_local! {
    static VISITS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts a visit to a table's entry, in test builds: the cost of a call besides lookups in ordered
/// maps. Loops over other things call it themselves.
#[inline]
pub(crate) fn count_visit() {
    #[cfg(test)]
    VISITS.with(|visits| visits.set(visits.get() + 1));
}

/// The number of visits in this thread since the last call.
#[cfg(test)]
pub(crate) fn take_visits() -> u64 {
    VISITS.with(|visits| visits.replace(0))
}
