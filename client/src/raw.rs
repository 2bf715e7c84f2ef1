//! The API for bindings to other languages: one type for all kinds of objects, owners as numbers,
//! and calls that a thread or a task can make.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use syncd_proto::v1::{State, create};

pub use crate::blocking::Signals;
use crate::{
    AcquireError, Barrier, BarrierError, Builder, Client, Condition, ConditionError, ConnectError,
    CreateError, Event, LockGuard, ObjectOptions, ReleaseError, SessionError, Token, WaitOutcome,
    barrier::Turn,
    binding::{BindObject, Binding},
    call, fork,
    object::{self, sealed::Attachable as _},
    owner,
    semlock::SemLock,
    session::CallError,
};

/// Incremented in every forked child, where the parent's holds are not held.
pub fn generation() -> u32 {
    fork::generation()
}

/// The calling thread's owner number.
pub fn owner() -> u64 {
    owner::thread()
}

/// An owner number that nobody else has.
pub fn fresh_owner() -> u64 {
    owner::fresh()
}

/// A client that connects at its first call. Either all its calls are made by threads or all by
/// tasks: see [`Call`].
///
/// # Errors
/// [`Endpoint`](ConnectError::Endpoint) if the environment's endpoint is invalid,
/// [`Invalid`](ConnectError::Invalid) if the namespace or label is.
pub fn client(builder: Builder) -> Result<Client, ConnectError> {
    Ok(Client { shared: builder.build()? })
}

/// None if the hold isn't [valid](crate::Hold::is_valid); else whether dropping its guard sends the
/// release without waiting for room in the socket.
pub fn has_room(guard: &LockGuard) -> Option<bool> {
    guard.has_room()
}

/// Waits until every release that threads have made is in the socket, or `limit` has passed;
/// returns whether all are.
///
/// # Errors
/// [`Lost`](SessionError::Lost) if releases were lost with the session.
pub fn flush(
    client: &Client,
    limit: Duration,
    signals: &mut dyn Signals,
) -> Result<bool, SessionError> {
    client.shared.flush(Instant::now() + limit, signals)
}

/// Frees a name.
pub fn unlink<'a>(client: &'a Client, name: &'a str) -> Call<'a, Result<(), CreateError>> {
    Call::of(client.shared.unlink(name))
}

/// A call that has yet to be made: in this thread by [`wait`](Self::wait), or in a task by
/// [`run`](Self::run). All calls of a client must be made the same way.
///
/// # Panics
/// If the client's session was opened the other way.
#[must_use = "a call does nothing until it is made"]
pub struct Call<'a, T>(Box<dyn Made<'a, T> + Send + 'a>);

trait Made<'a, T> {
    fn run(self: Box<Self>) -> Pin<Box<dyn Future<Output = T> + Send + 'a>>;
    fn wait(self: Box<Self>, signals: &mut dyn Signals) -> T;
}

struct Of<C>(C);

impl<'a, C: call::Call + Send + 'a> Made<'a, C::Done> for Of<C> {
    fn run(self: Box<Self>) -> Pin<Box<dyn Future<Output = C::Done> + Send + 'a>> {
        Box::pin(self.0.run())
    }

    fn wait(self: Box<Self>, signals: &mut dyn Signals) -> C::Done {
        self.0.wait(signals)
    }
}

impl<'a, T: 'a> Call<'a, T> {
    fn of(call: impl call::Call<Done = T> + Send + 'a) -> Self {
        Self(Box::new(Of(call)))
    }

    /// Makes the call in this thread. `signals` is called after a signal handler has run in it; if
    /// it returns true, the call ends with [`SessionError::Interrupted`].
    pub fn wait(self, signals: &mut dyn Signals) -> T {
        self.0.wait(signals)
    }

    /// Makes the call in a task. Dropping the future withdraws the request.
    pub fn run(self) -> impl Future<Output = T> + Send + 'a {
        self.0.run()
    }
}

/// An object of any kind. A call that its kind doesn't have fails with the daemon's KIND_MISMATCH.
#[derive(Clone, Debug)]
pub struct Object(SemLock);

/// The turn of a Barrier's last party to run its action and report it. Dropping this reports a
/// failure.
pub struct Action(Turn);

impl Object {
    fn from_object(object: std::sync::Arc<object::Object>) -> Self {
        Self(SemLock::new(object))
    }

    /// Gets or creates the object. `lock` guards a Condition.
    ///
    /// # Errors
    /// As [`ObjectOptions::lock`].
    pub fn create(
        options: ObjectOptions,
        spec: create::Spec,
        lock: Option<&Self>,
    ) -> Call<'static, Result<Self, CreateError>> {
        let lock = lock.map(|lock| lock.0.object.clone());
        Call::of(options.make(spec, lock, Self::from_object))
    }

    /// Attaches to the object that a token names, of any kind. Doesn't start a daemon.
    ///
    /// # Errors
    /// As [`Client::attach`], except for the kind.
    pub fn attach(client: &Client, token: &Token) -> Call<'static, Result<Self, CreateError>> {
        Call::of(call::map(object::Object::attach(&client.shared, token, None), Self::from_object))
    }

    /// Attaches to the object of that name. Doesn't start a daemon.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if there is none.
    pub fn find(client: &Client, name: &str) -> Call<'static, Result<Self, CreateError>> {
        Call::of(call::map(object::Object::find(&client.shared, name), Self::from_object))
    }

    /// The object's specification; None for a Condition that was attached to.
    pub fn spec(&self) -> Option<&create::Spec> {
        self.0.object.spec()
    }

    /// The object's name; empty for an anonymous object.
    pub fn name(&self) -> &str {
        self.0.object.name()
    }

    /// The token by which another process attaches to the object.
    pub fn token(&self) -> Token {
        self.0.object.token()
    }

    /// The object's handle in the current session.
    ///
    /// # Errors
    /// Any [`SessionError`].
    pub fn handle(&self) -> Call<'_, Result<u32, SessionError>> {
        let bind = BindObject::new(&self.0.object);
        Call::of(call::call(bind, None, |bound: Result<std::sync::Arc<Binding>, CallError>| {
            Ok(bound?.handle)
        }))
    }

    /// Acquires the lock or a permit.
    ///
    /// # Errors
    /// As [`Lock::acquire_timeout`](crate::Lock::acquire_timeout).
    pub fn acquire(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> Call<'_, Result<LockGuard, AcquireError>> {
        Call::of(call::map(self.0.take(owner, timeout), LockGuard))
    }

    /// Takes an unowned permit.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_unowned(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> Call<'_, Result<(), AcquireError>> {
        Call::of(self.0.take_unowned(owner, timeout))
    }

    /// A release without a token: of the caller's hold, or as the kind allows of another's.
    ///
    /// # Errors
    /// As [`Lock::release`](crate::Lock::release).
    pub fn release(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.release(owner))
    }

    /// A release without a token, sent without waiting for a reply. For a semaphore whose maximum
    /// the release can't exceed. Waits while more than 1,024 requests are unsent.
    ///
    /// # Errors
    /// Any [`SessionError`].
    pub fn release_quietly(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.release_quietly(owner))
    }

    /// Declares the data that the lock guards consistent.
    ///
    /// # Errors
    /// As [`Lock::mark_consistent`](crate::Lock::mark_consistent).
    pub fn mark_consistent(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.mark_consistent(owner))
    }

    /// The object as a Condition.
    pub fn condition(&self) -> Condition {
        Condition::from_object(self.0.object.clone())
    }

    /// Waits for a Condition; `guard` is of its lock.
    ///
    /// # Errors
    /// As [`Condition::wait_timeout`].
    pub fn wait<'a>(
        condition: &'a Condition,
        guard: &'a mut LockGuard,
        timeout: Option<Duration>,
    ) -> Call<'a, Result<WaitOutcome, ConditionError>> {
        Call::of(condition.wait_by(guard, timeout))
    }

    /// Notifies the `n` oldest waiters of a Condition, or all if `n` is 0.
    ///
    /// # Errors
    /// [`NotOwner`](ConditionError::NotOwner) if `owner` doesn't hold the Condition's lock; or any
    /// [`SessionError`].
    pub fn notify(&self, owner: u64, n: u32) -> Call<'_, Result<u32, ConditionError>> {
        Call::of(self.0.object.notify(owner, n))
    }

    /// The object as an Event.
    pub fn event(&self) -> Event {
        Event::from_object(self.0.object.clone())
    }

    /// Sets an Event; returns how many waited.
    ///
    /// # Errors
    /// As [`Event::set`].
    pub fn set(event: &Event) -> Call<'_, Result<u32, SessionError>> {
        Call::of(event.set_it())
    }

    /// Clears an Event.
    ///
    /// # Errors
    /// As [`Event::clear`].
    pub fn clear(event: &Event) -> Call<'_, Result<(), SessionError>> {
        Call::of(event.clear_it())
    }

    /// Waits for an Event.
    ///
    /// # Errors
    /// As [`Event::wait_timeout`].
    pub fn wait_set(
        event: &Event,
        owner: u64,
        timeout: Option<Duration>,
    ) -> Call<'_, Result<WaitOutcome, SessionError>> {
        Call::of(event.wait_by(owner, timeout))
    }

    /// The object as a Barrier.
    pub fn barrier(&self) -> Barrier {
        Barrier::from_object(self.0.object.clone())
    }

    /// Waits at a Barrier. Returns the party's index, and an [`Action`] if this party has to run
    /// its action.
    ///
    /// # Errors
    /// As [`Barrier::wait_with`].
    pub fn arrive(
        barrier: &Barrier,
        owner: u64,
        timeout: Option<Duration>,
        has_action: bool,
    ) -> Call<'_, Result<(u32, Option<Action>), BarrierError>> {
        Call::of(call::map(barrier.arrive(owner, timeout, has_action), |arrival| {
            (arrival.result.index(), arrival.turn.map(Action))
        }))
    }

    /// Empties a Barrier.
    ///
    /// # Errors
    /// As [`Barrier::reset`].
    pub fn reset(barrier: &Barrier) -> Call<'_, Result<(), SessionError>> {
        Call::of(barrier.reset_it())
    }

    /// Breaks a Barrier.
    ///
    /// # Errors
    /// As [`Barrier::abort`].
    pub fn abort(barrier: &Barrier) -> Call<'_, Result<(), SessionError>> {
        Call::of(barrier.abort_it())
    }

    /// The object's state and holders.
    ///
    /// # Errors
    /// Any [`SessionError`].
    pub fn query(&self) -> Call<'_, Result<State, SessionError>> {
        Call::of(self.0.object.query())
    }
}

impl Action {
    /// Reports that the action succeeded: the parties may pass.
    ///
    /// # Errors
    /// [`Broken`](BarrierError::Broken) if the Barrier was broken meanwhile.
    pub fn done(self) -> Call<'static, Result<(), BarrierError>> {
        Call::of(self.0.done())
    }
}
