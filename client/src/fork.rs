//! Detects a fork: a child must not touch its parent's session, and closes its descriptors.

use std::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr,
    sync::{
        Once,
        atomic::{
            AtomicPtr, AtomicU32,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

/// Incremented in every forked child, before anything else runs there.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The process id for which `GENERATION` was last updated.
static PID: AtomicU32 = AtomicU32::new(0);

pub(crate) fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// Installs the fork handler, once; and detects a fork that it missed (a bare clone(2)).
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
    descriptors::close_all();
}

/// A descriptor, or a value with one, that a forked child must not use. The child closes its copy
/// before anything else runs there, since later the number may belong to another file; it never
/// drops the value.
pub(crate) struct Owned<T> {
    generation: u32,
    #[cfg(unix)]
    place: &'static descriptors::Place,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    #[cfg(unix)]
    pub(crate) fn new(value: T) -> Self
    where
        T: std::os::fd::AsFd,
    {
        use std::os::fd::AsRawFd as _;
        watch();
        let place = descriptors::note(value.as_fd().as_raw_fd());
        Self { generation: generation(), place, value: ManuallyDrop::new(value) }
    }

    #[cfg(not(unix))]
    pub(crate) fn new(value: T) -> Self {
        Self { generation: generation(), value: ManuallyDrop::new(value) }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.generation == generation() {
            // Before the close, after which the number may belong to another file.
            #[cfg(unix)]
            self.place.forget();
            // SAFETY: `value` isn't used after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// The descriptors that a forked child closes, in a list that the fork handler can read at any
/// time: nodes are reused, never freed.
#[cfg(unix)]
mod descriptors {
    use std::{
        ptr,
        sync::atomic::{
            AtomicI32, AtomicPtr,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    };

    const FREE: i32 = -1;

    pub(crate) struct Place {
        descriptor: AtomicI32,
        next: *mut Place,
    }

    // SAFETY: `next` is set before the place is published, and never changed after that.
    unsafe impl Sync for Place {}

    static FIRST: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());

    fn all() -> impl Iterator<Item = &'static Place> {
        // SAFETY: places are never freed.
        let first = unsafe { FIRST.load(Acquire).as_ref() };
        // SAFETY: as above.
        std::iter::successors(first, |place| unsafe { place.next.as_ref() })
    }

    pub(super) fn note(descriptor: i32) -> &'static Place {
        let reused = all().find(|place| {
            place.descriptor.compare_exchange(FREE, descriptor, AcqRel, Relaxed).is_ok()
        });
        if let Some(place) = reused {
            return place;
        }
        let descriptor = AtomicI32::new(descriptor);
        let place = Box::leak(Box::new(Place { descriptor, next: ptr::null_mut() }));
        loop {
            place.next = FIRST.load(Acquire);
            if FIRST.compare_exchange(place.next, place, AcqRel, Acquire).is_ok() {
                return place;
            }
        }
    }

    impl Place {
        pub(super) fn forget(&self) {
            self.descriptor.store(FREE, Release);
        }
    }

    /// Runs in a forked child: only atomics and close(2), which are async-signal-safe.
    pub(super) fn close_all() {
        for place in all() {
            let descriptor = place.descriptor.swap(FREE, AcqRel);
            if descriptor >= 0 {
                // SAFETY: the descriptor is this child's copy, and its owner is never dropped here.
                unsafe { libc::close(descriptor) };
            }
        }
    }
}

/// A value of which each process has its own. A forked child never touches or drops the inherited
/// one: a mutex in it may be locked by a thread that exists only in the parent.
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

    /// This process's value; if there is none yet, `renew` makes it from the inherited one, of
    /// which it must neither lock nor drop anything.
    pub(crate) fn get(&self, renew: impl FnOnce(&T) -> T) -> &T {
        let found = self.0.load(Acquire);
        // SAFETY: `found` came from Box::into_raw and lives as long as self: replaced nodes are
        // never freed.
        let node = unsafe { &*found };
        if node.generation == generation() {
            return &node.value;
        }
        let fresh = Node::new(renew(&node.value));
        match self.0.compare_exchange(found, fresh, AcqRel, Acquire) {
            // SAFETY: as above.
            Ok(_) => unsafe { &(*fresh).value },
            // SAFETY: `fresh` was never published; `current` as above.
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
        // SAFETY: `node` came from Box::into_raw, and nothing borrows from self any more.
        unsafe {
            if (*node).generation == generation() {
                drop(Box::from_raw(node));
            }
        }
    }
}

// SAFETY: PerProcess owns its T as a Box would, and returns only shared references to it.
unsafe impl<T: Send> Send for PerProcess<T> {}
// SAFETY: as above; and `get` can move a T in from any thread.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}
