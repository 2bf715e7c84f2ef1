//! Locks, semaphores, conditions, events and barriers between the processes of one machine,
//! kept by the syncd daemon: who dies lets go, and the next owner is told. Never here: any
//! decision about a lock, which are the daemon's alone.
//!
//! [`Client::connect`] finds the user's daemon, or starts one. Objects have names, or a
//! [`Token`] to hand over; guards release when dropped. The same for threads instead of tasks
//! is in [`blocking`].
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
//! A producer and its consumers, in whatever processes:
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
//! # What one can rely on
//!
//! - **Order.** Permits go to those who wait in the order in which they came, whatever their
//!   process; a try overtakes nobody.
//! - **Death.** A process that exits, however, gives back what it held, and the next owner
//!   learns of it by [`Hold::abandoned`]. One that is stopped or slow keeps what it holds.
//! - **Owners.** A task, or outside of tasks a thread, is an owner: it can take an [`RLock`]
//!   again. What [`Lock::acquire_owned`] gives is an owner of its own.
//! - **Lost sessions.** A broken connection is made again, and nothing is lost, if that
//!   succeeds within the daemon's grace. Else the session is lost ([`Client::lost`]): its
//!   guards are void for good ([`Hold::is_valid`]), and the next call opens a new one.
//! - **Fork.** A child has no part in its parent's session. Guards that it inherited are void,
//!   and it may drop them; clients and objects open a session of the child's own when used.
//! - **Cost.** No thread and no task is needed to wait: who waits does the I/O. One round trip
//!   takes, waits or notifies; dropping a guard sends and doesn't wait, unless more than 1,024
//!   messages wait for a daemon that takes none.
//! - **Time-outs** bound the whole call, by the client's own clock, too.
//!
//! All of it in detail: `docs/CLIENT.md` and `docs/PROCESSES.md` of the repository.

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
/// The session's state machine, for tests that own the time and the links. Unstable.
#[doc(hidden)]
pub use session::protocol;
pub use start::StartError;
pub use syncd_proto::{self as proto, Endpoint};
pub use token::{Token, TokenError};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
