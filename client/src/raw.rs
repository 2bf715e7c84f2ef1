//! Objects as a binding to another language wants them: of one type, with owners by number, and
//! calls that a thread or a task can make.

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

/// Rises by one in every forked child: what was held before isn't held there.
pub fn generation() -> u32 {
    fork::generation()
}

/// The calling thread's number as an owner.
pub fn owner() -> u64 {
    owner::thread()
}

/// A number as an owner that nobody else has.
pub fn fresh_owner() -> u64 {
    owner::fresh()
}

/// A client that connects when it is first used. Its calls are all made by threads, or all by
/// tasks: see [`Call`].
///
/// # Errors
/// If the environment names an endpoint that is none, or a name is too long.
pub fn client(builder: Builder) -> Result<Client, ConnectError> {
    Ok(Client { shared: builder.build()? })
}

/// None if the hold is gone, as [`Hold::is_valid`](crate::Hold::is_valid) sees it; else whether
/// dropping its guard sends the release without waiting for room in the socket.
pub fn has_room(guard: &LockGuard) -> Option<bool> {
    guard.has_room()
}

/// Waits until every release that threads have made by the client has left this process, or
/// `limit` is over; tells whether there is nothing left to send.
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

/// A call that is still to be made: in this thread by [`wait`](Self::wait), or in a task by
/// [`run`](Self::run). The first call of a client decides which of the two it is for all.
///
/// # Panics
/// Either does, by the client whose session is the other's.
#[must_use = "it does nothing until it is made"]
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

    /// Makes it in this thread. `signals` is asked when a signal's handler has run here; if it
    /// says so, the call is given up, and ends with [`SessionError::Interrupted`].
    pub fn wait(self, signals: &mut dyn Signals) -> T {
        self.0.wait(signals)
    }

    /// Makes it in a task. Dropping the future withdraws it.
    pub fn run(self) -> impl Future<Output = T> + Send + 'a {
        self.0.run()
    }
}

/// An object of any kind. Asking one for what its kind can't is the daemon's KIND_MISMATCH.
#[derive(Clone, Debug)]
pub struct Object(SemLock);

/// What a Barrier's last party has still to do: report how its action went. Dropping it says
/// that it failed.
pub struct Action(Turn);

impl Object {
    fn from_object(object: std::sync::Arc<object::Object>) -> Self {
        Self(SemLock::new(object))
    }

    /// Gets or creates it. `lock` is what guards a Condition.
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

    /// Attaches to the object that a token is of. No daemon is started for it.
    ///
    /// # Errors
    /// As [`Client::attach`], but that any kind will do.
    pub fn attach(client: &Client, token: &Token) -> Call<'static, Result<Self, CreateError>> {
        Call::of(call::map(object::Object::attach(&client.shared, token, None), Self::from_object))
    }

    /// Attaches to the object of that name, if there is one.
    ///
    /// # Errors
    /// [`NotFound`](CreateError::NotFound) if there is none.
    pub fn find(client: &Client, name: &str) -> Call<'static, Result<Self, CreateError>> {
        Call::of(call::map(object::Object::find(&client.shared, name), Self::from_object))
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
    pub fn handle(&self) -> Call<'_, Result<u32, SessionError>> {
        let bind = BindObject::new(&self.0.object);
        Call::of(call::call(bind, None, |bound: Result<std::sync::Arc<Binding>, CallError>| {
            Ok(bound?.handle)
        }))
    }

    /// Takes the lock or a permit.
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

    /// Takes a permit that is nobody's.
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

    /// A bare release.
    ///
    /// # Errors
    /// As [`Lock::release`](crate::Lock::release).
    pub fn release(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.release(owner))
    }

    /// A bare release of a semaphore to which it can't be one too many; sent, and not answered.
    /// Waits while too much is still to be sent.
    ///
    /// # Errors
    /// If there is no session, or the object is gone.
    pub fn release_quietly(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.release_unasked(owner))
    }

    /// Declares that what it guards is in order again.
    ///
    /// # Errors
    /// As [`Lock::mark_consistent`](crate::Lock::mark_consistent).
    pub fn mark_consistent(&self, owner: u64) -> Call<'_, Result<(), ReleaseError>> {
        Call::of(self.0.mark_consistent(owner))
    }

    /// It as a Condition.
    pub fn condition(&self) -> Condition {
        Condition::from_object(self.0.object.clone())
    }

    /// A Condition's wait, by the guard of its lock.
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

    /// Wakes the `n` oldest waiters of a Condition, or all if that is 0.
    ///
    /// # Errors
    /// As [`Condition::notify`], for an owner that doesn't hold the lock.
    pub fn notify(&self, owner: u64, n: u32) -> Call<'_, Result<u32, ConditionError>> {
        Call::of(self.0.object.notify(owner, n))
    }

    /// It as an Event.
    pub fn event(&self) -> Event {
        Event::from_object(self.0.object.clone())
    }

    /// Sets an Event; tells how many waited.
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

    /// An Event's wait.
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

    /// It as a Barrier.
    pub fn barrier(&self) -> Barrier {
        Barrier::from_object(self.0.object.clone())
    }

    /// A Barrier's wait; with the index comes the action, if there is one and it is this
    /// party's to run.
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

    /// Its numbers, and who holds it.
    ///
    /// # Errors
    /// If there is no session, or the object is gone.
    pub fn query(&self) -> Call<'_, Result<State, SessionError>> {
        Call::of(self.0.object.query())
    }
}

impl Action {
    /// Reports that all went well: the parties may pass.
    ///
    /// # Errors
    /// [`Broken`](BarrierError::Broken) if the Barrier was broken meanwhile.
    pub fn done(self) -> Call<'static, Result<(), BarrierError>> {
        Call::of(self.0.done())
    }
}
