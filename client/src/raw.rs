//! Objects as a binding to another language wants them: of one type, with owners by number, and
//! waits that the caller can leave for a while, say to run a signal's handler. Never here:
//! anything that a Rust program would rather use.

use std::{pin::Pin, time::Duration};

use syncd_proto::{
    endpoint::EndpointError,
    v1::{
        Notify, Release, State, attach, client_message::Request, create, server_message::Message,
    },
};

use crate::{
    AcquireError, Barrier, BarrierError, Builder, Client, Condition, ConditionError, CreateError,
    Event, LockGuard, ObjectOptions, ReleaseError, SessionError, Token,
    barrier::Turn,
    fork,
    object::{self, sealed::Attachable as _},
    owner,
    semlock::SemLock,
};

/// Rises by one in every forked child: what was held before isn't held there.
pub fn generation() -> u32 {
    fork::generation()
}

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

/// Runs a call of such a client in this thread. None when a signal's handler has run here
/// meanwhile, and now and then for no reason: the call isn't over, and another `block_on` goes on
/// with it. Dropping it withdraws what it asked for.
///
/// # Errors
/// The call's, or if there can be no reactor.
///
/// # Panics
/// Within a Tokio runtime.
pub fn block_on<T, E: From<SessionError>>(
    client: &Client,
    call: Pin<&mut impl Future<Output = Result<T, E>>>,
) -> Option<Result<T, E>> {
    client.shared.block_on_or_signal(call)
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

    /// Attaches to the object that a token is of.
    ///
    /// # Errors
    /// As [`Client::attach`], but that any kind will do.
    pub async fn attach(client: &Client, token: &Token) -> Result<Self, CreateError> {
        let object = object::Object::attach(client.shared.clone(), token, None).await?;
        Ok(Self(SemLock::new(object)))
    }

    /// Attaches to the object of that name, if there is one.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if there is none.
    pub async fn find(client: &Client, name: &str) -> Result<Self, CreateError> {
        let by = attach::By::Name(name.to_owned());
        let object = object::Object::attach_by(client.shared.clone(), by, None).await?;
        Ok(Self(SemLock::new(object)))
    }

    /// What it is, as it was created; None for a Condition that was attached to.
    pub fn spec(&self) -> Option<&create::Spec> {
        self.0.object.spec()
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

    /// Wakes the `n` oldest waiters of a Condition, or all if that is 0.
    ///
    /// # Errors
    /// As [`Condition::notify`], for an owner that doesn't hold the lock.
    pub async fn notify(&self, owner: u64, n: u32) -> Result<u32, ConditionError> {
        let notify = |handle| Request::Notify(Notify { handle, owner, n });
        match self.0.object.call(false, owner, notify).await?.1 {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        }
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
