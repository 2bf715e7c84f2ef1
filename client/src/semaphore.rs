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

/// A semaphore between processes, whose value may rise above its initial value.
///
/// Clones are the same semaphore.
#[derive(Clone, Debug)]
pub struct Semaphore(pub(crate) SemLock);

/// A semaphore whose value never rises above its initial value: one release too many is an error.
///
/// Clones are the same semaphore.
#[derive(Clone, Debug)]
pub struct BoundedSemaphore(pub(crate) SemLock);

/// The guard of a semaphore's permit; see [`Hold`] for its methods. The permit goes back when the
/// guard is dropped or the process dies.
#[derive(Debug)]
#[must_use = "dropping it gives the permit back"]
pub struct Permit(pub(crate) Hold);

macro_rules! semaphore {
    ($Semaphore:ident, $class:ident) => {
        impl $Semaphore {
            /// Waits for a permit, in order of arrival.
            ///
            /// # Errors
            /// Any [`SessionError`].
            ///
            /// # Cancel safety
            /// Dropping the future withdraws the request, and gives the permit back if it was
            /// granted meanwhile. The place in the queue is lost.
            pub async fn acquire(&self) -> Result<Permit, AcquireError> {
                self.0.take(owner::current(), None).run().await.map(Permit)
            }

            /// Acquires a permit if one is free and nobody waits; else returns None.
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

            /// As [`acquire`](Self::acquire), but the guard is an owner of its own: any task or
            /// thread may drop it.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_owned(&self) -> Result<Permit, AcquireError> {
                self.0.take(owner::fresh(), None).run().await.map(Permit)
            }

            /// Waits for a permit and takes it as an unowned one, as POSIX's `sem_wait` does: no
            /// death gives it back, and anybody may [`release`](Self::release) it.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            ///
            /// # Cancel safety
            /// As [`acquire`](Self::acquire).
            pub async fn acquire_unowned(&self) -> Result<(), AcquireError> {
                self.0.take_unowned(owner::current(), None).run().await
            }

            /// Takes an unowned permit if one is free and nobody waits; returns whether.
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
            /// Any [`SessionError`].
            pub async fn value(&self) -> Result<u32, SessionError> {
                Ok(self.0.object.query().run().await?.value)
            }

            /// Who holds permits, oldest first, at most 16.
            ///
            /// # Errors
            /// Any [`SessionError`].
            pub async fn held_by(&self) -> Result<Vec<Holder>, SessionError> {
                self.0.holders().run().await
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
    /// [`OverReleased`](ReleaseError::OverReleased) if the value would exceed the initial value.
    ///
    /// # Cancel safety
    /// The permit may or may not be released.
    pub async fn release(&self) -> Result<(), ReleaseError> {
        self.0.release(owner::current()).run().await
    }
}

impl Semaphore {
    /// Adds one permit, as POSIX's `sem_post` does. It ends an unowned permit if there is one, else
    /// the caller's oldest hold, else the oldest hold; if nothing is out, the value rises above the
    /// initial one.
    ///
    /// The call sends the release and doesn't wait for a reply, unless the semaphore was created
    /// with more than 1073741824 permits: below that no release can exceed the maximum.
    ///
    /// # Errors
    /// Any [`SessionError`] in opening a session;
    /// [`OverReleased`](ReleaseError::OverReleased) if the value would exceed 2147483647.
    ///
    /// # Cancel safety
    /// The permit may or may not be added.
    pub async fn release(&self) -> Result<(), ReleaseError> {
        self.0.release_quietly(owner::current()).run().await
    }

    /// Adds `n` permits, one [`release`](Self::release) each.
    ///
    /// # Errors
    /// As [`release`](Self::release); the permits before the failed one are added.
    ///
    /// # Cancel safety
    /// Some permits may have been added.
    pub async fn add_permits(&self, n: u32) -> Result<(), ReleaseError> {
        for _ in 0..n {
            self.release().await?;
        }
        Ok(())
    }
}

impl Permit {
    /// Gives the permit back, and waits for the daemon's confirmation that it was still held.
    ///
    /// # Errors
    /// [`Stale`](ReleaseError::Stale) if the hold was gone already.
    ///
    /// # Cancel safety
    /// Dropping the future doesn't undo the release.
    pub async fn release(self) -> Result<(), ReleaseError> {
        self.0.release().run().await
    }

    /// Turns the hold into an unowned permit: no death gives it back, anybody may release it.
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
