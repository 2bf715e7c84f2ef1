//! The sessions and connections of each client process, which end when it dies.

use std::{
    collections::BTreeMap,
    mem,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use dashmap::Entry;
use syncd_core::{Cause, SessionId};
use tokio::sync::Notify;
use tracing::debug;

use crate::{
    broker::Broker,
    connection::Connection,
    namespace::Namespace,
    panic,
    peer::{Peer, Unidentified},
    registry::User,
};

/// A process with a connection or a session. There is one entry per process and user, so that two
/// uses of an entry belong to the same process even if pids are reused.
pub(crate) struct Client {
    pub peer: Peer,
    /// The first words of its command line.
    pub command: Arc<str>,
    /// Notified when a connection or session of the process has ended.
    released: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gone: bool,
    uses: usize,
    sessions: BTreeMap<(u64, SessionId), Arc<Namespace>>,
    connections: Vec<Weak<Connection>>,
    /// At this number of connections, closed ones are removed from the list, so that each new one
    /// costs the same (amortized), however many there are.
    crowded: usize,
}

/// Keeps a process's entry, for a connection or a session.
pub(crate) struct ClientUse(Arc<Client>);

impl Clone for ClientUse {
    fn clone(&self) -> Self {
        self.0.lock().uses += 1;
        Self(self.0.clone())
    }
}

impl Drop for ClientUse {
    fn drop(&mut self) {
        self.0.lock().uses -= 1;
        self.0.released.notify_one();
    }
}

impl Deref for ClientUse {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl ClientUse {
    /// The entry of a process that has just been identified.
    pub async fn of(broker: &Arc<Broker>, peer: Peer, user: &User) -> Result<Self, Unidentified> {
        let key = (peer.pid, peer.user);
        let clients = &broker.registry.clients;
        let known = clients.get(&key).map(|client| client.clone());
        // Both are alive and have the same pid, so they are the same process.
        if let Some(client) = known.and_then(|known| Self::take(&known)) {
            return if peer.has_exited() { Err(Unidentified::Exited) } else { Ok(client) };
        }
        let command = peer.command(&user.readers).await.ok_or(Unidentified::Exited)?;
        Self::enlist(broker, peer, command).ok_or(Unidentified::Exited)
    }

    /// The entry of a restored process that has been found already, for another of its sessions.
    pub fn found(broker: &Broker, pid: u32, user: u32, started: Option<u64>) -> Option<Self> {
        let client = broker.registry.clients.get(&(pid, user))?.clone();
        let is_proved = started.is_some() && client.peer.started == started;
        is_proved.then(|| Self::take(&client)).flatten()
    }

    /// The entry of a process that the former daemon knew. `None`: it has exited.
    pub fn restored(broker: &Arc<Broker>, peer: Peer, command: Arc<str>) -> Option<Self> {
        Self::enlist(broker, peer, command)
    }

    /// Makes the process's entry, if there is none, and watches the process. `None`: it has exited.
    fn enlist(broker: &Arc<Broker>, peer: Peer, command: Arc<str>) -> Option<Self> {
        let key = (peer.pid, peer.user);
        let client =
            Arc::new(Client { peer, command, released: Notify::new(), state: Mutex::default() });
        let client_use = Self::take(&client)?;
        match broker.registry.clients.entry(key) {
            Entry::Occupied(mut found) => {
                // Another connection of the same process may have made it meanwhile.
                if let Some(first) = Self::take(found.get()) {
                    return Some(first);
                }
                found.insert(client.clone());
            }
            Entry::Vacant(vacant) => drop(vacant.insert(client.clone())),
        }
        let watcher = broker.clone();
        broker.supervise("the watch over a process", move || {
            keep_watch(watcher.clone(), client.clone())
        });
        Some(client_use)
    }

    /// A use of the entry. `None` if the process has exited, or the entry is being removed.
    fn take(client: &Arc<Client>) -> Option<Self> {
        let mut state = client.lock();
        if state.gone || client.peer.has_exited() {
            return None;
        }
        state.uses += 1;
        Some(Self(client.clone()))
    }

    pub fn is_same_process(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, State> {
        panic::lock(&self.state)
    }

    /// Registers a session to be ended with the process. False: the process has exited.
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

    /// Registers a connection to be ended with the process. False: the process has exited.
    pub fn connect(&self, connection: &Arc<Connection>) -> bool {
        let mut state = self.lock();
        if state.connections.len() >= state.crowded {
            state.connections.retain(|other| other.strong_count() > 0);
            state.crowded = 2 * state.connections.len() + 1;
        }
        if !state.gone {
            state.connections.push(Arc::downgrade(connection));
        }
        !state.gone
    }

    /// Drains the process's connections.
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

    /// Ends the process's sessions, even if another process still has its sockets open. Requests
    /// that it sent before its exit count (R64): its connections are cut first, which reads them to
    /// the end, and their streams handle what was read.
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
        debug!(pid = self.peer.pid, sessions = self.lock().sessions.len(), "process exited");
        loop {
            let Some(((_, session), namespace)) = self.lock().sessions.pop_first() else { return };
            let _ = broker.enter(&namespace, broker.now(), None, |state, now| {
                state.space.handle_lost(now, session, Cause::Died)
            });
            // Lets other tasks run between two sessions.
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until the process exits, or has no connection or session left.
async fn keep_watch(broker: Arc<Broker>, client: Arc<Client>) {
    let forget = |unused: bool| {
        let is_it = |_: &_, other: &Arc<Client>| {
            Arc::ptr_eq(other, &client) && (!unused || client.is_unused())
        };
        let key = (client.peer.pid, client.peer.user);
        let forgotten = broker.registry.clients.remove_if(&key, is_it).is_some();
        if forgotten {
            broker.registry.changed.notify_one();
        }
        forgotten
    };
    loop {
        tokio::select! {
            () = client.peer.exited() => {
                client.die(&broker).await;
                forget(false);
                return;
            }
            () = client.released.notified() => {
                if forget(true) {
                    return;
                }
            }
        }
    }
}
