//! Semaphore and BoundedSemaphore.

use std::{ops::Deref, time::Duration};

use syncd_proto::v1::SemLockClass;

use crate::{
    AcquireError, Hold, Holder, ReleaseError, SessionError, Token,
    call::Call as _,
    object::{Attachable, Kind, sealed},
    owner,
    semlock::{SemLock, none_if_busy},
};

/// A semaphore between processes, whose value may rise above what it was at first.
///
/// Clones are the same semaphore.
#[derive(Clone, Debug)]
pub struct Semaphore(pub(crate) SemLock);

/// A semaphore whose value never rises above what it was at first: one release too many is an
/// error.
///
/// Clones are the same semaphore.
#[derive(Clone, Debug)]
pub struct BoundedSemaphore(pub(crate) SemLock);

/// A semaphore's permit that is held: what it tells is in [`Hold`]. Dropping it gives the
/// permit back; so does its process's death.
#[derive(Debug)]
#[must_use = "dropping it gives the permit back"]
pub struct Permit(pub(crate) Hold);

macro_rules! semaphore {
    ($Semaphore:ident, $class:ident) => {
        impl $Semaphore {
            /// Waits for a permit, in the order of arrival.
            ///
            /// # Errors
            /// As for any call.
            ///
            /// # Cancel safety
            /// Dropping the future withdraws the request, and gives back what was granted
            /// meanwhile. The place in the queue is lost.
            pub async fn acquire(&self) -> Result<Permit, AcquireError> {
                self.0.take(owner::current(), None).run().await.map(Permit)
            }

            /// A permit if there is one and nobody waits for it, else nothing.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn try_acquire(&self) -> Result<Option<Permit>, AcquireError> {
                none_if_busy(self.acquire_timeout(Duration::ZERO).await)
            }

            /// Waits for a permit for at most `timeout`.
            ///
            /// # Errors
            /// [`TimedOut`](AcquireError::TimedOut), with those who hold permits; or as
            /// [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_timeout(&self, timeout: Duration) -> Result<Permit, AcquireError> {
                self.0.take(owner::current(), Some(timeout)).run().await.map(Permit)
            }

            /// Waits for a permit for an owner of its own: the guard, wherever it will be dropped.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_owned(&self) -> Result<Permit, AcquireError> {
                self.0.take(owner::fresh(), None).run().await.map(Permit)
            }

            /// Waits for a permit and takes it for good, as POSIX's `sem_wait` does: it is
            /// nobody's, no death gives it back, and anybody may [`release`](Self::release) it.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_unowned(&self) -> Result<(), AcquireError> {
                self.0.take_unowned(owner::current(), None).run().await
            }

            /// Takes a permit for good if there is one and nobody waits for it; says whether.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn try_acquire_unowned(&self) -> Result<bool, AcquireError> {
                Ok(none_if_busy(self.acquire_unowned_timeout(Duration::ZERO).await)?.is_some())
            }

            /// As [`acquire_unowned`](Self::acquire_unowned), for at most `timeout`.
            ///
            /// # Errors
            /// As [`acquire_timeout`](Self::acquire_timeout).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_unowned_timeout(
                &self,
                timeout: Duration,
            ) -> Result<(), AcquireError> {
                self.0.take_unowned(owner::current(), Some(timeout)).run().await
            }

            /// How many permits are free.
            ///
            /// # Errors
            /// As for any call.
            pub async fn value(&self) -> Result<u32, SessionError> {
                Ok(self.0.object.query().run().await?.value)
            }

            /// Who holds permits, oldest first, at most 16.
            ///
            /// # Errors
            /// As for any call.
            pub async fn held_by(&self) -> Result<Vec<Holder>, SessionError> {
                self.0.holders().run().await
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

        impl Attachable for $Semaphore {}
        impl sealed::Attachable for $Semaphore {
            const KIND: Kind = Kind::SemLock(SemLockClass::$class);
            fn from_object(object: std::sync::Arc<crate::object::Object>) -> Self {
                Self(SemLock::new(object))
            }
        }
    };
}

semaphore!(Semaphore, Semaphore);
semaphore!(BoundedSemaphore, BoundedSemaphore);

impl BoundedSemaphore {
    /// Gives back one permit, as POSIX's `sem_post` does: an unowned one if there is one, else the
    /// caller's oldest, else the oldest.
    ///
    /// # Errors
    /// [`OverReleased`](ReleaseError::OverReleased) if that would exceed the maximum.
    ///
    /// # Cancel safety
    /// It may or may not be released.
    pub async fn release(&self) -> Result<(), ReleaseError> {
        self.0.release(owner::current()).run().await
    }
}

impl Semaphore {
    /// Gives one permit, as POSIX's `sem_post` does: back, an unowned one if there is one, else the
    /// caller's oldest, else the oldest; or one more than there were.
    ///
    /// It is sent and not waited for, since the daemon can't but accept it; unless the semaphore
    /// began with more than 1073741824 permits.
    ///
    /// # Errors
    /// If there is no session to send it by; and in that last case
    /// [`OverReleased`](ReleaseError::OverReleased) beyond 2147483647.
    ///
    /// # Cancel safety
    /// It may or may not be released.
    pub async fn release(&self) -> Result<(), ReleaseError> {
        self.0.release_unasked(owner::current()).run().await
    }

    /// Gives `n` permits, one [`release`](Self::release) each.
    ///
    /// # Errors
    /// As [`release`](Self::release); those before the one that failed are given.
    ///
    /// # Cancel safety
    /// Some may have been given.
    pub async fn add_permits(&self, n: u32) -> Result<(), ReleaseError> {
        for _ in 0..n {
            self.release().await?;
        }
        Ok(())
    }
}

impl Permit {
    /// Gives the permit back, and tells whether it was still held.
    ///
    /// # Errors
    /// [`Stale`](ReleaseError::Stale) if the hold was gone already.
    ///
    /// # Cancel safety
    /// The release itself is not taken back.
    pub async fn release(self) -> Result<(), ReleaseError> {
        self.0.release().run().await
    }

    /// Keeps the permit taken, but as nobody's: no death gives it back, anybody may release it.
    ///
    /// # Errors
    /// [`Stale`](ReleaseError::Stale) if the hold was gone already.
    ///
    /// # Cancel safety
    /// The permit may be unowned or given back.
    pub async fn forget(self) -> Result<(), ReleaseError> {
        self.0.forget().run().await
    }
}

impl Deref for Permit {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}
