//! A call as a sequence of steps: each asks for a session or for the reply to a request. Both
//! shells can perform them, in a thread or in a task, so that each object is written once.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use syncd_proto::v1::{client_message::Request, server_message::Message};

use crate::{
    blocking,
    blocking::OnSignal,
    client::Shared,
    session::{CallError, Session, protocol::Undo},
    tasks,
};

/// How much later than the call's time-out the daemon's TIMED_OUT may arrive before the client
/// gives up: the daemon's reply says who holds the object.
const ANSWER: Duration = Duration::from_millis(500);

/// How long the reply to a call with a zero time-out may take.
const TRY: Duration = Duration::from_secs(1);

/// What a call needs next.
pub(crate) enum Step<T> {
    /// The current session, or a new one; `start`: a daemon may be started for it.
    Session {
        start: bool,
    },
    /// Send a request that has no reply, then continue with [`Input::Begin`].
    Post {
        session: Arc<Session>,
        request: Request,
    },
    /// Send a request and wait for its reply.
    Request {
        session: Arc<Session>,
        request: Request,
        undo: Option<Undo>,
    },
    Done(T),
}

impl<T> Step<T> {
    /// The same step with another output type.
    ///
    /// # Panics
    /// On [`Step::Done`], which the caller must have handled.
    pub(crate) fn unfinished<U>(self) -> Step<U> {
        match self {
            Self::Session { start } => Step::Session { start },
            Self::Post { session, request } => Step::Post { session, request },
            Self::Request { session, request, undo } => Step::Request { session, request, undo },
            Self::Done(_) => unreachable!("the caller handles Done"),
        }
    }
}

/// What a step needed.
pub(crate) enum Input {
    Begin,
    Session(Arc<Session>),
    Reply(Message),
}

/// The steps of a call. If a step fails, the next input is its error: the call returns it unless
/// it has another way.
pub(crate) trait Steps {
    type Output: Send;

    fn client(&self) -> &Arc<Shared>;

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Self::Output>, CallError>;

    /// Called when the step's request has been queued: from now on the daemon may act on it, even
    /// if the call is given up.
    fn on_sent(&mut self) {}
}

/// A call that either shell can make.
pub(crate) trait Call {
    type Done;

    /// Performs the call in a task. Dropping the future withdraws the request.
    fn run(self) -> impl Future<Output = Self::Done> + Send;

    /// Performs the call in this thread. `on_signal` runs after a signal handler has run in the
    /// thread, and periodically; if it returns true, the call is given up.
    fn wait(self, on_signal: OnSignal<'_>) -> Self::Done;
}

/// A call made of steps, their time-out, and a function that makes the call's result.
pub(crate) struct Then<S, F> {
    steps: S,
    timeout: Option<Duration>,
    finish: F,
}

pub(crate) fn call<S, F, T>(steps: S, timeout: Option<Duration>, finish: F) -> Then<S, F>
where
    S: Steps + Send,
    F: FnOnce(Result<S::Output, CallError>) -> T + Send,
{
    Then { steps, timeout, finish }
}

impl<S, F, T> Call for Then<S, F>
where
    S: Steps + Send,
    F: FnOnce(Result<S::Output, CallError>) -> T + Send,
{
    type Done = T;

    async fn run(self) -> T {
        let Self { mut steps, timeout, finish } = self;
        let deadline = deadline(timeout);
        let mut input = Ok(Input::Begin);
        finish(loop {
            input = match steps.next(input) {
                Err(error) => break Err(error),
                Ok(Step::Done(output)) => break Ok(output),
                Ok(Step::Session { start }) => {
                    let client = steps.client().clone();
                    tasks::session(&client, start, deadline).await.map(Input::Session)
                }
                Ok(Step::Post { session, request }) => {
                    let posted = session.tasks().post_when_there_is_room(request).await;
                    posted.map(|()| Input::Begin)
                }
                Ok(Step::Request { session, request, undo }) => {
                    let sent = || steps.on_sent();
                    let reply = session.tasks().call(request, undo, deadline, sent).await;
                    reply.map(Input::Reply)
                }
            }
        })
    }

    fn wait(self, on_signal: OnSignal<'_>) -> T {
        let Self { mut steps, timeout, finish } = self;
        let deadline = deadline(timeout);
        let mut input = Ok(Input::Begin);
        finish(loop {
            input = match steps.next(input) {
                Err(error) => break Err(error),
                Ok(Step::Done(output)) => break Ok(output),
                Ok(Step::Session { start }) => {
                    let client = steps.client();
                    blocking::session(client, start, deadline, on_signal).map(Input::Session)
                }
                Ok(Step::Post { session, request }) => {
                    let posted = session.threads().post_when_there_is_room(request, on_signal);
                    posted.map(|()| Input::Begin)
                }
                Ok(Step::Request { session, request, undo }) => {
                    let sent = || steps.on_sent();
                    let threads = session.threads();
                    threads.call(request, undo, deadline, sent, on_signal).map(Input::Reply)
                }
            }
        })
    }
}

/// Discards a successful reply.
pub(crate) fn done<T, E: From<CallError>>(result: Result<T, CallError>) -> Result<(), E> {
    result.map(drop).map_err(E::from)
}

/// A call that fails with `error`, if there is one, instead of being made.
pub(crate) struct Unless<C, E> {
    error: Option<E>,
    call: C,
}

pub(crate) fn unless<C, T, E>(error: Option<E>, call: C) -> Unless<C, E>
where
    C: Call<Done = Result<T, E>> + Send,
    E: Send,
{
    Unless { error, call }
}

impl<C, T, E> Call for Unless<C, E>
where
    C: Call<Done = Result<T, E>> + Send,
    E: Send,
{
    type Done = Result<T, E>;

    async fn run(self) -> Result<T, E> {
        match self.error {
            Some(error) => Err(error),
            None => self.call.run().await,
        }
    }

    fn wait(self, on_signal: OnSignal<'_>) -> Result<T, E> {
        self.error.map_or_else(|| self.call.wait(on_signal), Err)
    }
}

/// A call whose successful result is mapped.
pub(crate) struct Map<C, F> {
    call: C,
    map: F,
}

pub(crate) fn map<C, F, T, U, E>(call: C, map: F) -> Map<C, F>
where
    C: Call<Done = Result<T, E>> + Send,
    F: FnOnce(T) -> U + Send,
{
    Map { call, map }
}

impl<C, F, T, U, E> Call for Map<C, F>
where
    C: Call<Done = Result<T, E>> + Send,
    F: FnOnce(T) -> U + Send,
{
    type Done = Result<U, E>;

    async fn run(self) -> Result<U, E> {
        self.call.run().await.map(self.map)
    }

    fn wait(self, on_signal: OnSignal<'_>) -> Result<U, E> {
        self.call.wait(on_signal).map(self.map)
    }
}

/// When the client's clock ends a call: a little after the daemon's would have.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    let timeout = match timeout? {
        Duration::ZERO => TRY,
        timeout => timeout.saturating_add(ANSWER),
    };
    Instant::now().checked_add(timeout)
}

/// A request of the current session that concerns no object handle.
pub(crate) struct Plain<'a> {
    client: &'a Arc<Shared>,
    request: Option<Request>,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(client: &'a Arc<Shared>, request: Request) -> Self {
        Self { client, request: Some(request) }
    }
}

impl Steps for Plain<'_> {
    type Output = Message;

    fn client(&self) -> &Arc<Shared> {
        self.client
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Message>, CallError> {
        match input? {
            Input::Begin => Ok(Step::Session { start: true }),
            Input::Reply(message) => Ok(Step::Done(message)),
            Input::Session(session) => match self.request.take() {
                Some(request) => Ok(Step::Request { session, request, undo: None }),
                None => Err(crate::error::SessionLost::nonsense().into()),
            },
        }
    }
}

/// The current session, or a new one.
pub(crate) struct Connect<'a>(pub(crate) &'a Arc<Shared>);

impl Steps for Connect<'_> {
    type Output = Arc<Session>;

    fn client(&self) -> &Arc<Shared> {
        self.0
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Arc<Session>>, CallError> {
        Ok(match input? {
            Input::Session(session) => Step::Done(session),
            _ => Step::Session { start: true },
        })
    }
}
