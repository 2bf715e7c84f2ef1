//! Objects as a binding to another language wants them: of one type, with owners by number, and
//! waits that the caller can leave for a while, say to run a signal's handler. Never here:
//! anything that a Rust program would rather use.

use std::time::Duration;

use syncd_proto::{
    endpoint::EndpointError,
    v1::{
        Release, SemLockSpec, State, client_message::Request, create,
    },
};

use crate::{
    AcquireError, Barrier, BarrierError, Builder, Client, Condition, CreateError, Event, LockGuard,
    ObjectOptions, ReleaseError, SessionError, Token,
    barrier::Turn,
    object::{self, Kind, sealed::Attachable as _},
    owner,
    semlock::SemLock,
};

/// The calling thread's number as an owner (within a Tokio task, that task's).
pub fn owner() -> u64 {
    owner::current()
}

/// A client that connects when it is first used, and whose calls are made by [`block_on`].
///
/// # Errors
/// If the environment names an endpoint that is none.
pub fn client(builder: Builder) -> Result<Client, EndpointError> {
    Ok(Client { shared: builder.build(true)? })
}

/// Runs a call of such a client in this thread. What returns before the call is over may go on
/// with it in another `block_on`; dropping the call withdraws what it asked for.
///
/// # Errors
/// The call's, or if there can be no reactor.
pub fn block_on<T, E: From<SessionError>>(
    client: &Client,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    client.shared.block_on(call)
}

/// An object of any kind. Asking one for what its kind can't is the daemon's KIND_MISMATCH.
#[derive(Clone, Debug)]
pub struct Object(SemLock);

/// What a Barrier's last party has still to do: report how its action went. Dropping it says
/// that it failed.
pub struct Action(Turn);

impl Object {
    /// Gets or creates it. `lock` is what guards a Condition.
    ///
    /// # Errors
    /// As [`ObjectOptions::lock`].
    pub async fn create(
        options: ObjectOptions,
        spec: create::Spec,
        lock: Option<&Self>,
    ) -> Result<Self, CreateError> {
        let lock = lock.map(|lock| lock.0.object.clone());
        Ok(Self(SemLock::new(options.create(spec, lock).await?)))
    }

    /// Attaches to what a token is of, which must be of the kind that `spec` has.
    ///
    /// # Errors
    /// As [`Client::attach`].
    pub async fn attach(
        client: &Client,
        token: &Token,
        spec: &create::Spec,
    ) -> Result<Self, CreateError> {
        let kind = match spec {
            create::Spec::SemLock(spec) => Kind::SemLock(spec.class()),
            create::Spec::Condition(_) => Kind::Condition,
            create::Spec::Event(_) => Kind::Event,
            create::Spec::Barrier(_) => Kind::Barrier,
        };
        let object = object::Object::attach(client.shared.clone(), token, kind).await?;
        Ok(Self(SemLock::new(object)))
    }

    /// Permits at creation and at most, if it is a lock or semaphore.
    pub fn sem_lock_spec(&self) -> Option<SemLockSpec> {
        match self.0.object.spec() {
            Some(create::Spec::SemLock(spec)) => Some(*spec),
            _ => None,
        }
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.0.object.name()
    }

    /// What another process attaches by.
    pub fn token(&self) -> Token {
        self.0.object.token()
    }

    /// Its number in the session of the moment.
    ///
    /// # Errors
    /// If there is no session, or the object is gone.
    pub async fn handle(&self) -> Result<u32, SessionError> {
        Ok(self.0.object.binding().await?.handle)
    }

    /// Takes the lock or a permit.
    ///
    /// # Errors
    /// As [`Lock::acquire_timeout`](crate::Lock::acquire_timeout).
    ///
    /// # Cancel safety
    /// Dropping the future gives back what was granted meanwhile.
    pub async fn acquire(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> Result<LockGuard, AcquireError> {
        self.0.take(owner, timeout).await.map(LockGuard)
    }

    /// Takes a permit that is nobody's.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_loose(&self, timeout: Option<Duration>) -> Result<(), AcquireError> {
        self.0.take_loose(timeout).await
    }

    /// A bare release.
    ///
    /// # Errors
    /// As [`Lock::release`](crate::Lock::release).
    pub async fn release(&self) -> Result<(), ReleaseError> {
        self.0.release().await
    }

    /// A bare release that can't fail as far as the caller knows; sent, but not answered.
    ///
    /// # Errors
    /// If there is no session, or the object is gone.
    pub async fn release_quietly(&self) -> Result<(), SessionError> {
        let binding = self.0.object.binding().await?;
        let (handle, owner) = (binding.handle, owner::current());
        binding.session.send(Request::Release(Release { handle, owner, token: 0, quiet: true }));
        Ok(())
    }

    /// Declares that what it guards is in order again.
    ///
    /// # Errors
    /// As [`Lock::mark_consistent`](crate::Lock::mark_consistent).
    pub async fn mark_consistent(&self) -> Result<(), ReleaseError> {
        self.0.mark_consistent().await
    }

    /// It as a Condition.
    pub fn condition(&self) -> Condition {
        Condition::from_object(self.0.object.clone())
    }

    /// It as an Event.
    pub fn event(&self) -> Event {
        Event::from_object(self.0.object.clone())
    }

    /// It as a Barrier.
    pub fn barrier(&self) -> Barrier {
        Barrier::from_object(self.0.object.clone())
    }

    /// A Barrier's wait; with the index comes the action, if there is one and it is this
    /// party's to run.
    ///
    /// # Errors
    /// As [`Barrier::wait_with`].
    ///
    /// # Cancel safety
    /// As [`Barrier::wait_with`].
    pub async fn arrive(
        &self,
        timeout: Option<Duration>,
        has_action: bool,
    ) -> Result<(u32, Option<Action>), BarrierError> {
        let arrival = self.barrier().arrive(timeout, has_action).await?;
        Ok((arrival.result.index(), arrival.turn.map(Action)))
    }

    /// Its numbers, and who holds it.
    ///
    /// # Errors
    /// If there is no session, or the object is gone.
    pub async fn query(&self) -> Result<State, SessionError> {
        self.0.object.query().await
    }
}

impl Action {
    /// Reports that all went well: the parties may pass.
    ///
    /// # Errors
    /// [`Broken`](BarrierError::Broken) if the Barrier was broken meanwhile.
    pub async fn done(self) -> Result<(), BarrierError> {
        self.0.done().await
    }
}
