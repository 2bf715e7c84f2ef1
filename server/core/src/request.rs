//! The requests of sessions, as values.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    FencingToken, Handle, Owner, RequestId,
    image::{Constant, constant},
};

/// The most permits that a semaphore can have, as in POSIX: 2^31 - 1.
pub const SEM_VALUE_MAX: u32 = i32::MAX as u32;

/// One request of a session, for [`Space::handle_request`](crate::Space::handle_request).
/// `session.proto` documents the message of the same name; `docs/SEMANTICS.md` has the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Request {
    Create(Create),
    AttachName(Arc<str>),
    AttachKey(ObjectKey),
    Detach {
        handle: Handle,
        quiet: bool,
    },
    Unlink {
        name: Arc<str>,
    },
    Acquire(Acquire),
    /// `token`: the hold to end; `None`: see R25 of `docs/SEMANTICS.md`.
    Release {
        handle: Handle,
        owner: Owner,
        token: Option<FencingToken>,
        quiet: bool,
    },
    Forget {
        handle: Handle,
        owner: Owner,
        token: FencingToken,
        quiet: bool,
    },
    MarkConsistent {
        handle: Handle,
        owner: Owner,
    },
    Wait {
        handle: Handle,
        owner: Owner,
        timeout: Option<Duration>,
    },
    /// `n`: `None` is all.
    Notify {
        handle: Handle,
        owner: Owner,
        n: Option<u32>,
    },
    EventSet {
        handle: Handle,
    },
    EventClear {
        handle: Handle,
    },
    EventWait {
        handle: Handle,
        owner: Owner,
        timeout: Option<Duration>,
    },
    BarrierWait {
        handle: Handle,
        owner: Owner,
        timeout: Option<Duration>,
        has_action: bool,
    },
    BarrierAction {
        handle: Handle,
        owner: Owner,
        ok: bool,
    },
    BarrierReset {
        handle: Handle,
    },
    BarrierAbort {
        handle: Handle,
    },
    Query {
        handle: Handle,
    },
    Cancel {
        request: RequestId,
        give_back: bool,
    },
    Goodbye,
    /// Only the acknowledgement that every request has.
    Ack,
    /// A request that the caller couldn't decode: refused in its turn.
    Invalid {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        #[serde(deserialize_with = "constant")]
        why: Constant,
    },
    /// A request beyond a quota of the caller's: refused in its turn.
    OverQuota {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        limit: u64,
    },
}

impl Request {
    /// Whether only a refusal is answered.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Request::Detach { quiet, .. }
            | Request::Release { quiet, .. }
            | Request::Forget { quiet, .. } => *quiet,
            _ => false,
        }
    }
}

/// Takes a permit of a SemLock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquire {
    /// The SemLock's handle.
    pub handle: Handle,
    /// The owner of the hold.
    pub owner: Owner,
    /// Take an unowned permit. Ignored for Lock and RLock.
    pub unowned: bool,
    /// `None` waits without limit, zero doesn't wait.
    pub timeout: Option<Duration>,
    /// Refuse instead of waiting if the wait would close a cycle.
    pub fail_on_deadlock: bool,
}

/// Gets or creates an object, and attaches to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// `None`: anonymous.
    pub name: Option<Arc<str>>,
    /// What to create, and what an existing object must be.
    pub spec: Spec,
    /// Keep the object without references.
    pub keep: bool,
    /// Locks only: if an owner dies and the next doesn't mark the lock consistent, refuse acquires
    /// until somebody does.
    pub poison: bool,
    /// Refuse if the name exists.
    pub exclusive: bool,
    /// A random number that makes a new object's key unguessable. The caller chooses it, since the
    /// core has no randomness.
    pub secret: u64,
}

/// An object's kind and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spec {
    /// Lock, RLock, Semaphore, BoundedSemaphore.
    SemLock {
        /// Which of the four.
        class: Class,
        /// The initial number of permits.
        value: u32,
        /// The value that a release must not exceed.
        max: u32,
    },
    /// A condition over a Lock or RLock of the same session.
    Condition {
        /// The lock's handle.
        lock: Handle,
    },
    /// An event.
    Event,
    /// A barrier.
    Barrier {
        /// The number of parties, at least 1.
        parties: u32,
    },
}

/// The classes of a SemLock. An RLock is like POSIX's recursive mutex, the others are semaphores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Class {
    Lock,
    RLock,
    Semaphore,
    BoundedSemaphore,
}

impl Class {
    /// Lock and RLock: one owner at a time, always owned.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Class::Lock | Class::RLock)
    }

    /// The class's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Lock => "Lock",
            Class::RLock => "RLock",
            Class::Semaphore => "Semaphore",
            Class::BoundedSemaphore => "BoundedSemaphore",
        }
    }
}

/// The key by which another process attaches to an object. It is printable (`Display`, `FromStr`)
/// and can't be guessed, since it contains the object's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub(crate) index: u32,
    pub(crate) id: u64,
    pub(crate) secret: u64,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x}-{:016x}", self.index, self.id, self.secret)
    }
}

/// The text is not an object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyError;

impl std::str::FromStr for ObjectKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut parts = text.split('-');
        let mut next = || parts.next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let (index, id, secret) = (next(), next(), next());
        let key = ObjectKey {
            index: index.and_then(|i| u32::try_from(i).ok()).ok_or(KeyError)?,
            id: id.ok_or(KeyError)?,
            secret: secret.ok_or(KeyError)?,
        };
        if parts.next().is_some() { Err(KeyError) } else { Ok(key) }
    }
}
