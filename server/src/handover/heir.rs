//! How the clients of a daemon that was replaced go over to the next one: those who are at work at once,
//! the others bit by bit, with a rest between. All of them together would keep the machine busy for as
//! long as it takes to make some thousand connections, and whoever has something to ask would wait
//! behind those who only wait.

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
/// So many sessions are on their way at once that nobody waits for, so that who has something to ask
/// finds few before it.
const WINDOW: usize = 8;
/// After so long at most the next ones are sent: those before may have nobody who reads what they are told.
const TICK: Duration = Duration::from_millis(20);

/// The daemon that has the place now.
pub(crate) struct Heir {
    talk: Talk,
    pid: u32,
    /// No snapshot is made any more.
    _snapshots: OwnedSemaphorePermit,
}

impl Heir {
    pub(super) fn new(talk: Talk, pid: u32, _snapshots: OwnedSemaphorePermit) -> Self {
        Self { talk, pid, _snapshots }
    }

    /// Returns when it serves, and all sessions have been told to go there. Who says anything here is
    /// told at once.
    ///
    /// # Errors
    /// [`ServeError::HeirLost`] if it has ended instead.
    pub async fn lead_out(self, broker: &Broker) -> Result<(), ServeError> {
        let Self { talk, pid, _snapshots } = self;
        broker.turn_away();
        let said = talk.into_inner().and_then(UnixStream::from_std);
        let mut said = BufReader::new(said.map_err(ServeError::Runtime)?).lines();
        match timeout(RESTORE, said.next_line()).await {
            Ok(Ok(Some(_))) => info!(successor = pid, "it serves: leaving"),
            Ok(_) => return Err(ServeError::HeirLost { pid }),
            Err(_) => {
                warn!(successor = pid, "it has the place, and doesn't serve yet: leaving");
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
                            // A rest as long as that took: for who works meanwhile.
                            next = now + (now - sent).min(TICK);
                        }
                    }
                    Ok(Some(line)) => {
                        if let Some(session) = find(broker, &line) {
                            session.let_go();
                        }
                    }
                    // It is gone: whoever misses it starts another.
                    _ => return Ok(()),
                },
                () = sleep_until(next) => on_their_way = 0,
            }
        }
    }
}

/// The session that the next daemon has something for.
fn find(broker: &Broker, line: &str) -> Option<Arc<Session>> {
    let (id, address) = line.strip_prefix(NEWS)?.split_once(' ')?;
    let namespace = broker.registry.namespaces.get(&Address::shown(address)?)?.number;
    let key = (namespace, SessionId(id.parse().ok()?));
    broker.registry.sessions.get(&key).map(|session| session.clone())
}
