//! A doubly linked list whose links lie in the entries of a slab: O(1) to append, to
//! take the first and to unlink from the middle, and 12 bytes when empty.

use slab::Slab;

/// An index into a slab.
pub(crate) type Ix = u32;

const NONE: Ix = Ix::MAX;

/// An entry's neighbours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    prev: Ix,
    next: Ix,
}

impl Default for Links {
    fn default() -> Self {
        Links { prev: NONE, next: NONE }
    }
}

/// What can be in a [`List`]: one list at a time.
pub(crate) trait Linked {
    fn links(&self) -> &Links;
    fn links_mut(&mut self) -> &mut Links;
}

/// First and last entry, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    first: Ix,
    last: Ix,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        List { first: NONE, last: NONE, len: 0 }
    }
}

impl List {
    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn first(&self) -> Option<Ix> {
        (self.first != NONE).then_some(self.first)
    }

    pub fn push_back<T: Linked>(&mut self, slab: &mut Slab<T>, ix: Ix) {
        *slab[ix as usize].links_mut() = Links { prev: self.last, next: NONE };
        match self.last {
            NONE => self.first = ix,
            last => slab[last as usize].links_mut().next = ix,
        }
        self.last = ix;
        self.len += 1;
    }

    pub fn unlink<T: Linked>(&mut self, slab: &mut Slab<T>, ix: Ix) {
        let Links { prev, next } = std::mem::take(slab[ix as usize].links_mut());
        match prev {
            NONE => self.first = next,
            prev => slab[prev as usize].links_mut().next = next,
        }
        match next {
            NONE => self.last = prev,
            next => slab[next as usize].links_mut().prev = prev,
        }
        self.len -= 1;
    }

    pub fn iter<'a, T: Linked>(&self, slab: &'a Slab<T>) -> impl Iterator<Item = (Ix, &'a T)> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let entry = slab.get(at as usize)?;
            Some((std::mem::replace(&mut at, entry.links().next), entry))
        })
    }
}
