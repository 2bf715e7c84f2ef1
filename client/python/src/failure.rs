//! Converts the client's errors to Python exceptions, and the daemon's reports to the package's
//! types.

use std::fmt::Display;

use pyo3::{
    exceptions::{
        PyAssertionError, PyFileExistsError, PyFileNotFoundError, PyOSError, PyValueError,
    },
    import_exception, intern,
    prelude::*,
};
use syncd_client::{
    Abandonment, AcquireError, BarrierError, ConditionError, CreateError, Holder, ReleaseError,
    SessionError, proto::v1,
};

import_exception!(syncd._report, Error);
import_exception!(syncd._report, NoDaemon);
import_exception!(syncd._report, SessionLost);
import_exception!(syncd._report, LockTimeout);
import_exception!(threading, BrokenBarrierError);

// These numbers are the same on every platform.
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

/// An exception to raise.
pub(crate) struct Failure(PyErr);

impl Failure {
    pub(crate) fn value(error: &impl Display) -> Self {
        Self(PyValueError::new_err(error.to_string()))
    }

    pub(crate) fn invalid(text: &str) -> PyErr {
        PyOSError::new_err((EINVAL, text.to_owned()))
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self(error)
    }
}

/// For an object in a forked child that its parent hadn't created before the fork.
pub(crate) fn lost_by_fork() -> Failure {
    let text =
        "the object was not created yet when this process was forked: await open() before the fork";
    Failure(Error::new_err(text))
}

impl From<Failure> for PyErr {
    fn from(Failure(error): Failure) -> Self {
        error
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        Self(match error {
            SessionError::Connect(_) => NoDaemon::new_err(text),
            SessionError::Lost(_) => SessionLost::new_err(text),
            _ => Error::new_err(text),
        })
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let text = error.to_string();
        Self(match error {
            CreateError::Session(error) => return error.into(),
            CreateError::Exists(_) => PyFileExistsError::new_err((EEXIST, text)),
            CreateError::NotFound(_) => PyFileNotFoundError::new_err((ENOENT, text)),
            _ => PyValueError::new_err(text),
        })
    }
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        let text = error.to_string();
        match error {
            AcquireError::Session(error) => error.into(),
            AcquireError::TimedOut { held_by, .. } => {
                Python::attach(|py| {
                    let holders =
                        held_by.iter().map(|held| holder(py, held)).collect::<PyResult<Vec<_>>>();
                    Self(holders.map_or_else(
                        |error| error,
                        |holders| LockTimeout::new_err((text, holders)),
                    ))
                })
            }
            _ => Self(Error::new_err(text)),
        }
    }
}

impl From<ReleaseError> for Failure {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::Session(error) => error.into(),
            ReleaseError::OverReleased(_) => {
                Self(PyValueError::new_err("semaphore or lock released too many times"))
            }
            error => Self(Error::new_err(error.to_string())),
        }
    }
}

impl From<ConditionError> for Failure {
    fn from(error: ConditionError) -> Self {
        match error {
            ConditionError::Session(error) => error.into(),
            error => Self(PyAssertionError::new_err(error.to_string())),
        }
    }
}

impl From<BarrierError> for Failure {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Session(error) => error.into(),
            error => Self(BrokenBarrierError::new_err(error.to_string())),
        }
    }
}

/// The Python module with the types and exceptions.
pub(crate) fn report(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import(intern!(py, "syncd._report"))
}

pub(crate) fn holder(py: Python<'_>, holder: &Holder) -> PyResult<Py<PyAny>> {
    let Holder { process, token, held, .. } = holder;
    let fields = (process.pid, &process.command, held.as_secs_f64(), token.get());
    Ok(report(py)?.getattr(intern!(py, "Holder"))?.call1(fields)?.unbind())
}

pub(crate) fn holders(
    py: Python<'_>,
    holders: impl IntoIterator<Item = v1::Holder>,
) -> PyResult<Vec<Py<PyAny>>> {
    holders.into_iter().map(|held| holder(py, &held.into())).collect()
}

pub(crate) fn abandonment<'py>(py: Python<'py>, left: &Abandonment) -> PyResult<Bound<'py, PyAny>> {
    let Abandonment { process, cause, held, ago, token, .. } = left;
    let fields = (
        process.pid,
        &process.command,
        cause.to_string(),
        held.as_secs_f64(),
        ago.as_secs_f64(),
        token.get(),
    );
    report(py)?.getattr(intern!(py, "Abandonment"))?.call1(fields)
}
