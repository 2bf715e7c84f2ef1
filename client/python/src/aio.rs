//! The same objects for asyncio: each wait is a task in a thread of this process's, and its end
//! is told to whoever asked. Never here: event loops.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use pyo3::{
    exceptions::{PyAssertionError, PyOSError},
    prelude::*,
};
use syncd_client::{
    Client, LockGuard, SessionError, Token, WaitOutcome,
    raw::{self, Action, Object},
};
use tokio::{runtime::Handle, task::AbortHandle};

use crate::{
    failure::{Failure, abandonment},
    wait::{builder, seconds},
};

/// The thread of this process. A forked child has none of its parent's, and makes its own.
struct Agent {
    generation: u32,
    handle: Handle,
    /// By token without the key.
    clients: Mutex<BTreeMap<(String, String), Client>>,
}

static AGENT: Mutex<Option<&'static Agent>> = Mutex::new(None);

fn agent() -> PyResult<&'static Agent> {
    let mut agent = lock(&AGENT);
    if let Some(agent) = *agent
        && agent.generation == raw::generation()
    {
        return Ok(agent);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| PyOSError::new_err(error.to_string()))?;
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let (generation, clients) = (raw::generation(), Mutex::default());
    Ok(agent.insert(Box::leak(Box::new(Agent { generation, handle, clients }))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Makes a short call, in this thread.
    fn run<T: Send, E: Send + Into<Failure>>(
        &self,
        py: Python<'_>,
        call: impl Future<Output = Result<T, E>> + Send,
    ) -> PyResult<T> {
        Ok(py.detach(|| self.handle.block_on(call)).map_err(E::into)?)
    }

    /// Waits in the agent's thread, and calls `done(result, error)` from there.
    fn start<T, E>(
        &self,
        done: Py<PyAny>,
        call: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> AsyncCall
    where
        T: for<'py> IntoPyObject<'py> + Send,
        E: Into<Failure> + Send,
    {
        let task = self.handle.spawn(async move {
            let result = call.await;
            // None: the interpreter is gone, and with it who waits.
            Python::try_attach(|py| {
                let told = match result {
                    Ok(result) => done.call1(py, (result, py.None())),
                    Err(error) => done.call1(py, (py.None(), PyErr::from(error.into()))),
                };
                if let Err(error) = told {
                    error.write_unraisable(py, None);
                }
            });
        });
        AsyncCall(task.abort_handle())
    }

    fn client(&self, py: Python<'_>, token: &Token) -> PyResult<Client> {
        let key = (token.namespace().to_owned(), token.endpoint().to_string());
        if let Some(client) = lock(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let builder = builder(py, Some(token))?;
        let client = self.run(py, async { builder.connect().await.map_err(SessionError::from) })?;
        Ok(lock(&self.clients).entry(key).or_insert(client).clone())
    }
}

/// A wait under way.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncCall(AbortHandle);

#[pymethods]
impl AsyncCall {
    /// Withdraws it: what is granted meanwhile is given back.
    fn cancel(&self) {
        self.0.abort();
    }
}

/// Something held. When it goes, it is released.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncHold(Mutex<Option<LockGuard>>);

#[pymethods]
impl AsyncHold {
    /// Releases it; tells whether it was still held.
    fn release(&self) -> bool {
        lock(&self.0).take().is_some_and(|guard| guard.is_valid())
    }

    #[getter]
    fn fencing_token(&self) -> Option<u64> {
        lock(&self.0).as_ref().map(|guard| guard.fencing_token().get())
    }

    #[getter]
    fn abandoned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let left = lock(&self.0).as_ref().and_then(|guard| guard.abandoned().cloned());
        left.map(|left| abandonment(py, &left)).transpose()
    }
}

/// What the last to come to a Barrier has to do.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncAction(Mutex<Option<Action>>);

#[pymethods]
impl AsyncAction {
    /// Says how it went: well, or not.
    fn done(&self, py: Python<'_>, ok: bool) -> PyResult<()> {
        let action = lock(&self.0).take();
        match action.filter(|_| ok) {
            Some(action) => agent()?.run(py, action.done().run()),
            None => Ok(()),
        }
    }
}

/// An object of any kind, in a session of the agent's.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncObject(Object);

#[pymethods]
impl AsyncObject {
    #[new]
    fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let token: Token = token.parse().map_err(|error| Failure::value(&error))?;
        let agent = agent()?;
        let client = agent.client(py, &token)?;
        agent.run(py, Object::attach(&client, &token).run()).map(Self)
    }

    /// Gives an AsyncHold.
    fn acquire(&self, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let (object, timeout) = (self.0.clone(), seconds(timeout));
        Ok(agent()?.start(done, async move {
            let guard = object.acquire(raw::fresh_owner(), timeout).run().await?;
            Ok::<_, syncd_client::AcquireError>(AsyncHold(Mutex::new(Some(guard))))
        }))
    }

    /// Gives True: a permit that is nobody's.
    fn acquire_unowned(&self, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let (object, timeout) = (self.0.clone(), seconds(timeout));
        Ok(agent()?.start(done, async move {
            object.acquire_unowned(raw::fresh_owner(), timeout).run().await.map(|()| true)
        }))
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        agent()?.run(py, self.0.release(raw::fresh_owner()).run())
    }

    /// Gives the hold back, which is void meanwhile, and whether there was a notify.
    fn wait(
        &self,
        hold: &Bound<'_, AsyncHold>,
        timeout: Option<f64>,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let (condition, timeout) = (self.0.condition(), seconds(timeout));
        let Some(mut guard) = lock(&hold.get().0).take() else {
            return Err(PyAssertionError::new_err("the lock is not held"));
        };
        Ok(agent()?.start(done, async move {
            let outcome = match timeout {
                Some(timeout) => condition.wait_timeout(&mut guard, timeout).await?,
                None => condition.wait(&mut guard).await.map(|()| WaitOutcome::Notified)?,
            };
            let hold = AsyncHold(Mutex::new(Some(guard)));
            Ok::<_, syncd_client::ConditionError>((hold, !outcome.timed_out()))
        }))
    }

    /// Wakes so many, or all if that is 0.
    fn notify(&self, py: Python<'_>, hold: &Bound<'_, AsyncHold>, n: u32) -> PyResult<u32> {
        let condition = self.0.condition();
        // Out of the mutex for the time: who needs the GIL for it must not wait for us.
        let Some(guard) = lock(&hold.get().0).take() else {
            return Err(PyAssertionError::new_err("lock is not owned"));
        };
        let notified = agent()?.run(py, async {
            match n {
                0 => condition.notify_all(&guard).await,
                n => condition.notify(&guard, n).await,
            }
        });
        *lock(&hold.get().0) = Some(guard);
        notified
    }

    /// Gives whether it was set in time.
    fn event_wait(&self, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let (event, timeout) = (self.0.event(), seconds(timeout));
        Ok(agent()?.start(done, async move {
            match timeout {
                Some(timeout) => event.wait_timeout(timeout).await.map(|how| !how.timed_out()),
                None => event.wait().await.map(|()| true),
            }
        }))
    }

    /// Gives the party's number, and the AsyncAction if it is this party's.
    fn barrier_wait(
        &self,
        timeout: Option<f64>,
        has_action: bool,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let (barrier, timeout) = (self.0.barrier(), seconds(timeout));
        Ok(agent()?.start(done, async move {
            let arrival = Object::arrive(&barrier, raw::fresh_owner(), timeout, has_action);
            let (index, action) = arrival.run().await?;
            let action = action.map(|action| AsyncAction(Mutex::new(Some(action))));
            Ok::<_, syncd_client::BarrierError>((index, action))
        }))
    }
}
