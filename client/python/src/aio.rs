//! asyncio's half: each call is a task in a thread of this process's, and its end is told to
//! whoever asked. Nothing here waits for the daemon, but [`AsyncObject::token`].

mod hold;
mod object;

use std::{
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use pyo3::{exceptions::PyOSError, prelude::*};
use syncd_client::{Client, Token, raw};
use tokio::{runtime::Handle, task::AbortHandle};

pub(crate) use hold::AsyncHold;
pub(crate) use object::{AsyncAction, AsyncObject};

use crate::{
    failure::Failure,
    wait::{Clients, client_among},
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

/// A number as an owner that nobody else has.
#[pyfunction]
pub(crate) fn fresh_owner() -> u64 {
    raw::fresh_owner()
}
