//! Blocking locks and semaphores.

use std::{marker::PhantomData, ops::Deref, time::Duration};

use super::{forward, none_if_busy, object, wait};
use crate::{
    AcquireError, Hold, Holder, ReleaseError, SessionError,
    owner::{fresh, thread},
    semlock::SemLock,
};

/// As [`crate::Lock`].
#[derive(Clone, Debug)]
pub struct Lock(pub(super) crate::Lock);

/// As [`crate::RLock`]; its owners are threads.
#[derive(Clone, Debug)]
pub struct RLock(pub(super) crate::RLock);

/// As [`crate::Semaphore`].
#[derive(Clone, Debug)]
pub struct Semaphore(pub(super) crate::Semaphore);

/// As [`crate::BoundedSemaphore`].
#[derive(Clone, Debug)]
pub struct BoundedSemaphore(pub(super) crate::BoundedSemaphore);

/// The guard of a lock that this thread holds; see [`Hold`] for its methods. Dropping it releases
/// the lock. It isn't `Send`, since the thread is the owner; the guard of [`Lock::acquire_owned`]
/// is.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard(pub(super) crate::LockGuard, PhantomData<*const ()>);

/// A lock's guard that is itself the owner, and `Send`. Dropping it releases the lock.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct OwnedLockGuard(pub(super) crate::LockGuard);

/// As [`crate::Permit`].
#[derive(Debug)]
#[must_use = "dropping it gives the permit back"]
pub struct Permit(crate::Permit);

impl Permit {
    fn new(hold: Hold) -> Self {
        Self(crate::Permit(hold))
    }
}

impl LockGuard {
    fn new(hold: Hold) -> Self {
        Self(crate::LockGuard(hold), PhantomData)
    }
}

object!(Lock);
object!(RLock);
object!(Semaphore);
object!(BoundedSemaphore);

macro_rules! sem_lock {
    ($($Type:ident),+) => {$(
        impl $Type {
            fn sem_lock(&self) -> &SemLock {
                &self.0.0
            }
        }
    )+};
}

sem_lock!(Lock, RLock, Semaphore, BoundedSemaphore);

forward! { Lock, RLock:
    fn acquire(&self) -> Result<LockGuard, AcquireError> {
        wait(self.sem_lock().take(thread(), None)).map(LockGuard::new)
    }
    fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> {
        none_if_busy(self.acquire_timeout(Duration::ZERO))
    }
    fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> {
        wait(self.sem_lock().take(thread(), Some(timeout))).map(LockGuard::new)
    }
    fn release(&self) -> Result<(), ReleaseError> {
        wait(self.sem_lock().release(thread()))
    }
    fn mark_consistent(&self) -> Result<(), ReleaseError> {
        wait(self.sem_lock().mark_consistent(thread()))
    }
    fn locked_by(&self) -> Result<Option<Holder>, SessionError> {
        Ok(wait(self.sem_lock().holders())?.into_iter().next())
    }
}

forward! { Lock:
    fn acquire_owned(&self) -> Result<OwnedLockGuard, AcquireError> {
        wait(self.sem_lock().take(fresh(), None)).map(crate::LockGuard).map(OwnedLockGuard)
    }
}

forward! { Semaphore, BoundedSemaphore:
    fn acquire(&self) -> Result<Permit, AcquireError> {
        wait(self.sem_lock().take(thread(), None)).map(Permit::new)
    }
    fn try_acquire(&self) -> Result<Option<Permit>, AcquireError> {
        none_if_busy(self.acquire_timeout(Duration::ZERO))
    }
    fn acquire_timeout(&self, timeout: Duration) -> Result<Permit, AcquireError> {
        wait(self.sem_lock().take(thread(), Some(timeout))).map(Permit::new)
    }
    fn acquire_owned(&self) -> Result<Permit, AcquireError> {
        wait(self.sem_lock().take(fresh(), None)).map(Permit::new)
    }
    fn acquire_unowned(&self) -> Result<(), AcquireError> {
        wait(self.sem_lock().take_unowned(thread(), None))
    }
    fn try_acquire_unowned(&self) -> Result<bool, AcquireError> {
        none_if_busy(self.acquire_unowned_timeout(Duration::ZERO)).map(|taken| taken.is_some())
    }
    fn acquire_unowned_timeout(&self, timeout: Duration) -> Result<(), AcquireError> {
        wait(self.sem_lock().take_unowned(thread(), Some(timeout)))
    }
    fn value(&self) -> Result<u32, SessionError> {
        Ok(wait(self.sem_lock().object.query())?.value)
    }
    fn held_by(&self) -> Result<Vec<Holder>, SessionError> {
        wait(self.sem_lock().holders())
    }
}

forward! { BoundedSemaphore:
    fn release(&self) -> Result<(), ReleaseError> {
        wait(self.sem_lock().release(thread()))
    }
}

forward! { Semaphore:
    fn release(&self) -> Result<(), ReleaseError> {
        wait(self.sem_lock().release_quietly(thread()))
    }
    fn add_permits(&self, n: u32) -> Result<(), ReleaseError> {
        (0..n).try_for_each(|_| self.release())
    }
}

macro_rules! fail_on_deadlock {
    ($($Lock:ident),+) => {$(
        impl $Lock {
            #[doc = concat!("As [`crate::", stringify!($Lock), "::fail_on_deadlock`].")]
            #[must_use]
            pub fn fail_on_deadlock(self) -> Self {
                Self(self.0.fail_on_deadlock())
            }
        }
    )+};
}

fail_on_deadlock!(Lock, RLock);

macro_rules! guard {
    ($Guard:ident of $inner:ident: $($method:ident),+) => {
        impl $Guard {$(
            #[doc = concat!(
                "As [`", stringify!($method), "`](crate::", stringify!($inner), "::",
                stringify!($method), ").\n\n# Errors\nThe same."
            )]
            pub fn $method(self) -> Result<(), ReleaseError> {
                wait(self.0.0.$method())
            }
        )+}

        impl Deref for $Guard {
            type Target = Hold;

            fn deref(&self) -> &Hold {
                &self.0
            }
        }
    };
}

guard!(LockGuard of LockGuard: release);
guard!(OwnedLockGuard of LockGuard: release);
guard!(Permit of Permit: release, forget);

macro_rules! mark_consistent {
    ($($Guard:ident),+) => {$(
        impl $Guard {
            /// As [`crate::LockGuard::mark_consistent`].
            ///
            /// # Errors
            /// The same.
            pub fn mark_consistent(&mut self) -> Result<(), ReleaseError> {
                wait(self.0.0.mark_consistent())
            }
        }
    )+};
}

mark_consistent!(LockGuard, OwnedLockGuard);
