//! The daemon's specification for each class of the package.

use pyo3::{exceptions::PyValueError, prelude::*};
use syncd_client::proto::v1::{
    BarrierSpec, ConditionSpec, EventSpec, SemLockClass, SemLockSpec, create::Spec,
};

use crate::failure::Failure;

/// The specification of a class; `value` is a semaphore's number of permits or a barrier's number
/// of parties.
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
        _ => return Err(PyValueError::new_err(format!("syncd has no class {class:?}"))),
    })
}
