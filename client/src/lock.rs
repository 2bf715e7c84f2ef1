//! Lock and RLock.

use std::{ops::Deref, time::Duration};

use syncd_proto::v1::SemLockClass;

use crate::{
    AcquireError, Hold, Holder, ReleaseError, SessionError, Token,
    call::Call as _,
    object::{Attachable, Kind, sealed},
    owner,
    semlock::{SemLock, none_if_busy},
};

/// A lock between processes. It isn't recursive: an owner that acquires it again waits for
/// itself, unless it [fails on deadlock](Self::fail_on_deadlock).
///
/// Clones are the same lock.
#[derive(Clone, Debug)]
pub struct Lock(pub(crate) SemLock);

/// A recursive lock: its owner, a task or (outside of tasks) a thread, can acquire it again and
/// must release it as many times. Only the owner can release it.
///
/// Clones are the same lock.
#[derive(Clone, Debug)]
pub struct RLock(pub(crate) SemLock);

/// The guard of a held [`Lock`] or [`RLock`]; see [`Hold`] for its methods. Dropping it releases
/// the lock.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard(pub(crate) Hold);

/// The guard of [`Lock::acquire_owned`]. In the async API every guard is `Send`.
pub type OwnedLockGuard = LockGuard;

impl Lock {
    /// Waits for the lock, in order of arrival.
    ///
    /// # Errors
    /// [`Poisoned`](AcquireError::Poisoned), [`Deadlock`](AcquireError::Deadlock) after
    /// [`fail_on_deadlock`](Self::fail_on_deadlock), or any [`SessionError`].
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request, and releases the lock if it was granted
    /// meanwhile. The place in the queue is lost.
    pub async fn acquire(&self) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), None).run().await.map(LockGuard)
    }

    /// Acquires the lock if it is free and nobody waits for it; else returns None.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> {
        none_if_busy(self.acquire_timeout(Duration::ZERO).await)
    }

    /// Waits for the lock for at most `timeout`.
    ///
    /// # Errors
    /// [`TimedOut`](AcquireError::TimedOut), with those who hold it; or as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), Some(timeout)).run().await.map(LockGuard)
    }

    /// As [`acquire`](Self::acquire), but the guard is an owner of its own: any task or thread may
    /// drop it. A deadlock that involves such a hold isn't detected through this task or thread.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_owned(&self) -> Result<OwnedLockGuard, AcquireError> {
        self.0.take(owner::fresh(), None).run().await.map(LockGuard)
    }
}

impl RLock {
    /// Waits for the lock, in order of arrival; acquires it again at once if this owner holds it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn acquire(&self) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), None).run().await.map(LockGuard)
    }

    /// Acquires the lock if this owner holds it, or if it is free and nobody waits for it; else
    /// returns None.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> {
        none_if_busy(self.acquire_timeout(Duration::ZERO).await)
    }

    /// Waits for the lock for at most `timeout`.
    ///
    /// # Errors
    /// As [`Lock::acquire_timeout`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), Some(timeout)).run().await.map(LockGuard)
    }
}

macro_rules! common {
    ($Lock:ident, $class:ident) => {
        impl $Lock {
            /// Makes acquires through this value fail with [`AcquireError::Deadlock`] when the
            /// wait would close a cycle.
            #[must_use]
            pub fn fail_on_deadlock(self) -> Self {
                Self(self.0.fail_on_deadlock())
            }

            /// Releases the lock without its guard: the caller's hold if there is one, else (Lock
            /// only) another owner's.
            ///
            /// # Errors
            /// [`OverReleased`](ReleaseError::OverReleased) if nobody holds the lock,
            /// [`NotOwner`](ReleaseError::NotOwner) if another owner holds the RLock.
            ///
            /// # Cancel safety
            /// The lock may or may not be released.
            pub async fn release(&self) -> Result<(), ReleaseError> {
                self.0.release(owner::current()).run().await
            }

            /// Declares the data that the lock guards consistent: a poisoned lock can be acquired
            /// again. For a lock that nobody or the caller holds.
            ///
            /// # Errors
            /// [`NotOwner`](ReleaseError::NotOwner) if another owner holds the lock.
            ///
            /// # Cancel safety
            /// Safe: it can be repeated.
            pub async fn mark_consistent(&self) -> Result<(), ReleaseError> {
                self.0.mark_consistent(owner::current()).run().await
            }

            /// Who holds the lock now.
            ///
            /// # Errors
            /// Any [`SessionError`].
            pub async fn locked_by(&self) -> Result<Option<Holder>, SessionError> {
                Ok(self.0.holders().run().await?.into_iter().next())
            }

            /// The object's name; empty for an anonymous object.
            pub fn name(&self) -> &str {
                self.0.object.name()
            }

            /// The token by which another process attaches to the object.
            pub fn token(&self) -> Token {
                self.0.object.token()
            }
        }

        impl Attachable for $Lock {}
        impl sealed::Attachable for $Lock {
            const KIND: Kind = Kind::SemLock(SemLockClass::$class);
            fn from_object(object: std::sync::Arc<crate::object::Object>) -> Self {
                Self(SemLock::new(object))
            }
        }
    };
}

common!(Lock, Lock);
common!(RLock, Rlock);

impl LockGuard {
    /// Releases the lock, and waits for the daemon's confirmation that it was still held.
    ///
    /// # Errors
    /// [`Stale`](ReleaseError::Stale) if the hold was gone already.
    ///
    /// # Cancel safety
    /// Dropping the future doesn't undo the release.
    pub async fn release(self) -> Result<(), ReleaseError> {
        self.0.release().run().await
    }

    /// Declares the data that the lock guards consistent, after its last owner's death.
    ///
    /// # Errors
    /// Any [`SessionError`]; [`NotOwner`](ReleaseError::NotOwner) if the hold is gone.
    ///
    /// # Cancel safety
    /// Safe: it can be repeated.
    pub async fn mark_consistent(&mut self) -> Result<(), ReleaseError> {
        self.0.mark_consistent().run().await
    }
}

impl Deref for LockGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}
