//! What sessions ask for. Values only: nothing here decides.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    FencingToken, Handle, Owner, RequestId,
    image::{Constant, constant},
};

/// The most permits that a semaphore can have, as in POSIX: 2^31 - 1.
pub const SEM_VALUE_MAX: u32 = i32::MAX as u32;

/// One request of a session, for [`Space::handle_request`](crate::Space::handle_request).
/// What each one does, answers and refuses is said beside the message of the same
/// name in `session.proto`, and as rules in `docs/SEMANTICS.md`.
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
    /// `token`: the hold to end; `None` is a bare release.
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
    /// Nothing but the acknowledgement that comes with every request.
    Ack,
    /// What the caller could not read: refused in its turn, and numbered as any other.
    Invalid {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        #[serde(deserialize_with = "constant")]
        why: Constant,
    },
    /// What the caller may not make the namespace keep, by a quota of its own: refused likewise.
    OverQuota {
        #[serde(deserialize_with = "constant")]
        field: Constant,
        limit: u64,
    },
}

impl Request {
    /// It wants no answer but a refusal.
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
    /// Of a SemLock.
    pub handle: Handle,
    /// Who will hold it.
    pub owner: Owner,
    /// A semaphore's permit that is nobody's. Ignored for Lock and RLock.
    pub unowned: bool,
    /// `None` waits for ever, zero tries.
    pub timeout: Option<Duration>,
    /// Refuse, rather than wait, when waiting would close a cycle.
    pub fail_on_deadlock: bool,
}

/// Gets or creates an object, and attaches to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// `None`: anonymous.
    pub name: Option<Arc<str>>,
    /// What to make, and what a present object must be.
    pub spec: Spec,
    /// Stays when the last reference goes.
    pub keep: bool,
    /// Locks only: refused to all after an owner died, until marked consistent.
    pub poison: bool,
    /// Fail if the name exists.
    pub exclusive: bool,
    /// Makes the new object's key unguessable: random, chosen by the caller, since
    /// the core has no source of chance.
    pub secret: u64,
}

/// An object's kind and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spec {
    /// Lock, RLock, Semaphore, BoundedSemaphore.
    SemLock {
        /// Which of the four.
        class: Class,
        /// Permits at creation.
        value: u32,
        /// The most that a release may reach.
        max: u32,
    },
    /// A condition over a Lock or RLock of the same session.
    Condition {
        /// Its lock.
        lock: Handle,
    },
    /// A flag to wait for.
    Event,
    /// A meeting of `parties`.
    Barrier {
        /// At least 1.
        parties: u32,
    },
}

/// The four faces of a SemLock. RLock is POSIX's recursive mutex, the others are
/// semaphores.
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

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Lock => "Lock",
            Class::RLock => "RLock",
            Class::Semaphore => "Semaphore",
            Class::BoundedSemaphore => "BoundedSemaphore",
        }
    }
}

/// What another process attaches by. Printable (`Display`, `FromStr`), and not to be
/// guessed, since it holds the object's secret.
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

/// The text isn't an object's key.
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
