//! The same objects for asyncio: each call is a task in a thread of this process's, and its end
//! is told to whoever asked. Nothing in here waits for the daemon, but [`AsyncObject::token`].
//! Never here: event loops.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use pyo3::{
    exceptions::{PyAssertionError, PyOSError},
    prelude::*,
};
use syncd_client::{
    Client, LockGuard, Token, WaitOutcome,
    proto::v1::create::Spec,
    raw::{self, Action, Object},
};
use tokio::{runtime::Handle, sync::OnceCell, task::AbortHandle};

use crate::{
    failure::{Failure, abandonment, lost_by_fork},
    kind::spec,
    wait::{Clients, client_among, seconds},
};

/// The thread of this process. A forked child has none of its parent's, and makes its own.
struct Agent {
    generation: u32,
    handle: Handle,
    clients: Mutex<Clients>,
    /// Whether the interpreter is about to end. Locked by the agent while it is in Python, where
    /// it would not survive that.
    is_over: Mutex<bool>,
}

/// How often a wait in this thread looks for signals.
const SIGNALS: Duration = Duration::from_millis(50);

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
    let generation = raw::generation();
    let made = Agent { generation, handle, clients: Mutex::default(), is_over: Mutex::default() };
    Ok(agent.insert(Box::leak(Box::new(made))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Makes a call in the agent's thread, and calls `done(result, error)` from there. Calls are
    /// made in the order of their starts.
    fn start<T>(
        &'static self,
        done: Py<PyAny>,
        call: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> AsyncCall
    where
        T: for<'py> IntoPyObject<'py> + Send,
    {
        let task = self.handle.spawn(async move {
            let result = call.await;
            let is_over = lock(&self.is_over);
            if *is_over {
                return;
            }
            // None: the interpreter is gone, and with it who waits.
            Python::try_attach(|py| {
                let told = match result {
                    Ok(result) => done.call1(py, (result, py.None())),
                    Err(error) => done.call1(py, (py.None(), PyErr::from(error))),
                };
                if let Err(error) = told {
                    error.write_unraisable(py, None);
                }
            });
        });
        AsyncCall { generation: self.generation, task: task.abort_handle() }
    }

    fn client(
        &self,
        py: Python<'_>,
        namespace: Option<&str>,
        token: Option<&Token>,
    ) -> PyResult<Client> {
        client_among(&self.clients, py, namespace, token)
    }
}

/// Sends what is still to be sent, for as long as `limit`, and ends the agent's part in Python.
pub(crate) fn end(py: Python<'_>, limit: Duration) {
    let Some(agent) = *lock(&AGENT) else { return };
    if agent.generation != raw::generation() {
        return;
    }
    let clients: Vec<Client> = lock(&agent.clients).values().cloned().collect();
    let (tell, told) = mpsc::channel();
    // Behind all that was started before.
    agent.handle.spawn(async move {
        for client in clients {
            // Who lost releases is told of it by the calls that come after; here there are none.
            let _ = client.flush().await;
        }
        tell.send(())
    });
    py.detach(move || {
        let _ = told.recv_timeout(limit);
        *lock(&agent.is_over) = true;
    });
}

/// A call under way.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncCall {
    generation: u32,
    task: AbortHandle,
}

#[pymethods]
impl AsyncCall {
    /// Withdraws it: what is granted meanwhile is given back.
    fn cancel(&self) {
        // A forked child's parent may be amid it.
        if self.generation == raw::generation() {
            self.task.abort();
        }
    }
}

/// Something held. When it goes, it is released.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncHold {
    generation: u32,
    held: Arc<Mutex<Held>>,
}

struct Held {
    guard: Option<LockGuard>,
    /// How many calls need it still: it is released after the last of them.
    needed: u32,
    /// Whether a wait has the guard.
    is_lent: bool,
    is_over: bool,
}

impl AsyncHold {
    fn new(guard: LockGuard) -> Self {
        let held = Held { guard: Some(guard), needed: 0, is_lent: false, is_over: false };
        Self { generation: raw::generation(), held: Arc::new(Mutex::new(held)) }
    }

    /// None in a forked child of the process whose hold it is: there the mutex may be locked.
    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        (self.generation == raw::generation()).then(|| lock(&self.held))
    }
}

#[pymethods]
impl AsyncHold {
    /// Releases it; tells whether it was still held. Sends at once, and doesn't wait.
    fn release(&self) -> bool {
        let Some(mut held) = self.held() else { return false };
        if held.needed > 0 || held.is_lent {
            held.is_over = true;
            return held.guard.as_ref().is_some_and(|guard| guard.is_valid());
        }
        let guard = held.guard.take();
        drop(held);
        guard.is_some_and(|guard| guard.is_valid())
    }

    /// Whether it is a forked child's parent's.
    #[getter]
    fn is_inherited(&self) -> bool {
        self.generation != raw::generation()
    }

    /// Whether it is still held.
    #[getter]
    fn is_valid(&self) -> bool {
        let held = self.held();
        held.is_some_and(|held| held.guard.as_ref().is_some_and(|guard| guard.is_valid()))
    }

    #[getter]
    fn fencing_token(&self) -> Option<u64> {
        self.held()?.guard.as_ref().map(|guard| guard.fencing_token().get())
    }

    #[getter]
    fn abandoned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let held = self.held();
        let left = held.and_then(|held| held.guard.as_ref()?.abandoned().cloned());
        left.map(|left| abandonment(py, &left)).transpose()
    }
}

/// A call's need of a hold, for as long as it runs.
struct Need(Arc<Mutex<Held>>);

impl Need {
    fn new(held: &Arc<Mutex<Held>>) -> Self {
        lock(held).needed += 1;
        Self(held.clone())
    }
}

impl Drop for Need {
    fn drop(&mut self) {
        let mut held = lock(&self.0);
        held.needed -= 1;
        let over = held.needed == 0 && held.is_over;
        let guard = if over { held.guard.take() } else { None };
        drop(held);
        drop(guard);
    }
}

/// A guard that is lent to a wait, and comes back with its end.
struct Loan {
    guard: Option<LockGuard>,
    to: Arc<Mutex<Held>>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut held = lock(&self.to);
        held.is_lent = false;
        if !held.is_over {
            held.guard = self.guard.take();
        }
    }
}

/// What the last to come to a Barrier has to do.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncAction(Mutex<Option<Action>>);

#[pymethods]
impl AsyncAction {
    /// Says how it went: well, or not.
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

/// An object that is created or attached to when it is first used.
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
                // The parent's would be another object.
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

/// An object of any kind, in a session of the agent's.
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
    /// Gets or creates one, when it is first used or opened.
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

    /// Attaches to one, when it is first used.
    #[staticmethod]
    fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let token: Token = token.parse().map_err(|error| Failure::value(&error))?;
        let client = agent()?.client(py, None, Some(&token))?;
        let (generation, source) = (raw::generation(), Source::Attach(token));
        Ok(Self(Arc::new(Remote { generation, client, source, object: OnceCell::new() })))
    }

    /// Creates it, if that hasn't been done.
    fn open(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |_| async { Ok(()) })
    }

    /// What another process attaches by. Waits for the daemon if it isn't created yet.
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

    /// Gives an AsyncHold.
    fn acquire(&self, owner: u64, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            Ok(AsyncHold::new(object.acquire(owner, timeout).run().await?))
        })
    }

    /// Gives True: a permit that is nobody's.
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

    /// Gives a permit that is nobody's.
    fn release(&self, owner: u64, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, move |object| async move { Ok(object.release(owner).run().await?) })
    }

    /// Gives whether there was a notify. The hold is void meanwhile.
    fn wait(
        &self,
        hold: &Bound<'_, AsyncHold>,
        timeout: Option<f64>,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let (to, timeout) = (hold.get().held.clone(), seconds(timeout));
        let guard = hold.get().held().and_then(|mut held| {
            held.is_lent = held.guard.is_some();
            held.guard.take()
        });
        let Some(guard) = guard else {
            return Err(PyAssertionError::new_err("the lock is not held"));
        };
        let mut loan = Loan { guard: Some(guard), to };
        self.start(done, move |object| async move {
            let condition = object.condition();
            let Some(guard) = &mut loan.guard else { return Ok(false) };
            let waited = Object::wait(&condition, guard, timeout).run().await;
            drop(loan);
            Ok(waited? == WaitOutcome::Notified)
        })
    }

    /// Wakes so many, or all if that is 0. The hold isn't released before.
    fn notify(
        &self,
        owner: u64,
        hold: &Bound<'_, AsyncHold>,
        n: u32,
        done: Py<PyAny>,
    ) -> PyResult<AsyncCall> {
        let need = Need::new(&hold.get().held);
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

    /// Gives whether it was set in time.
    fn event_wait(&self, owner: u64, timeout: Option<f64>, done: Py<PyAny>) -> PyResult<AsyncCall> {
        let timeout = seconds(timeout);
        self.start(done, move |object| async move {
            let event = object.event();
            let waited = Object::wait_set(&event, owner, timeout).run().await?;
            Ok(waited == WaitOutcome::Notified)
        })
    }

    /// Gives the party's number, and the AsyncAction if it is this party's.
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

    /// Gives its value, how many wait, whether it is broken, and who holds it.
    fn query(&self, done: Py<PyAny>) -> PyResult<AsyncCall> {
        self.start(done, |object| async move {
            let state = object.query().run().await?;
            let holders = Python::attach(|py| crate::failure::holders(py, state.holders))?;
            Ok((state.value, state.waiters, state.broken, holders))
        })
    }
}

/// A number as an owner that nobody else has.
#[pyfunction]
pub(crate) fn fresh_owner() -> u64 {
    raw::fresh_owner()
}
