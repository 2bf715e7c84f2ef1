//! The package's own objects by the names of their classes: what each is to the daemon.

use pyo3::{exceptions::PyValueError, prelude::*};
use syncd_client::proto::v1::{
    BarrierSpec, ConditionSpec, EventSpec, SemLockClass, SemLockSpec, create::Spec,
};

use crate::failure::Failure;

/// What an object of a class is created as; `value` is a semaphore's permits or a barrier's
/// parties.
pub(crate) fn spec(class: &str, value: i64) -> PyResult<Spec> {
    let value = u32::try_from(value).map_err(|_| Failure::invalid("Invalid argument"))?;
    let sem_lock =
        |class: SemLockClass| Spec::SemLock(SemLockSpec { class: class.into(), value, max: 0 });
    Ok(match class {
        "Lock" => sem_lock(SemLockClass::Lock),
        "RLock" => sem_lock(SemLockClass::Rlock),
        "Semaphore" => sem_lock(SemLockClass::Semaphore),
        "BoundedSemaphore" => sem_lock(SemLockClass::BoundedSemaphore),
        "Condition" => Spec::Condition(ConditionSpec { lock: 0 }),
        "Event" => Spec::Event(EventSpec {}),
        "Barrier" => Spec::Barrier(BarrierSpec { parties: value }),
        _ => return Err(PyValueError::new_err(format!("no class of this package: {class}"))),
    })
}
