//! Blocking locks and semaphores. Never here: what they do, which is the async ones' matter.

use std::{marker::PhantomData, ops::Deref, time::Duration};

use super::{forward, object};
use crate::{AcquireError, Hold, Holder, ReleaseError, SessionError};

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

/// A lock that this thread holds: what it tells is in [`Hold`]. Dropping it releases. It stays
/// in its thread, which is the owner; [`Lock::acquire_owned`] gives one that may travel.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard(pub(super) crate::LockGuard, PhantomData<*const ()>);

/// A lock that its guard holds, in whatever thread. Dropping it releases.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct OwnedLockGuard(pub(super) crate::LockGuard);

/// As [`crate::Permit`].
#[derive(Debug)]
#[must_use = "dropping it gives the permit back"]
pub struct Permit(crate::Permit);

impl LockGuard {
    fn new(guard: crate::LockGuard) -> Self {
        Self(guard, PhantomData)
    }
}

object!(Lock, .0.object);
object!(RLock, .0.object);
object!(Semaphore, .0.object);
object!(BoundedSemaphore, .0.object);

forward! { Lock:
    fn acquire(&self) -> Result<LockGuard, AcquireError> => LockGuard::new;
    fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> => |g| g.map(LockGuard::new);
    fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> => LockGuard::new;
    fn acquire_owned(&self) -> Result<OwnedLockGuard, AcquireError> => OwnedLockGuard;
    fn release(&self) -> Result<(), ReleaseError>;
    fn mark_consistent(&self) -> Result<(), ReleaseError>;
    fn locked_by(&self) -> Result<Option<Holder>, SessionError>;
}

forward! { RLock:
    fn acquire(&self) -> Result<LockGuard, AcquireError> => LockGuard::new;
    fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> => |g| g.map(LockGuard::new);
    fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> => LockGuard::new;
    fn release(&self) -> Result<(), ReleaseError>;
    fn mark_consistent(&self) -> Result<(), ReleaseError>;
    fn locked_by(&self) -> Result<Option<Holder>, SessionError>;
}

forward! { Semaphore:
    fn acquire(&self) -> Result<Permit, AcquireError> => Permit;
    fn try_acquire(&self) -> Result<Option<Permit>, AcquireError> => |p| p.map(Permit);
    fn acquire_timeout(&self, timeout: Duration) -> Result<Permit, AcquireError> => Permit;
    fn acquire_owned(&self) -> Result<Permit, AcquireError> => Permit;
    fn acquire_loose(&self) -> Result<(), AcquireError>;
    fn try_acquire_loose(&self) -> Result<bool, AcquireError>;
    fn acquire_loose_timeout(&self, timeout: Duration) -> Result<(), AcquireError>;
    fn release(&self) -> Result<(), ReleaseError>;
    fn add_permits(&self, n: u32) -> Result<(), ReleaseError>;
    fn value(&self) -> Result<u32, SessionError>;
    fn held_by(&self) -> Result<Vec<Holder>, SessionError>;
}

forward! { BoundedSemaphore:
    fn acquire(&self) -> Result<Permit, AcquireError> => Permit;
    fn try_acquire(&self) -> Result<Option<Permit>, AcquireError> => |p| p.map(Permit);
    fn acquire_timeout(&self, timeout: Duration) -> Result<Permit, AcquireError> => Permit;
    fn acquire_owned(&self) -> Result<Permit, AcquireError> => Permit;
    fn acquire_loose(&self) -> Result<(), AcquireError>;
    fn try_acquire_loose(&self) -> Result<bool, AcquireError>;
    fn acquire_loose_timeout(&self, timeout: Duration) -> Result<(), AcquireError>;
    fn release(&self) -> Result<(), ReleaseError>;
    fn value(&self) -> Result<u32, SessionError>;
    fn held_by(&self) -> Result<Vec<Holder>, SessionError>;
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
                let session = self.0.0.session().clone();
                session.block_on(self.0.$method())
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
                let session = self.0.0.session().clone();
                session.block_on(self.0.mark_consistent())
            }
        }
    )+};
}

mark_consistent!(LockGuard, OwnedLockGuard);
