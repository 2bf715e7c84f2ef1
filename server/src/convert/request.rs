//! Conversion of requests from the protocol. Refuses values that the core's types can't express,
//! and names the field; the core checks the rest.

use std::{sync::Arc, time::Duration};

use syncd_core::{
    Acquire, Class, Create, FencingToken, Handle, Owner, Request, RequestId, SEM_VALUE_MAX, Spec,
};
use syncd_proto::v1::{
    self, attach::By, client_message::Request as Wire, create::Spec as WireSpec,
};

/// A field whose value the core's types can't express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub field: &'static str,
    pub why: &'static str,
}

fn invalid<T>(field: &'static str, why: &'static str) -> Result<T, Invalid> {
    Err(Invalid { field, why })
}

fn token(token: u64) -> Option<FencingToken> {
    (token != 0).then_some(FencingToken(token))
}

fn timeout(micros: Option<u64>) -> Option<Duration> {
    micros.map(Duration::from_micros)
}

/// Converts a request after Open. `secret` is called only for a Create.
pub fn request(wire: Option<Wire>, secret: impl FnOnce() -> u64) -> Result<Request, Invalid> {
    let Some(wire) = wire else {
        return invalid("request", "missing, or of a kind that this version doesn't know");
    };
    Ok(match wire {
        Wire::Open(_) => return invalid("open", "the session is open already"),
        Wire::Acquire(m) => Request::Acquire(Acquire {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            unowned: m.unowned,
            timeout: timeout(m.timeout_us),
            fail_on_deadlock: m.fail_on_deadlock,
        }),
        Wire::Release(m) => Request::Release {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            token: token(m.token),
            quiet: m.quiet,
        },
        Wire::Forget(m) => Request::Forget {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            token: token(m.token).ok_or(Invalid { field: "token", why: "must not be 0" })?,
            quiet: m.quiet,
        },
        Wire::Wait(m) => Request::Wait {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            timeout: timeout(m.timeout_us),
        },
        Wire::Notify(m) => Request::Notify {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            n: (m.n != 0).then_some(m.n),
        },
        Wire::Cancel(m) => Request::Cancel { request: RequestId(m.id), give_back: m.give_back },
        Wire::Create(m) => Request::Create(create(m, secret)?),
        Wire::Attach(m) => match m.by {
            Some(By::Name(name)) => Request::AttachName(name.into()),
            Some(By::Key(key)) => match key.parse() {
                Ok(key) => Request::AttachKey(key),
                Err(_) => return invalid("key", "not an object's key"),
            },
            None => return invalid("by", "must be a name or a key"),
        },
        Wire::Detach(m) => Request::Detach { handle: Handle(m.handle), quiet: m.quiet },
        Wire::Unlink(m) => Request::Unlink { name: m.name.into() },
        Wire::MarkConsistent(m) => {
            Request::MarkConsistent { handle: Handle(m.handle), owner: Owner(m.owner) }
        }
        Wire::EventSet(m) => Request::EventSet { handle: Handle(m.handle) },
        Wire::EventClear(m) => Request::EventClear { handle: Handle(m.handle) },
        Wire::EventWait(m) => Request::EventWait {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            timeout: timeout(m.timeout_us),
        },
        Wire::BarrierWait(m) => Request::BarrierWait {
            handle: Handle(m.handle),
            owner: Owner(m.owner),
            timeout: timeout(m.timeout_us),
            has_action: m.has_action,
        },
        Wire::BarrierAction(m) => {
            Request::BarrierAction { handle: Handle(m.handle), owner: Owner(m.owner), ok: m.ok }
        }
        Wire::BarrierReset(m) => Request::BarrierReset { handle: Handle(m.handle) },
        Wire::BarrierAbort(m) => Request::BarrierAbort { handle: Handle(m.handle) },
        Wire::Query(m) => Request::Query { handle: Handle(m.handle) },
        Wire::Goodbye(_) => Request::Goodbye,
        Wire::Acknowledge(_) => Request::Ack,
    })
}

fn create(m: v1::Create, secret: impl FnOnce() -> u64) -> Result<Create, Invalid> {
    let spec = match m.spec {
        Some(WireSpec::SemLock(spec)) => sem_lock(spec)?,
        Some(WireSpec::Condition(spec)) => Spec::Condition { lock: Handle(spec.lock) },
        Some(WireSpec::Event(_)) => Spec::Event,
        Some(WireSpec::Barrier(spec)) => Spec::Barrier { parties: spec.parties },
        None => return invalid("spec", "must say what to create"),
    };
    Ok(Create {
        name: (!m.name.is_empty()).then(|| Arc::from(m.name)),
        spec,
        keep: m.keep,
        poison: m.poison,
        exclusive: m.exclusive,
        secret: secret(),
    })
}

fn sem_lock(spec: v1::SemLockSpec) -> Result<Spec, Invalid> {
    let or = |max: u32| if spec.max == 0 { max } else { spec.max };
    let (class, value, max) = match spec.class() {
        v1::SemLockClass::Unspecified => {
            return invalid("class", "must be Lock, RLock, Semaphore or BoundedSemaphore");
        }
        v1::SemLockClass::Lock => (Class::Lock, 1, 1),
        v1::SemLockClass::Rlock => (Class::RLock, 1, 1),
        v1::SemLockClass::Semaphore => (Class::Semaphore, spec.value, or(SEM_VALUE_MAX)),
        v1::SemLockClass::BoundedSemaphore => (Class::BoundedSemaphore, spec.value, or(spec.value)),
    };
    Ok(Spec::SemLock { class, value, max })
}

#[cfg(test)]
mod tests {
    use syncd_proto::v1::{Attach, Forget, SemLockClass, SemLockSpec, Wait};

    use super::*;

    fn field(wire: Wire) -> &'static str {
        request(Some(wire), || 7).unwrap_err().field
    }

    fn spec_of(class: SemLockClass, value: u32, max: u32) -> Result<Spec, Invalid> {
        sem_lock(SemLockSpec { class: class.into(), value, max })
    }

    #[test]
    fn an_invalid_field_is_named() {
        assert_eq!(request(None, || 7).unwrap_err().field, "request");
        assert_eq!(field(Wire::Open(v1::Open::default())), "open");
        assert_eq!(field(Wire::Create(v1::Create::default())), "spec");
        assert_eq!(field(Wire::Attach(Attach::default())), "by");
        assert_eq!(field(Wire::Attach(Attach { by: Some(By::Key("x".into())) })), "key");
        assert_eq!(field(Wire::Forget(Forget::default())), "token");
        let spec = Some(WireSpec::SemLock(SemLockSpec { class: 99, value: 1, max: 1 }));
        assert_eq!(field(Wire::Create(v1::Create { spec, ..Default::default() })), "class");
    }

    #[test]
    fn a_maximum_of_zero_is_the_classs_own() {
        let max = |spec: Result<Spec, Invalid>| match spec {
            Ok(Spec::SemLock { max, .. }) => max,
            other => panic!("{other:?}"),
        };
        assert_eq!(max(spec_of(SemLockClass::Lock, 9, 9)), 1);
        assert_eq!(max(spec_of(SemLockClass::Semaphore, 3, 0)), SEM_VALUE_MAX);
        assert_eq!(max(spec_of(SemLockClass::Semaphore, 3, 5)), 5);
        assert_eq!(max(spec_of(SemLockClass::BoundedSemaphore, 3, 0)), 3);
    }

    #[test]
    fn the_longest_time_out_is_no_overflow() {
        let wait = Wait { handle: u32::MAX, owner: u64::MAX, timeout_us: Some(u64::MAX) };
        let Ok(Request::Wait { timeout: Some(timeout), .. }) =
            request(Some(Wire::Wait(wait)), || 7)
        else {
            panic!("a wait with a time-out");
        };
        assert_eq!(super::super::micros(timeout), u64::MAX);
    }
}
