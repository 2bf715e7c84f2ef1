//! The blocking API: each call waits in the thread that makes it. The threads of a process can
//! share a client and are separate owners. One of the waiting threads reads for all. The client
//! starts threads in two cases only: for [`Client::on_lost`], and to send requests that no thread
//! waits for while the socket is full or the connection broken.
//!
//! Calls work in any thread, including those of `spawn_blocking`. In an async task they would block
//! the runtime's thread: use the async API there.
//!
//! ```no_run
//! use syncd_client::blocking::Client;
//!
//! let client = Client::connect()?;
//! let lock = client.lock("counter")?;
//! {
//!     let guard = lock.acquire()?;
//!     if let Some(left) = guard.abandoned() {
//!         eprintln!("{left}: checking what it left");
//!     }
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # One acquire, module by module
//!
//! [`Lock::acquire`] (`lock`) makes a call (`semlock`, `binding`) whose steps run in this thread
//! (`call`). The request is queued in `session/protocol`, encoded by `session/transport` and
//! written to the socket (`session`, `leader`); the thread sleeps in its parker (`unix`) until the
//! reply has come.

mod client;
mod condition;
mod connect;
mod leader;
mod lock;
mod session;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::{Parker, Socket, pause, wait_for_end};
#[cfg(windows)]
use windows::{Parker, Socket, pause, wait_for_end};

pub use client::{Client, ObjectOptions};
pub use condition::{AnyGuard, AnyLock, Barrier, Condition, Event};
pub(crate) use connect::{Door, session};
pub use lock::{BoundedSemaphore, Lock, LockGuard, OwnedLockGuard, Permit, RLock, Semaphore};
pub(crate) use session::Session;

use crate::{call::Call, semlock::none_if_busy};

/// What a waiting thread does about signals.
pub trait Signals {
    /// Called after a signal handler has run in the thread, and periodically. Nothing is locked, so
    /// it may make calls itself. Returning true gives up the interrupted call.
    fn handle(&mut self) -> bool;

    /// Whether to call [`handle`](Self::handle) at all.
    fn matter(&self) -> bool {
        true
    }
}

impl<F: FnMut() -> bool> Signals for F {
    fn handle(&mut self) -> bool {
        self()
    }
}

/// Ignores signals: the wait goes on.
pub(crate) struct NoSignals;

impl Signals for NoSignals {
    fn handle(&mut self) -> bool {
        false
    }

    fn matter(&self) -> bool {
        false
    }
}

pub(crate) type OnSignal<'a> = &'a mut dyn Signals;

/// Performs a call in this thread.
fn wait<C: Call>(call: C) -> C::Done {
    call.wait(&mut NoSignals)
}

/// Blocking methods named as their async counterparts, which perform the same calls.
macro_rules! forward {
    ($First:ident, $($Rest:ident),+: $($methods:tt)+) => {
        forward! { $First: $($methods)+ }
        forward! { $($Rest),+: $($methods)+ }
    };
    ($Type:ident: $(
        fn $method:ident(&$self:ident $(, $arg:ident: $ty:ty)*) -> $done:ty { $made:expr }
    )+) => {
        impl $Type {$(
            #[doc = concat!(
                "As [`", stringify!($method), "`](crate::", stringify!($Type), "::",
                stringify!($method), "), in this thread.\n\n# Errors\nThe same."
            )]
            pub fn $method(&$self $(, $arg: $ty)*) -> $done {
                $made
            }
        )+}
    };
}

/// The methods of every kind of object.
macro_rules! object {
    ($Type:ident) => {
        impl $Type {
            /// The object's name; empty for an anonymous object.
            pub fn name(&self) -> &str {
                self.0.name()
            }

            /// The token by which another process attaches to the object.
            pub fn token(&self) -> crate::Token {
                self.0.token()
            }
        }

        impl crate::Attachable for $Type {}
        impl crate::object::sealed::Attachable for $Type {
            const KIND: crate::object::Kind = crate::$Type::KIND;
            fn from_object(object: std::sync::Arc<crate::object::Object>) -> Self {
                Self(crate::$Type::from_object(object))
            }
        }
    };
}

use {forward, object};
