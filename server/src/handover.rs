//! Replacing a running daemon: `syncd --replace`. The listening socket is passed on without being
//! closed, so that no connection is refused; the state goes by the journals.
//!
//! The daemons talk over the clients' socket: a connection that begins with [`GREETING`] is a new
//! daemon.
//!
//! ```text
//! new                          old
//! greeting, its journal  ->          refuses, or waits until no snapshot is being made
//!                        <-   AHEAD  goes on
//! loads the journals, changes nothing
//! LOADED                 ->
//!                        <-   LOOK   pauses: clients are told nothing more
//! loads what has been added since
//! READY, what it found   ->          if that is everything, seals itself
//!                        <-   YOURS  with the descriptors: socket, directory, lock file
//! restores, serves
//! SERVING                ->          hands its clients over
//! HERE                   ->          a client has arrived: hands over the next
//! NEWS session           ->          hands that session over first
//! ```
//! Before YOURS the new daemon has nothing: if it is killed, refuses or is late, the old one goes
//! on. After YOURS the old one is sealed: if the new one is killed, both are gone, as after any
//! kill, and the next daemon restores. At no time can both decide.

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

/// What the new daemon tells the old one about its clients.
pub(crate) enum News {
    /// There is a message for this session of this namespace.
    For(u64, Address),
    /// A session has resumed.
    Here,
}

/// A daemon's place, and the daemon that had it.
pub(crate) struct Coming {
    pub listener: Listener,
    /// `None` if a service manager has bound the socket.
    pub instance: Option<Instance>,
    /// `None` if there was no daemon.
    pub predecessor: Option<Predecessor>,
}

/// The queue of daemons that want to replace this one.
#[derive(Default)]
pub(crate) struct Successors {
    queue: Mutex<VecDeque<Successor>>,
    came: Notify,
}

impl Successors {
    /// The next daemon.
    ///
    /// # Cancel safety
    /// Safe: none is lost.
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
