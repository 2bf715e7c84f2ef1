//! The same without `async`: each call waits in the thread that makes it, which does its own
//! I/O. Never here: semantics; every call is the async one, run to its end.
//!
//! The threads of a process share a client and are separate owners. One of those that wait
//! reads for all; no thread is started, but for [`Client::on_lost`].
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
//! # Panics
//! Within a Tokio runtime every call that waits panics: there, the async API is the one to use.

mod client;
mod condition;
mod lock;

pub use client::{Client, ObjectOptions};
pub use condition::{AnyGuard, AnyLock, Barrier, Condition, Event};
pub use lock::{BoundedSemaphore, Lock, LockGuard, OwnedLockGuard, Permit, RLock, Semaphore};

/// Blocking methods of the async ones' names. `=> Wrapper` wraps what comes out.
macro_rules! forward {
    ($Type:ident: $(
        fn $method:ident(&self $(, $arg:ident: $ty:ty)*) -> Result<$ok:ty, $error:ty>
            $(=> $wrap:expr)?;
    )+) => {
        impl $Type {$(
            #[doc = concat!(
                "As [`", stringify!($method), "`](crate::", stringify!($Type), "::",
                stringify!($method), "), in this thread.\n\n# Errors\nThe same."
            )]
            pub fn $method(&self $(, $arg: $ty)*) -> Result<$ok, $error> {
                let done = self.client().block_on(self.0.$method($($arg),*));
                $(let done = done.map($wrap);)?
                done
            }
        )+}
    };
}

/// What every kind of object has: its name and token.
macro_rules! object {
    ($Type:ident, $($object:tt)+) => {
        impl $Type {
            fn client(&self) -> &crate::client::Shared {
                self.0 $($object)+.client()
            }

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
