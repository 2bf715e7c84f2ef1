//! SemLock: what multiprocessing's locks and semaphores are made of, with the face of
//! `_multiprocessing.SemLock` and some more.
//!
//! Its [`Books`] are changed only with the GIL held, and before a release is sent: whoever learns
//! of the release finds them in order.

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
    books::{Books, Lent, Shelf},
    failure::{Failure, abandonment, holders, report},
    kind::spec,
    wait::{Proxy, client, seconds, wait},
};

const RECURSIVE_MUTEX: i32 = 0;
const SEMAPHORE: i32 = 1;

/// How a name ends that `install()` has made for a Lock: by value and maximum alone it can't be
/// told from the semaphore of a queue for one item, which is taken by one and given by another.
const LOCK: &str = "-lock";

/// What a release is told whose hold is gone.
const GONE: &str =
    "the lock or permit is gone: it was taken by force, or released by somebody else";

#[pyclass(subclass, frozen, module = "_multiprocessing")]
pub(crate) struct SemLock {
    pub(crate) proxy: Proxy,
    kind: i32,
    class: SemLockClass,
    maxvalue: i32,
    /// Whether it began so far below its maximum that no release will ever pass that: then none
    /// is waited for.
    roomy: bool,
    /// What it can be reopened by.
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

    /// Whether a with-block's hold is somebody's.
    fn is_owned(&self) -> bool {
        self.owning || self.is_exclusive()
    }

    /// Nothing in here may release the GIL or run Python code while it is borrowed.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.shelf.books()
    }

    /// Whether the calling thread has it, as far as this object's books go.
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

    /// Notes a hold; warns if it was abandoned before.
    fn enter(
        &self,
        py: Python<'_>,
        owner: u64,
        guard: LockGuard,
        count: Option<i32>,
    ) -> PyResult<()> {
        if let Some(left) = guard.abandoned() {
            // A filter may make an error of the warning: then the guard is dropped.
            report(py)?.call_method1("warn", (abandonment(py, left)?, self.proxy.name()))?;
        }
        let mut books = self.books();
        if self.is_exclusive() {
            // Whatever the books say else was taken away meanwhile.
            books.holds.clear();
            books.count = count.unwrap_or(1) - 1;
        }
        books.enter(owner, Some(guard));
        Ok(())
    }

    /// Takes the calling thread's hold out of the books.
    pub(crate) fn lend(&self) -> PyResult<Lent> {
        let mut books = self.books();
        let (_, guard) = books.holds.pop().ok_or_else(|| PyAssertionError::new_err("not held"))?;
        Ok(Lent { guard, count: std::mem::take(&mut books.count) })
    }

    /// Puts it back; if the guard is void, after taking the lock again.
    pub(crate) fn regain(&self, py: Python<'_>, Lent { guard, count }: Lent) -> PyResult<()> {
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

    /// Gives back a hold of this object, the caller's rather than another thread's; tells whether
    /// there was one.
    ///
    /// # Errors
    /// ValueError if the hold is gone, by force or by somebody else's release: a release now
    /// would be of whoever has it since.
    fn end_hold(&self, py: Python<'_>) -> PyResult<bool> {
        let mut books = self.books();
        let mine = books.holds.iter().rposition(|(owner, _)| *owner == raw::owner());
        let Some(at) = mine.or(books.holds.len().checked_sub(1)) else { return Ok(false) };
        let (_, guard) = books.holds.remove(at);
        books.count -= 1;
        drop(books);
        give_back(py, guard).map(|()| true)
    }

    /// Releases whatever a bare release does.
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

    /// Notes that a with-block is entered, if it is.
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
            // Anonymous, since a name that was unlinked doesn't linger: a forked child may come
            // to it when its parent has let go.
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

    /// A lock or semaphore of the package's own.
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

    /// Attaches to one of the package's own.
    #[staticmethod]
    fn attach(py: Python<'_>, class: &str, token: &str) -> PyResult<Self> {
        let proxy = Proxy::attach(py, token)?;
        match proxy.object.spec() {
            Some(&Spec::SemLock(spec)) if class == name_of(spec.class()) => {
                Ok(Self::new(proxy, spec, None, true))
            }
            _ => Err(PyValueError::new_err(format!("the token isn't a {class}'s: {token}"))),
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
        // The daemon knows better.
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

    /// Gives back what `__enter__` took. Does nothing in a forked child whose parent entered.
    ///
    /// # Errors
    /// ValueError if it is gone; AssertionError if it is an RLock.
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
            // What it took is nobody's.
            false => self.release_bare(py),
        }
    }

    /// As `__enter__`, but raises LockTimeout when the time is over.
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

    /// The books are this process's own already; but the parent may let go of the object before
    /// the child gets to it.
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

    /// The name of an object of the package's own.
    #[getter]
    fn label(&self) -> Option<&str> {
        self.proxy.name()
    }

    #[getter]
    fn fencing_token(&self) -> Option<u64> {
        self.books().holds.last().map(|(_, held)| held.fencing_token().get())
    }

    /// Who left the hold of the moment to this process, if anybody did.
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
/// ValueError if it is gone.
fn give_back(py: Python<'_>, guard: LockGuard) -> PyResult<()> {
    match raw::has_room(&guard) {
        Some(true) => drop(guard),
        // It waits for the daemon, which other threads of Python needn't.
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

/// A POSIX semaphore's name, with the slash that it may lack.
fn path(name: &str) -> PyResult<String> {
    match name.trim_start_matches('/') {
        name if name.is_empty() || name.contains(['/', '\0']) || name.len() > 250 => {
            Err(Failure::invalid("Invalid argument"))
        }
        name => Ok(format!("/{name}")),
    }
}

/// Frees the name of a SemLock: who has it keeps it.
#[pyfunction]
pub(crate) fn sem_unlink(py: Python<'_>, name: &str) -> PyResult<()> {
    let (client, name) = (client(py, None, None)?, path(name)?);
    Ok(wait(py, raw::unlink(&client, &name))?.map_err(Failure::from)?)
}
