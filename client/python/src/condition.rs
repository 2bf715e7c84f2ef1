//! Condition, Event and Barrier.

use pyo3::{exceptions::PyValueError, prelude::*};
use syncd_client::{
    CreateError, WaitOutcome,
    proto::v1::{BarrierSpec, ConditionSpec, EventSpec, create::Spec},
    raw::{self, Object},
};

use crate::{
    failure::Failure,
    semlock::SemLock,
    wait::{Proxy, seconds},
};

#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct Condition {
    proxy: Proxy,
    lock: Py<SemLock>,
}

#[pymethods]
impl Condition {
    #[new]
    fn create(py: Python<'_>, lock: Py<SemLock>, name: &str) -> PyResult<Self> {
        let Proxy { client, object } = lock.get().proxy.clone();
        let options = if name.is_empty() { client.anonymous() } else { client.object(name) };
        let spec = Spec::Condition(ConditionSpec { lock: 0 });
        let proxy = Proxy { client, object: object.clone() };
        let object = proxy.get(py, Object::create(options, spec, Some(&object)))?;
        Ok(Self { proxy: Proxy { object, ..proxy }, lock })
    }

    #[staticmethod]
    fn attach(py: Python<'_>, lock: Py<SemLock>, token: &str) -> PyResult<Self> {
        Ok(Self { proxy: Proxy::attach(py, token)?, lock })
    }

    /// Waits for a notify, in the thread that holds the lock; returns whether there was one. When it
    /// returns, or raises because a signal handler raised, the lock is held again. If the session or
    /// the lock is lost, it isn't.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let lock = self.lock.get();
        let condition = self.proxy.object.condition();
        let mut suspended = lock.suspend()?;
        let wait = Object::wait(&condition, &mut suspended.guard, seconds(timeout));
        let waited = self.proxy.wait(py, wait);
        match waited {
            Ok(Ok(outcome)) => {
                lock.resume(py, suspended)?;
                Ok(outcome == WaitOutcome::Notified)
            }
            Ok(Err(error)) => {
                // Valid if the daemon refused the wait; else the lock was lost during it.
                if suspended.guard.is_valid() {
                    lock.resume(py, suspended)?;
                }
                Err(Failure::from(error).into())
            }
            Err(raised) => {
                lock.resume(py, suspended)?;
                Err(raised)
            }
        }
    }

    /// Notifies the `n` oldest waiters, or all if `n` is 0.
    fn notify(&self, py: Python<'_>, n: u32) -> PyResult<u32> {
        self.proxy.get(py, self.proxy.object.notify(raw::owner(), n))
    }

    fn waiters(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.proxy.get(py, self.proxy.object.query())?.waiters)
    }

    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        self.proxy.get(py, self.proxy.object.handle()).map(drop)
    }

    #[getter]
    fn token(&self) -> String {
        self.proxy.token()
    }

    #[getter]
    fn label(&self) -> Option<&str> {
        self.proxy.name()
    }
}

#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct Event(Proxy);

#[pymethods]
impl Event {
    #[new]
    fn create(py: Python<'_>, name: &str, namespace: Option<&str>) -> PyResult<Self> {
        let made =
            Proxy::create(py, name, namespace, Spec::Event(EventSpec {}), |options| options)?;
        Ok(Self(made.map_err(Failure::from)?))
    }

    #[staticmethod]
    fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let proxy = Proxy::attach(py, token)?;
        match proxy.object.spec() {
            Some(Spec::Event(_)) => Ok(Self(proxy)),
            _ => Err(other_kind("an Event", token)),
        }
    }

    fn set(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get(py, Object::set(&self.0.object.event())).map(drop)
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get(py, Object::clear(&self.0.object.event()))
    }

    fn is_set(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.0.get(py, self.0.object.query())?.value != 0)
    }

    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let event = self.0.object.event();
        let wait = Object::wait_set(&event, raw::owner(), seconds(timeout));
        Ok(self.0.get(py, wait)? == WaitOutcome::Notified)
    }

    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get(py, self.0.object.handle()).map(drop)
    }

    #[getter]
    fn token(&self) -> String {
        self.0.token()
    }

    #[getter]
    fn label(&self) -> Option<&str> {
        self.0.name()
    }
}

#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct Barrier {
    proxy: Proxy,
    #[pyo3(get)]
    parties: u32,
}

#[pymethods]
impl Barrier {
    #[new]
    fn create(py: Python<'_>, parties: u32, name: &str, namespace: Option<&str>) -> PyResult<Self> {
        let spec = Spec::Barrier(BarrierSpec { parties });
        let made: Result<Proxy, CreateError> =
            Proxy::create(py, name, namespace, spec, |options| options)?;
        Ok(Self { proxy: made.map_err(Failure::from)?, parties })
    }

    #[staticmethod]
    fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let proxy = Proxy::attach(py, token)?;
        match proxy.object.spec() {
            Some(&Spec::Barrier(BarrierSpec { parties })) => Ok(Self { proxy, parties }),
            _ => Err(other_kind("a Barrier", token)),
        }
    }

    /// Waits for the other parties; the last to arrive calls its `action`, if it has one.
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        action: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u32> {
        let barrier = self.proxy.object.barrier();
        let arrival = Object::arrive(&barrier, raw::owner(), seconds(timeout), action.is_some());
        let (index, asked) = self.proxy.get(py, arrival)?;
        if let (Some(asked), Some(action)) = (asked, action) {
            action.call0()?;
            self.proxy.get(py, asked.done())?;
        }
        Ok(index)
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.proxy.get(py, Object::reset(&self.proxy.object.barrier()))
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        self.proxy.get(py, Object::abort(&self.proxy.object.barrier()))
    }

    /// The number of waiting parties, and whether the barrier is broken.
    fn state(&self, py: Python<'_>) -> PyResult<(u32, bool)> {
        let state = self.proxy.get(py, self.proxy.object.query())?;
        Ok((state.value, state.broken))
    }

    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        self.proxy.get(py, self.proxy.object.handle()).map(drop)
    }

    #[getter]
    fn token(&self) -> String {
        self.proxy.token()
    }

    #[getter]
    fn label(&self) -> Option<&str> {
        self.proxy.name()
    }
}

fn other_kind(kind: &str, token: &str) -> PyErr {
    PyValueError::new_err(format!("the token doesn't name {kind}: {token}"))
}
