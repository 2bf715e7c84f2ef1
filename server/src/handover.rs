//! A daemon takes the place of one that lives: `syncd --replace`. The listening socket is never
//! closed, so nobody is refused; what the old one knew is in its journals.
//!
//! They talk by the very socket that clients use: whoever begins with [`GREETING`] wants the place.
//!
//! ```text
//! new                          old
//! greeting, its journal  ->          refuses, or waits until no snapshot is in the making
//!                        <-   AHEAD  goes on
//! loads all, changes nothing
//! LOADED                 ->
//!                        <-   LOOK   pauses: nobody is told anything any more
//! loads what has come since
//! READY, what it found   ->          if that is all, it never decides again
//!                        <-   YOURS  with the descriptors: socket, directory, lock file
//! restores, serves
//! SERVING                ->          has its clients go over
//! HERE                   ->          one has come: the next
//! NEWS session           ->          that one first
//! ```
//! Until YOURS the new one has nothing: should it be killed, refuse or be late, the old one goes
//! on where it was. After it the old one is sealed: should the new one be killed, both are gone,
//! as after any kill, and the next daemon restores. At no time do two decide.

#[cfg_attr(unix, path = "handover/coming.rs")]
#[cfg_attr(not(unix), path = "handover/none.rs")]
mod coming;
#[cfg(unix)]
mod heir;
#[cfg(unix)]
mod leaving;
#[cfg_attr(not(unix), path = "handover/never.rs")]
mod reload;
#[cfg(unix)]
mod talk;

pub(crate) use coming::{Heir, Predecessor, Successor, come};
#[cfg(unix)]
pub(crate) use leaving::{answer, is_successor};
pub(crate) use reload::Reload;

use std::{collections::VecDeque, sync::Mutex};

use syncd_proto::socket::Listener;
use tokio::sync::Notify;

use crate::{instance::Instance, namespace::Address, panic};

/// What the daemon that had the place before is told of its clients.
pub(crate) enum News {
    /// There is something for a session of that namespace.
    For(u64, Address),
    /// One has come.
    Here,
}

/// A daemon's place, and who had it.
pub(crate) struct Coming {
    pub listener: Listener,
    /// None of a socket that a service manager has bound.
    pub instance: Option<Instance>,
    /// None where nobody was.
    pub predecessor: Option<Predecessor>,
}

/// Those who want the place of this daemon.
#[derive(Default)]
pub(crate) struct Successors {
    queue: Mutex<VecDeque<Successor>>,
    came: Notify,
}

impl Successors {
    /// The next one.
    ///
    /// # Cancel safety
    /// Nobody is lost by dropping the future.
    pub async fn next(&self) -> Successor {
        loop {
            if let Some(next) = panic::lock(&self.queue).pop_front() {
                return next;
            }
            self.came.notified().await;
        }
    }

    #[cfg(unix)]
    fn add(&self, successor: Successor) {
        panic::lock(&self.queue).push_back(successor);
        self.came.notify_one();
    }
}
