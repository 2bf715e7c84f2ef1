//! The same without `async`: each call waits in the thread that makes it. The threads of a
//! process share a client and are separate owners. One of those that wait reads for all; no
//! thread is started, but for [`Client::on_lost`], and when something is to be sent that nobody
//! waits for while the socket is full or the connection broken.
//!
//! A call works in any thread, also in `spawn_blocking`'s. In an async task it would block the
//! runtime's thread: there, the async API is the one to use.
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
//! # The way of one acquire
//!
//! [`Lock::acquire`] (`lock`) describes itself as a call (`semlock`, `binding`), whose steps are
//! made here (`call`): a request is given to the session's protocol, written, and waited for
//! (`session`) by a parker (`unix`), through the bytes of HTTP/2 (`session/transport`), for what
//! the protocol says it means (`session/protocol`). Nothing else is in between.

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
    /// Called when a signal's handler has run in the thread, and now and then for no reason; with
    /// nothing locked, so that it may make calls of its own. True: the call is given up.
    fn handle(&mut self) -> bool;

    /// Whether it is to be called at all.
    fn matter(&self) -> bool {
        true
    }
}

impl<F: FnMut() -> bool> Signals for F {
    fn handle(&mut self) -> bool {
        self()
    }
}

/// Waits on, whatever signals come.
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

/// Makes a call in this thread.
fn wait<C: Call>(call: C) -> C::Done {
    call.wait(&mut NoSignals)
}

/// Blocking methods of the async ones' names, each by the call that it is.
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

/// What every kind of object has: its name and token.
macro_rules! object {
    ($Type:ident) => {
        impl $Type {
            /// Its name; empty if it has none.
            pub fn name(&self) -> &str {
                self.0.name()
            }

            /// What another process attaches by.
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
