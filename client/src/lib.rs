//! Locks, semaphores, conditions, events and barriers between the processes of one machine,
//! kept by the syncd daemon: who dies lets go, and the next owner is told. Never here: any
//! decision about a lock, which are the daemon's alone.

pub mod blocking;
pub mod raw;

mod barrier;
mod client;
mod condition;
mod error;
mod event;
mod fork;
mod inspect;
mod lock;
mod object;
mod owner;
mod process;
mod semaphore;
mod semlock;
mod session;
mod start;
mod token;

pub use barrier::{Barrier, BarrierState, BarrierWaitResult};
pub use client::{Builder, Client};
pub use condition::{AnyLock, Condition, WaitOutcome};
pub use error::{
    AcquireError, BarrierError, ConditionError, ConnectError, CreateError, ReleaseError,
    SessionError, SessionLost,
};
pub use event::Event;
pub use inspect::Inspector;
pub use lock::{Lock, LockGuard, OwnedLockGuard, RLock};
pub use object::{Attachable, ObjectOptions};
pub use process::{Abandonment, Cause, DeadlockEdge, Holder, Process};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
pub use semlock::Hold;
pub use start::StartError;
pub use syncd_proto::{self as proto, Endpoint};
pub use token::{Token, TokenError};
