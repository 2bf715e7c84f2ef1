//! A process's record of what it acquired through each SemLock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use syncd_client::{LockGuard, raw};

/// The books of one Python object, and a way to the books of this process's other Python objects
/// for the same daemon object.
pub(crate) struct Shelf {
    token: String,
    books: Arc<Mutex<Books>>,
}

/// All books of this process, by token. Accessed only with the GIL held.
static SHELVES: Mutex<BTreeMap<String, Vec<Weak<Mutex<Books>>>>> = Mutex::new(BTreeMap::new());

impl Shelf {
    pub(crate) fn new(token: String) -> Self {
        let books = Arc::new(Mutex::new(Books::new()));
        lock(&SHELVES).entry(token.clone()).or_default().push(Arc::downgrade(&books));
        Self { token, books }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        let mut books = lock(&self.books);
        books.inherit();
        books
    }

    /// Takes a hold out of the books of another Python object for the same daemon object. A release
    /// through that object will fail.
    pub(crate) fn take_from_another(&self) -> Option<LockGuard> {
        let others = lock(&SHELVES).get(&self.token).cloned().unwrap_or_default();
        others.iter().filter_map(Weak::upgrade).find_map(|other| {
            let mut books = lock(&other);
            books.inherit();
            let at = books.holds.iter().rposition(|(_, guard)| guard.is_valid())?;
            books.count -= 1;
            Some(books.holds.remove(at).1)
        })
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let mut shelves = lock(&SHELVES);
        if let Some(books) = shelves.get_mut(&self.token) {
            let own = Arc::downgrade(&self.books);
            books.retain(|other| !other.ptr_eq(&own));
            if books.is_empty() {
                shelves.remove(&self.token);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was acquired through one Python object in this process, like the fields of CPython's C type
/// `_multiprocessing.SemLock`.
pub(crate) struct Books {
    generation: u32,
    /// The C type's count: acquires less releases through this object in this process.
    pub(crate) count: i32,
    /// The owner that acquired last.
    pub(crate) last: u64,
    /// The holds, oldest first, and their owners.
    pub(crate) holds: Vec<(u64, LockGuard)>,
    /// The with-blocks that were entered and not left, oldest first. A forked child keeps its
    /// parent's blocks, since it leaves them, too.
    blocks: Vec<Block>,
}

/// A with-block that was entered.
struct Block {
    owner: u64,
    generation: u32,
}

/// What a Condition takes out of the books during a wait.
pub(crate) struct Suspended {
    pub(crate) guard: LockGuard,
    pub(crate) count: i32,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self {
            generation: raw::generation(),
            count: 0,
            last: 0,
            holds: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// Resets the books in a forked child, which holds nothing; keeps the blocks.
    fn inherit(&mut self) {
        if self.generation != raw::generation() {
            let blocks = std::mem::take(&mut self.blocks);
            *self = Self::new();
            self.blocks = blocks;
        }
    }

    /// Records that a with-block is entered.
    pub(crate) fn enter_block(&mut self, owner: u64) {
        self.blocks.push(Block { owner, generation: self.generation });
    }

    /// Records that a with-block is left: the caller's newest or, if it has none, this process's
    /// newest. Returns whether the parent process entered it.
    pub(crate) fn leave_block(&mut self, owner: u64) -> bool {
        let generation = self.generation;
        let own = self.blocks.iter().rposition(|block| block.owner == owner);
        let any = || self.blocks.iter().rposition(|block| block.generation == generation);
        let left = own.or_else(any).map(|at| self.blocks.remove(at));
        left.is_some_and(|block| block.generation != generation)
    }

    /// Records an acquire.
    pub(crate) fn enter(&mut self, owner: u64, guard: Option<LockGuard>) {
        self.count += 1;
        self.last = owner;
        self.holds.extend(guard.map(|guard| (owner, guard)));
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        // As in multiprocessing, deleting the object doesn't release it: the hold stays until the
        // process dies or releases it through another object.
        self.holds.drain(..).for_each(std::mem::forget);
    }
}
