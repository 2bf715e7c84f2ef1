//! The asyncio half: each call is a task in one background thread, the agent, which passes the
//! result to a callback. Only [`AsyncObject::token`] waits for the daemon.

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

/// This process's background thread. A forked child makes its own.
struct Agent {
    generation: u32,
    handle: Handle,
    clients: Mutex<Clients>,
    /// Whether the interpreter is finalizing. The agent holds the mutex while it runs Python code,
    /// which finalization would kill.
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
    /// Makes a call in the agent's thread, and calls `done(result, error)` there. Calls begin in
    /// the order of `start`.
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
            // None: the interpreter is gone, and its tasks with it.
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

/// Flushes the agent's clients, for at most `limit`; after that the agent runs no Python code.
pub(crate) fn end(py: Python<'_>, limit: Duration) {
    let Some(agent) = *lock(&AGENT) else { return };
    if agent.generation != raw::generation() {
        return;
    }
    let clients: Vec<Client> = lock(&agent.clients).values().cloned().collect();
    let (tell, told) = mpsc::channel();
    // Runs after all calls that were started before.
    agent.handle.spawn(async move {
        for client in clients {
            // Lost releases are reported by the next call, and there is none any more.
            let _ = client.flush().await;
        }
        tell.send(())
    });
    py.detach(move || {
        let _ = told.recv_timeout(limit);
        *lock(&agent.is_over) = true;
    });
}

/// A call in progress.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncCall {
    generation: u32,
    task: AbortHandle,
}

#[pymethods]
impl AsyncCall {
    /// Withdraws the call: what was granted meanwhile is given back.
    fn cancel(&self) {
        // In a forked child the call is the parent's.
        if self.generation == raw::generation() {
            self.task.abort();
        }
    }
}

/// An owner number that nobody else has.
#[pyfunction]
pub(crate) fn fresh_owner() -> u64 {
    raw::fresh_owner()
}
