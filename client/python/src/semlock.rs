//! SemLock: the type under multiprocessing's locks and semaphores. It has the interface of CPython's
//! `_multiprocessing.SemLock` (Modules/_multiprocessing/semaphore.c), and some methods more.
//!
//! The [`Books`] are changed only with the GIL held, and before a release is sent, so that a thread
//! that acquires after the release finds them up to date.

use std::sync::MutexGuard;

use pyo3::{
    exceptions::{PyAssertionError, PyFileExistsError, PyValueError},
    prelude::*,
    types::{PyTuple, PyType},
};
use syncd_client::{
    AcquireError, CreateError, LockGuard, ReleaseError,
    proto::v1::{SemLockClass, SemLockSpec, State, create::Spec},
    raw::{self, Object},
};

use crate::{
    books::{Books, Shelf, Suspended},
    failure::{Failure, abandonment, holders, report},
    kind::spec,
    wait::{Proxy, client, seconds, wait},
};

const RECURSIVE_MUTEX: i32 = 0;
const SEMAPHORE: i32 = 1;

/// The suffix of the names that `install()` makes for a Lock. By value and maximum alone a Lock can't
/// be told from the semaphore of a queue for one item, which one process acquires and another
/// releases.
const LOCK: &str = "-lock";

/// The error of a release whose hold is gone.
const GONE: &str =
    "the lock or permit is no longer held: it was released by force or by another owner";

#[pyclass(subclass, frozen, module = "_multiprocessing")]
pub(crate) struct SemLock {
    pub(crate) proxy: Proxy,
    kind: i32,
    class: SemLockClass,
    maxvalue: i32,
    /// Whether the initial value is so far below the maximum that no release can exceed it: then
    /// releases don't wait for a reply.
    roomy: bool,
    /// The name by which `_rebuild` finds the object.
    name: Option<String>,
    /// Whether a with-block takes an owned permit of a semaphore.
    owning: bool,
    shelf: Shelf,
}

impl SemLock {
    fn new(proxy: Proxy, spec: SemLockSpec, name: Option<String>, owning: bool) -> Self {
        let class = spec.class();
        let kind = if class == SemLockClass::Rlock { RECURSIVE_MUTEX } else { SEMAPHORE };
        let maxvalue = match (spec.max, class) {
            (0, SemLockClass::Lock | SemLockClass::Rlock) => 1,
            (0, SemLockClass::BoundedSemaphore) => spec.value.cast_signed(),
            (0, _) => i32::MAX,
            (max, _) => max.cast_signed(),
        };
        let roomy = class == SemLockClass::Semaphore
            && maxvalue.cast_unsigned().saturating_sub(spec.value) > i32::MAX.cast_unsigned() / 2;
        let shelf = Shelf::new(proxy.token());
        Self { proxy, kind, class, maxvalue, roomy, name, owning, shelf }
    }

    fn is_exclusive(&self) -> bool {
        matches!(self.class, SemLockClass::Lock | SemLockClass::Rlock)
    }

    /// Whether a with-block takes a hold, rather than an unowned permit.
    fn is_owned(&self) -> bool {
        self.owning || self.is_exclusive()
    }

    /// Locks the books. While they are locked, don't release the GIL or run Python code.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.shelf.books()
    }

    /// Whether the calling thread holds the object, according to its books.
    pub(crate) fn is_mine(&self) -> bool {
        let books = self.books();
        books.count > 0
            && books.last == raw::owner()
            && (!self.is_exclusive() || books.holds.last().is_some_and(|(_, held)| held.is_valid()))
    }

    fn take(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        owned: bool,
    ) -> PyResult<Result<(), AcquireError>> {
        let Self { proxy, .. } = self;
        if self.kind == RECURSIVE_MUTEX && self.is_mine() {
            self.books().count += 1;
            return Ok(Ok(()));
        }
        let (owner, timeout) = (raw::owner(), seconds(timeout));
        if !owned {
            let taken = proxy.wait(py, proxy.object.acquire_unowned(owner, timeout))?;
            return Ok(taken.map(|()| self.books().enter(owner, None)));
        }
        match proxy.wait(py, proxy.object.acquire(owner, timeout))? {
            Ok(guard) => self.enter(py, owner, guard, None).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Records a hold; warns if it has an abandonment.
    fn enter(
        &self,
        py: Python<'_>,
        owner: u64,
        guard: LockGuard,
        count: Option<i32>,
    ) -> PyResult<()> {
        if let Some(left) = guard.abandoned() {
            // A filter may turn the warning into an error, which drops the guard.
            report(py)?.call_method1("warn", (abandonment(py, left)?, self.proxy.name()))?;
        }
        let mut books = self.books();
        if self.is_exclusive() {
            // Other holds in the books were released by force.
            books.holds.clear();
            books.count = count.unwrap_or(1) - 1;
        }
        books.enter(owner, Some(guard));
        Ok(())
    }

    /// Takes the calling thread's hold out of the books, for a Condition's wait.
    pub(crate) fn suspend(&self) -> PyResult<Suspended> {
        let mut books = self.books();
        let (_, guard) = books.holds.pop().ok_or_else(|| PyAssertionError::new_err("not held"))?;
        Ok(Suspended { guard, count: std::mem::take(&mut books.count) })
    }

    /// Puts the hold back; if the guard is void, acquires the lock again.
    pub(crate) fn resume(&self, py: Python<'_>, suspended: Suspended) -> PyResult<()> {
        let Suspended { guard, count } = suspended;
        let owner = raw::owner();
        let guard = match guard.is_valid() {
            true => guard,
            false => self.proxy.get(py, self.proxy.object.acquire(owner, None))?,
        };
        self.enter(py, owner, guard, Some(count))
    }

    fn try_take(&self, py: Python<'_>, timeout: Option<f64>, owned: bool) -> PyResult<bool> {
        match self.take(py, timeout, owned)? {
            Ok(()) => Ok(true),
            Err(AcquireError::TimedOut { .. }) => Ok(false),
            Err(error) => Err(Failure::from(error).into()),
        }
    }

    fn state(&self, py: Python<'_>) -> PyResult<State> {
        self.proxy.get(py, self.proxy.object.query())
    }

    /// Releases a hold of this object, preferably the calling thread's; returns whether there was
    /// one.
    ///
    /// # Errors
    /// ValueError if the hold is gone. A release without a token would then end another owner's
    /// hold.
    fn end_hold(&self, py: Python<'_>) -> PyResult<bool> {
        let mut books = self.books();
        let mine = books.holds.iter().rposition(|(owner, _)| *owner == raw::owner());
        let Some(at) = mine.or(books.holds.len().checked_sub(1)) else { return Ok(false) };
        let (_, guard) = books.holds.remove(at);
        books.count -= 1;
        drop(books);
        give_back(py, guard).map(|()| true)
    }

    /// Releases without a token.
    fn release_bare(&self, py: Python<'_>) -> PyResult<()> {
        let Proxy { object, .. } = &self.proxy;
        self.books().count -= 1;
        if self.roomy {
            return self.proxy.get(py, object.release_quietly(raw::owner()));
        }
        let released = self.proxy.wait(py, object.release(raw::owner()))?;
        if let Err(ReleaseError::OverReleased(_)) = &released {
            self.books().count += 1;
        }
        Ok(released.map_err(Failure::from)?)
    }

    /// Records that a with-block is entered, if the acquire succeeded.
    fn enter_block<T>(&self, entered: PyResult<T>) -> PyResult<T> {
        if entered.is_ok() {
            self.books().enter_block(raw::owner());
        }
        entered
    }
}

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: i32 = i32::MAX;

    #[new]
    fn create(
        py: Python<'_>,
        kind: i32,
        value: i32,
        maxvalue: i32,
        name: &str,
        unlink: bool,
    ) -> PyResult<Self> {
        if kind != RECURSIVE_MUTEX && kind != SEMAPHORE {
            return Err(PyValueError::new_err("unrecognized kind"));
        }
        let invalid = || Failure::invalid("Invalid argument");
        let (initial, max) = (u32::try_from(value), u32::try_from(maxvalue));
        let (initial, max) = (initial.map_err(|_| invalid())?, max.map_err(|_| invalid())?);
        let class = match (kind, initial, max) {
            (RECURSIVE_MUTEX, 1, 1) => SemLockClass::Rlock,
            (SEMAPHORE, 1, 1) if name.ends_with(LOCK) => SemLockClass::Lock,
            (_, value, max) if value == max => SemLockClass::BoundedSemaphore,
            (_, _, 0) => return Err(invalid()),
            _ => SemLockClass::Semaphore,
        };
        let spec = SemLockSpec { class: class.into(), value: initial, max };
        let name = path(name)?;
        let exists = || PyFileExistsError::new_err((17, "File exists", name.clone()));
        if unlink {
            // Anonymous instead of named and unlinked: the daemon keeps an anonymous object for a
            // while, so that a forked child can attach after its parent has detached.
            let client = client(py, None, None)?;
            match wait(py, Object::find(&client, &name))? {
                Ok(_) => return Err(exists()),
                Err(CreateError::NotFound(_)) => {}
                Err(error) => return Err(Failure::from(error).into()),
            }
        }
        let given = if unlink { "" } else { &name };
        match Proxy::create(py, given, None, Spec::SemLock(spec), |options| options.exclusive())? {
            Ok(proxy) => {
                Ok(Self { kind, ..Self::new(proxy, spec, (!unlink).then_some(name), false) })
            }
            Err(CreateError::Exists(_)) => Err(exists()),
            Err(error) => Err(Failure::from(error).into()),
        }
    }

    /// Creates a lock or semaphore of the package's classes.
    #[staticmethod]
    fn make(
        py: Python<'_>,
        class: &str,
        value: i64,
        name: &str,
        namespace: Option<&str>,
    ) -> PyResult<Self> {
        let Spec::SemLock(spec) = spec(class, value)? else {
            return Err(Failure::invalid("Invalid argument"));
        };
        let made = Proxy::create(py, name, namespace, Spec::SemLock(spec), |options| options)?;
        let proxy = made.map_err(Failure::from)?;
        Ok(Self::new(proxy, spec, None, true))
    }

    /// Attaches to a lock or semaphore of the package's classes.
    #[staticmethod]
    fn attach(py: Python<'_>, class: &str, token: &str) -> PyResult<Self> {
        let proxy = Proxy::attach(py, token)?;
        match proxy.object.spec() {
            Some(&Spec::SemLock(spec)) if class == name_of(spec.class()) => {
                Ok(Self::new(proxy, spec, None, true))
            }
            _ => Err(PyValueError::new_err(format!("the token doesn't name a {class}: {token}"))),
        }
    }

    #[classmethod]
    #[pyo3(signature = (handle, kind, maxvalue, name, /))]
    fn _rebuild(
        class: &Bound<'_, PyType>,
        handle: i64,
        kind: i32,
        maxvalue: i32,
        name: Option<&str>,
    ) -> PyResult<Self> {
        // The daemon has the maximum, and a handle is only valid in its own session.
        let (py, _) = (class.py(), (handle, maxvalue));
        let name = path(name.unwrap_or_default())?;
        let client = client(py, None, None)?;
        let object = wait(py, Object::find(&client, &name))?.map_err(Failure::from)?;
        let Some(&Spec::SemLock(spec)) = object.spec() else {
            return Err(Failure::invalid("not a semaphore"));
        };
        Ok(Self { kind, ..Self::new(Proxy { client, object }, spec, Some(name), false) })
    }

    #[pyo3(signature = (block = None, timeout = None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let block = block.map_or(Ok(true), |block| block.is_truthy())?;
        let timeout = if block { timeout } else { Some(0.0) };
        self.try_take(py, timeout, self.is_exclusive())
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.kind == RECURSIVE_MUTEX {
            if !self.is_mine() {
                let text = "attempt to release recursive lock not owned by thread";
                return Err(PyAssertionError::new_err(text));
            }
            let mut books = self.books();
            if books.count > 1 {
                books.count -= 1;
                return Ok(());
            }
        }
        if self.is_exclusive() && self.end_hold(py)? {
            return Ok(());
        }
        if self.is_exclusive()
            && let Some(guard) = self.shelf.take_from_another()
        {
            return give_back(py, guard);
        }
        self.release_bare(py)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter_block(self.try_take(py, None, self.is_owned()))
    }

    /// Releases what `__enter__` acquired. Does nothing in a forked child whose parent entered.
    ///
    /// # Errors
    /// If the hold is gone: ValueError, or AssertionError for an RLock.
    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        if self.books().leave_block(raw::owner()) {
            return Ok(());
        }
        if self.kind == RECURSIVE_MUTEX {
            return self.release(py);
        }
        match self.is_owned() {
            true if self.end_hold(py)? => Ok(()),
            true => Err(PyValueError::new_err(GONE)),
            // `__enter__` took an unowned permit.
            false => self.release_bare(py),
        }
    }

    /// As `__enter__`, but raises LockTimeout when the time-out expires.
    fn enter_within(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let taken = self.take(py, Some(timeout), self.is_owned())?;
        self.enter_block(taken.map_err(|error| Failure::from(error).into()))
    }

    fn _count(&self) -> i32 {
        self.books().count
    }

    fn _is_mine(&self) -> bool {
        self.is_mine()
    }

    fn _get_value(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.state(py)?.value)
    }

    fn _is_zero(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state(py)?.value == 0)
    }

    /// Attaches in a forked child, before the parent can detach and the object goes.
    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        self.handle(py).map(drop)
    }

    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<u32> {
        self.proxy.get(py, self.proxy.object.handle())
    }

    #[getter]
    fn kind(&self) -> i32 {
        self.kind
    }

    #[getter]
    fn maxvalue(&self) -> i32 {
        self.maxvalue
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn token(&self) -> String {
        self.proxy.token()
    }

    /// The name of an object of the package's classes.
    #[getter]
    fn label(&self) -> Option<&str> {
        self.proxy.name()
    }

    #[getter]
    fn fencing_token(&self) -> Option<u64> {
        self.books().holds.last().map(|(_, held)| held.fencing_token().get())
    }

    /// The abandonment that the newest hold was told of, if there was one.
    #[getter]
    fn abandoned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let left = self.books().holds.last().and_then(|(_, held)| held.abandoned().cloned());
        left.map(|left| abandonment(py, &left)).transpose()
    }

    fn locked_by(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        holders(py, self.state(py)?.holders)
    }
}

/// Releases a hold.
///
/// # Errors
/// ValueError if the hold is gone.
fn give_back(py: Python<'_>, guard: LockGuard) -> PyResult<()> {
    match raw::has_room(&guard) {
        Some(true) => drop(guard),
        // This waits for the daemon, so release the GIL.
        Some(false) => py.detach(|| drop(guard)),
        None => return Err(PyValueError::new_err(GONE)),
    }
    Ok(())
}

fn name_of(class: SemLockClass) -> &'static str {
    match class {
        SemLockClass::Lock => "Lock",
        SemLockClass::Rlock => "RLock",
        SemLockClass::BoundedSemaphore => "BoundedSemaphore",
        _ => "Semaphore",
    }
}

/// A POSIX semaphore's name, with a leading slash.
fn path(name: &str) -> PyResult<String> {
    match name.trim_start_matches('/') {
        name if name.is_empty() || name.contains(['/', '\0']) || name.len() > 250 => {
            Err(Failure::invalid("Invalid argument"))
        }
        name => Ok(format!("/{name}")),
    }
}

/// Frees the name of a SemLock. Processes that are attached stay attached.
#[pyfunction]
pub(crate) fn sem_unlink(py: Python<'_>, name: &str) -> PyResult<()> {
    let (client, name) = (client(py, None, None)?, path(name)?);
    Ok(wait(py, raw::unlink(&client, &name))?.map_err(Failure::from)?)
}
