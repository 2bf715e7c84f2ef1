//! What one process knows of its dealings with one SemLock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use syncd_client::{LockGuard, raw};

/// The books of one Lock, RLock or semaphore, with those of this process's other objects that are
/// the same to the daemon.
pub(crate) struct Shelf {
    token: String,
    books: Arc<Mutex<Books>>,
}

/// All books of this process, by the token of what they are of. Touched with the GIL held alone.
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

    /// Takes what this process holds by another of the objects out of that one's books: whoever
    /// acquired by it will find it gone.
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

/// How often an object was acquired in this process, by whom last, and what it holds: the process's
/// own, as the C type's are.
pub(crate) struct Books {
    generation: u32,
    /// The C type's count: acquired less released, by this object in this process.
    pub(crate) count: i32,
    /// Who acquired last.
    pub(crate) last: u64,
    /// What is owned through this object, oldest first.
    pub(crate) holds: Vec<(u64, LockGuard)>,
    /// The with-blocks that are entered and not left, oldest first. A forked child has its
    /// parent's: it leaves them, too.
    blocks: Vec<Block>,
}

/// A with-block that was entered.
struct Block {
    owner: u64,
    generation: u32,
}

/// What a Condition takes out of the books for the time of a wait.
pub(crate) struct Lent {
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

    /// Makes a forked child's books of its parent's: nothing is held.
    fn inherit(&mut self) {
        if self.generation != raw::generation() {
            let blocks = std::mem::take(&mut self.blocks);
            *self = Self::new();
            self.blocks = blocks;
        }
    }

    /// Notes that a with-block is entered.
    pub(crate) fn enter_block(&mut self, owner: u64) {
        self.blocks.push(Block { owner, generation: self.generation });
    }

    /// Notes that a with-block is left: the caller's newest; if it has none, the newest of this
    /// process. Tells whether it was the parent's that entered it.
    pub(crate) fn leave_block(&mut self, owner: u64) -> bool {
        let generation = self.generation;
        let own = self.blocks.iter().rposition(|block| block.owner == owner);
        let any = || self.blocks.iter().rposition(|block| block.generation == generation);
        let left = own.or_else(any).map(|at| self.blocks.remove(at));
        left.is_some_and(|block| block.generation != generation)
    }

    /// Notes that it was acquired.
    pub(crate) fn enter(&mut self, owner: u64, guard: Option<LockGuard>) {
        self.count += 1;
        self.last = owner;
        self.holds.extend(guard.map(|guard| (owner, guard)));
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        // What was acquired and not released stays so, as in multiprocessing: until the process
        // dies, or somebody releases it by another object.
        self.holds.drain(..).for_each(std::mem::forget);
    }
}
