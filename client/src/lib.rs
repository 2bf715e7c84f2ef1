//! Locks, semaphores, conditions, events and barriers between the processes of one machine,
//! kept by the syncd daemon. When a process dies, its holds are released and the next owner is
//! told. The daemon alone decides who gets a lock.
//!
//! [`Client::connect`] finds the user's daemon, or starts one. Objects have names, or a
//! [`Token`] to pass to another process; guards release when dropped. [`blocking`] has the same
//! API for threads instead of tasks.
//!
//! ```no_run
//! use std::time::Duration;
//! use syncd_client::{AcquireError, Client};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect().await?;
//! let lock = client.lock("ledger").await?;
//!
//! match lock.acquire_timeout(Duration::from_secs(5)).await {
//!     Ok(guard) => {
//!         if let Some(left) = guard.abandoned() {
//!             println!("{left}: the ledger may be half written");
//!         }
//!         println!("storage, refuse anything below {}", guard.fencing_token());
//!     }
//!     Err(AcquireError::TimedOut { held_by, .. }) => println!("still held by {held_by:?}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A consumer that waits for a producer, in the same or in another process:
//!
//! ```no_run
//! # async fn example(client: syncd_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! # fn has_work() -> bool { true }
//! let lock = client.lock("queue").await?;
//! let filled = client.condition("queue filled", &lock).await?;
//!
//! let mut guard = lock.acquire().await?;
//! filled.wait_while(&mut guard, || !has_work()).await?;
//! filled.notify_one(&guard).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - **Order.** Waiters get permits in order of arrival, whatever their process; a `try_acquire`
//!   doesn't overtake them.
//! - **Death.** When a process exits, for whatever reason, its holds are released, and the next
//!   owner learns of it from [`Hold::abandoned`]. A stopped or slow process keeps its holds.
//! - **Owners.** A task, or outside of tasks a thread, is an owner: it can take an [`RLock`]
//!   again. A guard from [`Lock::acquire_owned`] is an owner of its own.
//! - **Lost sessions.** The client reconnects a broken connection; within the daemon's grace
//!   nothing is lost. After it the session is lost ([`Client::lost`]): its guards stay void
//!   ([`Hold::is_valid`]), and the next call opens a new session.
//! - **Fork.** A forked child doesn't share its parent's session. Inherited guards are void and
//!   safe to drop; clients and objects open a session of the child's own when used.
//! - **Cost.** The client starts no thread or task to wait: the waiter does the I/O. Acquire,
//!   wait and notify take one round trip each. Dropping a guard sends without waiting, unless
//!   more than 1,024 messages are queued for a daemon that reads none.
//! - **Time-outs** bound the whole call, also by the client's own clock.
//!
//! Details: `docs/CLIENT.md` and `docs/PROCESSES.md` of the repository.

pub mod blocking;
pub mod raw;

mod barrier;
mod binding;
mod builder;
mod call;
mod client;
mod condition;
mod connect;
mod error;
mod event;
mod fencing;
mod fork;
mod inspect;
mod lock;
mod object;
mod options;
mod owner;
mod process;
mod semaphore;
mod semlock;
mod session;
mod start;
mod tasks;
mod token;

pub use barrier::{Barrier, BarrierState, BarrierWaitResult};
pub use builder::Builder;
pub use client::Client;
pub use condition::{AnyLock, Condition, WaitOutcome};
pub use error::{
    AcquireError, BarrierError, ConditionError, ConnectError, CreateError, ReleaseError,
    SessionError, SessionLost,
};
pub use event::Event;
pub use fencing::FencingToken;
pub use inspect::Inspector;
pub use lock::{Lock, LockGuard, OwnedLockGuard, RLock};
pub use object::Attachable;
pub use options::ObjectOptions;
pub use process::{Abandonment, Cause, DeadlockEdge, Holder, Process};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
pub use semlock::Hold;
/// The session's state machine, for tests that control the clock and the links. Unstable.
#[doc(hidden)]
pub use session::protocol;
pub use start::StartError;
pub use syncd_proto::{self as proto, Endpoint};
pub use token::{Token, TokenError};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
