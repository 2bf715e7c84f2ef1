//! Handing clients over to the new daemon: active ones at once, the others bit by bit, with a rest
//! between. All at once would keep the machine busy with some thousand connections, and requests
//! would wait behind clients that only wait.

use std::{sync::Arc, time::Duration};

use syncd_core::SessionId;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::talk::{HERE, NEWS, Talk};
use crate::{
    ServeError, broker::Broker, namespace::Address, outbox::Session, signals::notify_manager,
};

/// How long a new daemon may take to restore what it has loaded.
const RESTORE: Duration = Duration::from_secs(60);
/// The most inactive sessions that are handed over at once, so that active ones find few before
/// them.
const WINDOW: usize = 8;
/// When to hand over the next ones even if the last haven't arrived: their clients may not be
/// reading.
const TICK: Duration = Duration::from_millis(20);

/// The new daemon, which has the place now.
pub(crate) struct Heir {
    talk: Talk,
    pid: u32,
    /// Keeps snapshots from being made.
    _snapshots: OwnedSemaphorePermit,
}

impl Heir {
    pub(super) fn new(talk: Talk, pid: u32, _snapshots: OwnedSemaphorePermit) -> Self {
        Self { talk, pid, _snapshots }
    }

    /// Waits until the new daemon serves, then tells all sessions to reconnect. A session whose
    /// client sends something is told at once.
    ///
    /// # Errors
    /// [`ServeError::HeirLost`] if the new daemon has ended instead.
    pub async fn lead_out(self, broker: &Broker) -> Result<(), ServeError> {
        let Self { talk, pid, _snapshots } = self;
        broker.turn_away();
        let said = talk.into_inner().and_then(UnixStream::from_std);
        let mut said = BufReader::new(said.map_err(ServeError::Runtime)?).lines();
        match timeout(RESTORE, said.next_line()).await {
            Ok(Ok(Some(_))) => info!(successor = pid, "the new daemon serves: exiting"),
            Ok(_) => return Err(ServeError::HeirLost { pid }),
            Err(_) => {
                warn!(successor = pid, "the new daemon has the place but doesn't serve: exiting");
            }
        }
        notify_manager(&format!("MAINPID={pid}"));
        let sessions = &broker.registry.sessions;
        let mut left: Vec<_> = sessions.iter().map(|entry| entry.value().clone()).collect();
        let mut on_their_way = 0;
        let mut sent = Instant::now();
        let mut next = sent;
        loop {
            if on_their_way == 0 && next <= Instant::now() {
                while on_their_way < WINDOW {
                    let Some(session) = left.pop() else { return Ok(()) };
                    on_their_way += usize::from(session.let_go());
                }
                sent = Instant::now();
                next = sent + TICK;
            }
            tokio::select! {
                biased;
                line = said.next_line() => match line {
                    Ok(Some(line)) if line == HERE => {
                        on_their_way = on_their_way.saturating_sub(1);
                        if on_their_way == 0 {
                            let now = Instant::now();
                            // A rest as long as that took leaves time for active clients.
                            next = now + (now - sent).min(TICK);
                        }
                    }
                    Ok(Some(line)) => {
                        if let Some(session) = find(broker, &line) {
                            session.let_go();
                        }
                    }
                    // The new daemon is gone: its clients start another.
                    _ => return Ok(()),
                },
                () = sleep_until(next) => on_their_way = 0,
            }
        }
    }
}

/// The session that the new daemon has a message for.
fn find(broker: &Broker, line: &str) -> Option<Arc<Session>> {
    let (id, address) = line.strip_prefix(NEWS)?.split_once(' ')?;
    let namespace = broker.registry.namespaces.get(&Address::shown(address)?)?.number;
    let key = (namespace, SessionId(id.parse().ok()?));
    broker.registry.sessions.get(&key).map(|session| session.clone())
}
