//! Accepting connections: what becomes of an error depends on whose it is.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use syncd_proto::socket::{AcceptError, Listener, Socket};
use tokio::{task::yield_now, time};
use tracing::warn;

use crate::{
    panic,
    peer::{Peer, Unidentified},
};

/// How long to wait for a descriptor, unless a connection ends before.
const BACK_OFF: Duration = Duration::from_millis(50);
/// At most one line about each kind of trouble in so long.
const QUIET: Duration = Duration::from_secs(1);

/// Says something that clients can bring about as often as they like, at most once a second.
#[derive(Default)]
pub(crate) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// `Some` if it may be said now: how often it was not since the last time.
    pub fn due(&self) -> Option<u64> {
        let mut state = panic::lock(&self.0);
        let (said, unsaid) = &mut *state;
        if said.is_some_and(|said| said.elapsed() < QUIET) {
            *unsaid += 1;
            return None;
        }
        *said = Some(Instant::now());
        Some(std::mem::take(unsaid))
    }
}

pub(crate) struct Acceptor {
    listener: Listener,
    /// Accepted, and waits for a descriptor to watch its process with.
    accepted: Option<Socket>,
    /// Nothing is accepted before.
    wait_until: Option<time::Instant>,
    strangers: Seldom,
    exhausted: Seldom,
}

impl Acceptor {
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            accepted: None,
            wait_until: None,
            strangers: Seldom::default(),
            exhausted: Seldom::default(),
        }
    }

    /// The next connection, and who it is. One that has gone, or doesn't say who it is, costs the
    /// others nothing; where no descriptor is left for it, or to watch its process with, it waits
    /// until there may be, and the others behind it.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn accept(&mut self) -> (Socket, Result<Peer, Unidentified>) {
        loop {
            if let Some(until) = self.wait_until {
                time::sleep_until(until).await;
                self.wait_until = None;
            }
            let accepted = match self.accepted.take() {
                Some(socket) => Ok(socket),
                None => self.listener.accept().await,
            };
            let identified = accepted.and_then(|socket| match Peer::identify(&socket) {
                Err(Unidentified::Unwatched(error)) if AcceptError::is_exhausted(&error) => {
                    self.accepted = Some(socket);
                    Err(AcceptError::Exhausted(error))
                }
                peer => Ok((socket, peer)),
            });
            match identified {
                Ok(identified) => return identified,
                Err(AcceptError::Peer(error)) => {
                    if let Some(unsaid) = self.strangers.due() {
                        warn!(%error, unsaid, "a connection was refused: its process is unknown");
                    }
                    yield_now().await;
                }
                Err(AcceptError::Exhausted(error) | AcceptError::Listener(error)) => {
                    if let Some(unsaid) = self.exhausted.due() {
                        warn!(%error, unsaid, "connections wait: none can be accepted now");
                    }
                    self.wait_until = Some(time::Instant::now() + BACK_OFF);
                }
            }
        }
    }

    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// A connection has ended: there may be room again.
    pub fn retry(&mut self) {
        self.wait_until = None;
    }
}
