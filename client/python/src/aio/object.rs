//! An object of any kind for the asyncio classes: created at its first use, with one method for each
//! call. Each method takes a callback `done(result, error)`; its doc says what the result is.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use pyo3::{exceptions::PyAssertionError, prelude::*};
use syncd_client::{
    Client, Token, WaitOutcome,
    proto::v1::create::Spec,
    raw::{self, Action, Object},
};
use tokio::sync::OnceCell;

use super::{AsyncCall, agent, hold::AsyncHold, lock};
use crate::{
    failure::{Failure, lost_by_fork},
    kind::spec,
    wait::seconds,
};

/// How often a wait in this thread checks for signals.
const SIGNALS: Duration = Duration::from_millis(50);

/// The turn of a Barrier's last party to run its action.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncAction(Mutex<Option<Action>>);

#[pymethods]
impl AsyncAction {
    /// Reports whether the action succeeded.
    fn done(&self, ok: bool, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let action = lock(&self.0).take();
        Ok(agent()?.start(done, async move {
            match action.filter(|_| ok) {
                Some(action) => Ok(action.done().run().await?),
                None => Ok(()),
            }
        }))
    }
}

/// An object that is created or attached to at its first use.
struct Remote {
    generation: u32,
    client: Client,
    source: Source,
    object: OnceCell<Object>,
}

enum Source {
    Create { name: String, spec: Spec, lock: Option<Arc<Remote>> },
    Attach(Token),
}

impl Remote {
    fn get(self: &Arc<Self>) -> Pin<Box<dyn Future<Output = Result<Object, Failure>> + Send>> {
        let remote = self.clone();
        Box::pin(async move {
            if let Some(object) = remote.object.get() {
                return Ok(object.clone());
            }
            if remote.generation != raw::generation() {
                // This would create another object than the parent's.
                return Err(lost_by_fork());
            }
            remote.object.get_or_try_init(|| remote.make()).await.cloned()
        })
    }

    async fn make(&self) -> Result<Object, Failure> {
        let Self { client, source, .. } = self;
        match source {
            Source::Attach(token) => Ok(Object::attach(client, token).run().await?),
            Source::Create { name, spec, lock } => {
                let options = match &**name {
                    "" => client.anonymous(),
                    name => client.object(name),
                };
                let lock = match lock {
                    Some(lock) => Some(lock.get().await?),
                    None => None,
                };
                Ok(Object::create(options, *spec, lock.as_ref()).run().await?)
            }
        }
    }
}

/// An object of any kind, in one of the agent's sessions.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncObject(Arc<Remote>);

impl AsyncObject {
    fn start<T, F>(
        &self,
        done: Py<PyAny>,
        call: impl FnOnce(Object) -> F + Send + 'static,
    ) -> PyResult<AsyncCall>
    where
        T: for<'py> IntoPyObject<'py> + Send,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let remote = self.0.clone();
        Ok(agent()?.start(done, async move { call(remote.get().await?).await }))
    }
}

#[pymethods]
impl AsyncObject {
    /// An object that is got or created at its first use.
    #[staticmethod]
    fn create(
        py: Python<'_>,
        kind: &str,
        value: i64,
        name: &str,
        namespace: Option<&str>,
        lock: Option<&Bound<'_, AsyncObject>>,
    ) -> PyResult<Self> {
        let lock = lock.map(|lock| lock.get().0.clone());
        let client = match &lock {
            Some(lock) => lock.client.clone(),
            None => agent()?.client(py, namespace, None)?,
        };
        let source = Source::Create { name: name.to_owned(), spec: spec(kind, value)?, lock };
        let (generation, object) = (raw::generation(), OnceCell::new());
        Ok(Self(Arc::new(Remote { generation, client, source, object })))
    }

    /// An object that is attached to at its first use.
    #[staticmethod]
    fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let token: Token = token.parse().map_err(|error| Failure::value(&error))?;
        let client = agent()?.client(py, None, Some(&token))?;
        let (generation, source) = (raw::generation(), Source::Attach(token));
        Ok(Self(Arc::new(Remote { generation, client, source, object: OnceCell::new() })))
    }

    /// Creates the object or attaches to it, if that hasn't been done.
    fn open(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |_| async { Ok(()) })
    }

    /// The token by which another process attaches. Waits for the daemon if the object isn't created
    /// yet.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<String> {
        match (&self.0.source, self.0.object.get()) {
            (_, Some(object)) => Ok(object.token().to_string()),
            (Source::Attach(token), None) => Ok(token.to_string()),
            (Source::Create { .. }, None) => {
                let remote = self.0.clone();
                let (tell, told) = mpsc::channel();
                agent()?.handle.spawn(async move { tell.send(remote.get().await) });
                let told = Mutex::new(told);
                loop {
                    match py.detach(|| lock(&told).recv_timeout(SIGNALS)) {
                        Ok(made) => return Ok(made?.token().to_string()),
                        Err(_) => py.check_signals()?,
                    }
                }
            }
        }
    }

    /// Result: an AsyncHold.
    fn acquire(&self, owner: u64, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            Ok(AsyncHold::new(object.acquire(owner, timeout).run().await?))
        })
    }

    /// Takes an unowned permit. Result: True.
    fn acquire_unowned(
        &self,
        owner: u64,
        timeout: Option<f64>,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            object.acquire_unowned(owner, timeout).run().await?;
            Ok(true)
        })
    }

    /// Releases without a token. Result: None.
    fn release(&self, owner: u64, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, move |object| async move { Ok(object.release(owner).run().await?) })
    }

    /// Result: whether there was a notify. The hold is void during the wait.
    fn wait(
        &self,
        hold: &Bound<'_, AsyncHold>,
        timeout: Option<f64>,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        let Some(mut loan) = hold.get().lend() else {
            return Err(PyAssertionError::new_err("the lock is not held"));
        };
        self.start(done, move |object| async move {
            let condition = object.condition();
            let Some(guard) = loan.guard() else { return Ok(false) };
            let waited = Object::wait(&condition, guard, timeout).run().await;
            drop(loan);
            Ok(waited? == WaitOutcome::Notified)
        })
    }

    /// Notifies the `n` oldest waiters, or all if `n` is 0; keeps the hold until then. Result: how
    /// many were notified.
    fn notify(
        &self,
        owner: u64,
        hold: &Bound<'_, AsyncHold>,
        n: u32,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let need = hold.get().need();
        self.start(done, move |object| async move {
            let notified = object.notify(owner, n).run().await;
            drop(need);
            Ok(notified?)
        })
    }

    fn set(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move {
            Object::set(&object.event()).run().await?;
            Ok(())
        })
    }

    fn clear(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move { Ok(Object::clear(&object.event()).run().await?) })
    }

    /// Result: whether the event was set in time.
    fn event_wait(&self, owner: u64, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            let event = object.event();
            let waited = Object::wait_set(&event, owner, timeout).run().await?;
            Ok(waited == WaitOutcome::Notified)
        })
    }

    /// Result: the party's index, and an AsyncAction if this party has to run its action.
    fn barrier_wait(
        &self,
        owner: u64,
        timeout: Option<f64>,
        has_action: bool,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            let barrier = object.barrier();
            let arrival = Object::arrive(&barrier, owner, timeout, has_action);
            let (index, action) = arrival.run().await?;
            Ok((index, action.map(|action| AsyncAction(Mutex::new(Some(action))))))
        })
    }

    fn reset(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move { Ok(Object::reset(&object.barrier()).run().await?) })
    }

    fn abort(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move { Ok(Object::abort(&object.barrier()).run().await?) })
    }

    /// Result: value, number of waiters, whether a Barrier is broken, holders.
    fn query(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move {
            let state = object.query().run().await?;
            let holders = Python::attach(|py| crate::failure::holders(py, state.holders))?;
            Ok((state.value, state.waiters, state.broken, holders))
        })
    }
}
