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

/// A lock between processes. It isn't recursive: who holds it and acquires it again waits for
/// itself.
///
/// Clones are the same lock.
#[derive(Clone, Debug)]
pub struct Lock(pub(crate) SemLock);

/// A lock that its owner, a task or (outside of tasks) a thread, can take again, and must
/// release as often. It is released by its owner alone.
///
/// Clones are the same lock.
#[derive(Clone, Debug)]
pub struct RLock(pub(crate) SemLock);

/// A [`Lock`] or [`RLock`] that is held: what it tells is in [`Hold`]. Dropping it releases.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard(pub(crate) Hold);

/// What [`Lock::acquire_owned`] gives: here, any guard may travel.
pub type OwnedLockGuard = LockGuard;

impl Lock {
    /// Waits for the lock, in the order of arrival.
    ///
    /// # Errors
    /// [`Poisoned`](AcquireError::Poisoned), [`Deadlock`](AcquireError::Deadlock) if asked for,
    /// or as for any call.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request, and gives back what was granted meanwhile.
    /// The place in the queue is lost.
    pub async fn acquire(&self) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), None).run().await.map(LockGuard)
    }

    /// The lock if it is free and nobody waits for it, else nothing.
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

    /// Waits for the lock for an owner of its own: the guard, wherever it will be dropped.
    /// Deadlocks that this task or thread is part of are told apart from it.
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
    /// Waits for the lock, in the order of arrival; or takes it once more, at once.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn acquire(&self) -> Result<LockGuard, AcquireError> {
        self.0.take(owner::current(), None).run().await.map(LockGuard)
    }

    /// The lock if it is this owner's, or is free and nobody waits for it; else nothing.
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
            /// Makes every acquire by this value fail with [`AcquireError::Deadlock`] when its
            /// waiting would close a cycle.
            #[must_use]
            pub fn fail_on_deadlock(self) -> Self {
                Self(self.0.fail_on_deadlock())
            }

            /// Releases what some guard holds, or did before it was leaked: the caller's hold if
            /// there is one, else (of a Lock) anybody's.
            ///
            /// # Errors
            /// [`OverReleased`](ReleaseError::OverReleased) if nobody holds it,
            /// [`NotOwner`](ReleaseError::NotOwner) if it is another owner's RLock.
            ///
            /// # Cancel safety
            /// It may or may not be released.
            pub async fn release(&self) -> Result<(), ReleaseError> {
                self.0.release(owner::current()).run().await
            }

            /// Declares that what an abandoned lock guards is in order: lifts poison, from a
            /// lock that nobody holds.
            ///
            /// # Errors
            /// [`NotOwner`](ReleaseError::NotOwner) if somebody else holds it.
            ///
            /// # Cancel safety
            /// Safe: it can be repeated.
            pub async fn mark_consistent(&self) -> Result<(), ReleaseError> {
                self.0.mark_consistent(owner::current()).run().await
            }

            /// Who holds it now.
            ///
            /// # Errors
            /// As for any call.
            pub async fn locked_by(&self) -> Result<Option<Holder>, SessionError> {
                Ok(self.0.holders().run().await?.into_iter().next())
            }

            /// Its name; empty if it has none.
            pub fn name(&self) -> &str {
                self.0.object.name()
            }

            /// What another process attaches by.
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
    /// Releases, and tells whether it was still held.
    ///
    /// # Errors
    /// [`Stale`](ReleaseError::Stale) if the hold was gone already.
    ///
    /// # Cancel safety
    /// The release itself is not taken back.
    pub async fn release(self) -> Result<(), ReleaseError> {
        self.0.release().run().await
    }

    /// Declares that what the lock guards is in order, after its last owner's death.
    ///
    /// # Errors
    /// As for any call; [`NotOwner`](ReleaseError::NotOwner) if the hold is gone.
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
