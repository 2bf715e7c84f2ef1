//! Which process this is: a child of `fork` must not touch what it inherited of its parent's
//! session. Never here: what to do instead.

use std::{
    ptr,
    sync::{
        Once,
        atomic::{
            AtomicPtr, AtomicU32,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

/// Rises by one in every child, before anything else runs there.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The process that `GENERATION` was last true of.
static PID: AtomicU32 = AtomicU32::new(0);

pub(crate) fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// Has forks noticed from now on; and notices one that got past the handler (a bare clone).
pub(crate) fn watch() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        PID.store(std::process::id(), Relaxed);
        #[cfg(unix)]
        // SAFETY: the handler only stores to atomics, which is safe in a forked child.
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
    let pid = std::process::id();
    if PID.swap(pid, Relaxed) != pid {
        GENERATION.fetch_add(1, Relaxed);
    }
}

#[cfg(unix)]
extern "C" fn in_child() {
    GENERATION.fetch_add(1, Relaxed);
    PID.store(std::process::id(), Relaxed);
}

/// A value that each process has its own of. What a child inherits it leaves as it is, for
/// good: a mutex in it could be locked by a thread that the child hasn't got, and what it owns
/// is the parent's.
#[derive(Debug)]
pub(crate) struct PerProcess<T>(AtomicPtr<Node<T>>);

#[derive(Debug)]
struct Node<T> {
    generation: u32,
    value: T,
}

impl<T> PerProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(AtomicPtr::new(Node::new(value)))
    }

    /// This process's value, made by `renew` of the inherited one if there is none yet. That
    /// must neither lock nor drop anything of it.
    pub(crate) fn get(&self, renew: impl FnOnce(&T) -> T) -> &T {
        let found = self.0.load(Acquire);
        // SAFETY: it came from Box::into_raw, and lives as long as self: one that is replaced
        // is never freed.
        let node = unsafe { &*found };
        if node.generation == generation() {
            return &node.value;
        }
        let fresh = Node::new(renew(&node.value));
        match self.0.compare_exchange(found, fresh, AcqRel, Acquire) {
            // SAFETY: as above.
            Ok(_) => unsafe { &(*fresh).value },
            // SAFETY: nobody else has seen `fresh`; and `current` is as above.
            Err(current) => unsafe {
                drop(Box::from_raw(fresh));
                &(*current).value
            },
        }
    }
}

impl<T> Node<T> {
    fn new(value: T) -> *mut Self {
        Box::into_raw(Box::new(Self { generation: generation(), value }))
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let node = self.0.swap(ptr::null_mut(), Acquire);
        // SAFETY: it came from Box::into_raw, and nobody can borrow from self any more.
        unsafe {
            if (*node).generation == generation() {
                drop(Box::from_raw(node));
            }
        }
    }
}

// SAFETY: it owns its T as a Box would, and gives out shared references to it.
unsafe impl<T: Send> Send for PerProcess<T> {}
// SAFETY: as above; and `get` can move a T in from any thread.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}
