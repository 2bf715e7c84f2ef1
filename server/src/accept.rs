//! Accepting connections, and handling of accept(2)'s errors by kind.

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

/// How long to wait for a free descriptor, unless a connection ends before.
const BACK_OFF: Duration = Duration::from_millis(50);
/// The least time between two log lines of a rate limit.
const INTERVAL: Duration = Duration::from_secs(1);

/// Limits log lines that clients can cause at will to one per second.
#[derive(Default)]
pub(crate) struct RateLimit(Mutex<(Option<Instant>, u64)>);

impl RateLimit {
    /// `Some` if a line may be logged now: the number of lines suppressed since the last one.
    pub fn due(&self) -> Option<u64> {
        let mut state = panic::lock(&self.0);
        let (logged, suppressed) = &mut *state;
        if logged.is_some_and(|logged| logged.elapsed() < INTERVAL) {
            *suppressed += 1;
            return None;
        }
        *logged = Some(Instant::now());
        Some(std::mem::take(suppressed))
    }
}

pub(crate) struct Acceptor {
    listener: Listener,
    /// A connection that was accepted, and waits for a descriptor for its process's pidfd.
    accepted: Option<Socket>,
    /// Don't accept before this time.
    wait_until: Option<time::Instant>,
    unidentified: RateLimit,
    exhausted: RateLimit,
}

impl Acceptor {
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            accepted: None,
            wait_until: None,
            unidentified: RateLimit::default(),
            exhausted: RateLimit::default(),
        }
    }

    /// The next connection and its peer. Skips connections that are gone or can't be identified.
    /// Without a free descriptor, for the connection or its peer's pidfd, waits until there may be
    /// one.
    ///
    /// # Cancel safety
    /// Safe: no connection is lost.
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
                    if let Some(suppressed) = self.unidentified.due() {
                        warn!(%error, suppressed, "connection refused: its process is unknown");
                    }
                    yield_now().await;
                }
                Err(AcceptError::Exhausted(error) | AcceptError::Listener(error)) => {
                    if let Some(suppressed) = self.exhausted.due() {
                        warn!(%error, suppressed, "no connection can be accepted now: they wait");
                    }
                    self.wait_until = Some(time::Instant::now() + BACK_OFF);
                }
            }
        }
    }

    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// A connection has ended, so that there may be a free descriptor.
    pub fn retry(&mut self) {
        self.wait_until = None;
    }
}
