//! The client processes: who they are, what they have, and the proof of their death. Never
//! here: what a death does to a lock.

#[cfg_attr(target_os = "linux", path = "peer/linux.rs")]
#[cfg_attr(windows, path = "peer/windows.rs")]
#[cfg_attr(not(any(target_os = "linux", windows)), path = "peer/unwatched.rs")]
mod watch;

use std::{
    collections::BTreeMap,
    io, mem,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use dashmap::Entry;
use syncd_core::{Cause, SessionId};
use syncd_proto::socket::Socket;
use tokio::sync::Notify;
use tracing::debug;

use crate::{broker::Broker, connection::Connection, namespace::Namespace};
use watch::Watch;

/// A process, as long as it has a connection or a session. One entry per process and user, so
/// two of the same entry are of the same process, whatever becomes of its number.
pub(crate) struct Peer {
    pub pid: u32,
    /// The first words of its command line.
    pub command: Arc<str>,
    user: u32,
    watch: Watch,
    /// A connection or a session of its has ended.
    released: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gone: bool,
    uses: usize,
    sessions: BTreeMap<(u64, SessionId), Arc<Namespace>>,
    connections: Vec<Weak<Connection>>,
}

/// Keeps a process's entry: of a connection, or of a session.
pub(crate) struct PeerUse(Arc<Peer>);

impl Clone for PeerUse {
    fn clone(&self) -> Self {
        self.0.lock().uses += 1;
        Self(self.0.clone())
    }
}

impl Drop for PeerUse {
    fn drop(&mut self) {
        self.0.lock().uses -= 1;
        self.0.released.notify_one();
    }
}

impl Deref for PeerUse {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.0
    }
}

impl PeerUse {
    /// The process at the other end of `socket`.
    ///
    /// # Errors
    /// If it has exited already, or no descriptor is left to watch it by.
    pub fn of(broker: &Arc<Broker>, socket: &Socket, pid: u32, user: u32) -> io::Result<Self> {
        // 0: a process of a foreign pid namespace. It can be watched, but not told from others.
        if pid == 0 {
            return Peer::watched(broker, socket, pid, user);
        }
        match broker.peers.entry((pid, user)) {
            // Alive, so it is the one that connected: nobody else has had its number since.
            Entry::Occupied(found) if found.get().is_alive() => Ok(Self::first(found.get())),
            Entry::Occupied(mut found) => {
                let peer = Peer::watched(broker, socket, pid, user)?;
                found.insert(peer.0.clone());
                Ok(peer)
            }
            Entry::Vacant(vacant) => {
                let peer = Peer::watched(broker, socket, pid, user)?;
                vacant.insert(peer.0.clone());
                Ok(peer)
            }
        }
    }

    fn first(peer: &Arc<Peer>) -> Self {
        peer.lock().uses += 1;
        Self(peer.clone())
    }

    pub fn is_same_process(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Peer {
    fn watched(broker: &Arc<Broker>, socket: &Socket, pid: u32, user: u32) -> io::Result<PeerUse> {
        let peer = Arc::new(Self {
            pid,
            command: command(pid).into(),
            user,
            watch: Watch::new(socket, pid)?,
            released: Notify::new(),
            state: Mutex::default(),
        });
        let guard = PeerUse::first(&peer);
        broker.spawn(keep_watch(broker.clone(), peer));
        Ok(guard)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics here")
    }

    fn is_alive(&self) -> bool {
        !self.lock().gone && !self.watch.has_exited()
    }

    /// Lists a session, to be ended with the process. False: the process has exited.
    pub fn join(&self, namespace: &Arc<Namespace>, session: SessionId) -> bool {
        let mut state = self.lock();
        if !state.gone {
            state.sessions.insert((namespace.number, session), namespace.clone());
        }
        !state.gone
    }

    pub fn leave(&self, namespace: u64, session: SessionId) {
        self.lock().sessions.remove(&(namespace, session));
    }

    /// Lists a connection, to be ended with the process. False: the process has exited.
    pub fn connect(&self, connection: &Arc<Connection>) -> bool {
        let mut state = self.lock();
        state.connections.retain(|other| other.strong_count() > 0);
        if !state.gone {
            state.connections.push(Arc::downgrade(connection));
        }
        !state.gone
    }

    /// Ends its connections in order.
    pub fn drain(&self) {
        let connections: Vec<Arc<Connection>> =
            self.lock().connections.iter().filter_map(Weak::upgrade).collect();
        for connection in connections {
            connection.drain();
        }
    }

    fn is_unused(&self) -> bool {
        let mut state = self.lock();
        state.gone |= state.uses == 0;
        state.gone
    }

    /// Loses all that it had, whoever still has its sockets open. But what it said before it
    /// exited, it said (a release, most likely): a connection that is cut is read first, and its
    /// streams handle what came before they end.
    async fn die(&self, broker: &Broker) {
        let connections = {
            let mut state = self.lock();
            state.gone = true;
            mem::take(&mut state.connections)
        };
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.cut();
        }
        while connections.iter().any(|connection| connection.strong_count() > 0) {
            self.released.notified().await;
        }
        let sessions = mem::take(&mut self.lock().sessions);
        debug!(pid = self.pid, sessions = sessions.len(), "process exited");
        for ((_, session), namespace) in sessions {
            let now = broker.now();
            broker.enter(&namespace, now, None, |state| {
                state.space.handle_lost(now, session, Cause::Died)
            });
        }
    }
}

/// Waits for the end of the process, or of the last that it has here.
async fn keep_watch(broker: Arc<Broker>, peer: Arc<Peer>) {
    let forget = |unused: bool| {
        let is_it =
            |_: &_, other: &Arc<Peer>| Arc::ptr_eq(other, &peer) && (!unused || peer.is_unused());
        broker.peers.remove_if(&(peer.pid, peer.user), is_it).is_some()
    };
    loop {
        tokio::select! {
            () = peer.watch.exited() => {
                peer.die(&broker).await;
                forget(false);
                return;
            }
            () = peer.released.notified() => {
                if forget(true) || peer.pid == 0 && peer.is_unused() {
                    return;
                }
            }
        }
    }
}

/// At most so many characters of a command are shown.
const MAX_COMMAND: usize = 64;

fn command(pid: u32) -> String {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let mut text = read("cmdline");
    if text.is_empty() {
        text = read("comm");
    }
    let words = String::from_utf8_lossy(&text).replace('\0', " ");
    printable(words.trim().chars().take(MAX_COMMAND).collect::<String>().trim_end())
}

/// With control characters escaped, since people will see it in their terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_control_characters_are_escaped() {
        assert_eq!(printable("nightly \u{1b}[2J backup\n"), r"nightly \u{1b}[2J backup\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_known_by_the_first_words_of_its_command_line() {
        let shown = command(std::process::id());
        let first = std::env::args().next().unwrap();
        let length = first.chars().count().min(MAX_COMMAND);
        assert_eq!(shown.chars().take(length).collect::<String>(), first[..length]);
        assert!(shown.chars().count() <= MAX_COMMAND);
        assert_eq!(command(0), "");
    }
}
