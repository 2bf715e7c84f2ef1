//! Restoring the state of the previous daemon, however that ended. What dead processes held is
//! abandoned. Living ones keep their holds and their places in queues until they resume, end or
//! die; if it can't be proved that a process is still the same one, it has the grace. Objects that
//! no process holds are served at once.

mod doubt;
mod legacy;
mod unused;

use std::{path::PathBuf, sync::Arc, time::Instant};

use syncd_core::{
    Cause, SessionId,
    sabotage::{Bug, sabotaged},
};
use tracing::{debug, error, info, warn};

use doubt::Doubt;
pub(crate) use doubt::Doubts;
pub(crate) use legacy::Legacy;

use crate::{
    ServeError,
    broker::Broker,
    clients::ClientUse,
    entry::{Kept, Member},
    journal::{Directory, Found, Journal, Store as _, StoreError, failpoint},
    namespace::{Address, MAX_NAME, Namespace},
    outbox::Session,
    peer::{self, Peer},
};

/// Restores what the journal directory holds. Call it before any client is served.
///
/// # Errors
/// If another daemon keeps its state there.
pub(crate) async fn restore(broker: &Arc<Broker>) -> Result<(), ServeError> {
    if let Some(directory) = &broker.settings.journal {
        let failed = |error| ServeError::Journal { path: directory.path().to_owned(), error };
        directory.lock().await.map_err(failed)?;
        Legacy::load(directory).restore(broker);
    }
    unused::set_aside(&broker.settings);
    Ok(())
}

impl Legacy {
    /// Restores each namespace, or adds it to the broker's doubts.
    pub fn restore(self, broker: &Arc<Broker>) {
        let Some(directory) = &broker.settings.journal else { return };
        let begun = Instant::now();
        if let Some(error) = self.unreadable {
            let file = directory.path().to_owned();
            error!("{}: the journal directory can't be read: {error}", file.display());
            return broker.doubts.add_unknown(file, error.to_string());
        }
        for unusable in self.unusable {
            let (file, why) = (unusable.file, unusable.why);
            if why.is_worthless() {
                debug!("{}: {why}: removed", file.display());
                if let Err(error) = directory.discard(&file) {
                    warn!("{}: {why}, but it can't be removed: {error}", file.display());
                }
            } else {
                error!(
                    "{}: {why}: new namespaces aren't served, since it may say what is held",
                    file.display()
                );
                broker.doubts.add_unknown(file, why.to_string());
            }
        }
        let (mut namespaces, mut sessions) = (0, 0);
        for (found, kept) in self.replayed {
            let Some(address) = Address::shown(&found.address) else {
                let file = found.files()[0].clone();
                error!("{}: {:?} isn't the name of a namespace", file.display(), found.address);
                broker.doubts.add_unknown(file, "its namespace has no name".into());
                continue;
            };
            match kept {
                Ok(kept) => {
                    sessions += kept.members.len();
                    namespaces += 1;
                    if let Err(error) = go_on(broker, directory, &found, address.clone(), kept) {
                        error!(namespace = %address, "the journal can't be continued: {error}");
                        broker.doubts.add_unknown(found.files()[0].clone(), error.to_string());
                    }
                }
                Err(failed) => {
                    let why = &failed.why;
                    error!(namespace = %address, "{why}: served from the state that can be proved, \
                        once no process is left that may hold more");
                    broker.doubts.add(address, Doubt::of(found, failed));
                }
            }
        }
        if namespaces > 0 {
            let (loaded, took) = (self.took, self.took + begun.elapsed());
            info!(namespaces, sessions, ?loaded, ?took, "restored the previous daemon's state");
        }
    }
}

/// Restores a namespace and continues its journal: in the same files, or in new ones if any is
/// damaged.
fn go_on(
    broker: &Arc<Broker>,
    directory: &Arc<Directory>,
    found: &Found,
    address: Address,
    mut kept: Kept,
) -> Result<Arc<Namespace>, StoreError> {
    let config = broker.core_config(&address);
    let is_same = kept.config == config;
    kept.configure(config);
    let journal = if found.damage.is_empty() {
        let mut journal = Journal::resume(directory, found)?;
        if !is_same {
            // A replay needs the configuration with which the calls are made from now on.
            journal.switch(&kept.snapshot())?;
        }
        journal
    } else {
        found
            .damage
            .iter()
            .for_each(|damage| warn!("{damage}: the state is complete nevertheless"));
        let journal =
            Journal::create(directory, &found.address, Some(found.generation), &kept.snapshot())?;
        keep_aside(directory, found.files());
        journal
    };
    Ok(begin(broker, address, kept, journal))
}

fn keep_aside(directory: &Directory, files: &[PathBuf]) {
    for file in files {
        match directory.keep_aside(file) {
            Ok(aside) => warn!("{} is kept as {}", file.display(), aside.display()),
            Err(error) => warn!("{} can't be kept aside: {error}", file.display()),
        }
    }
}

/// Registers a restored namespace, and its sessions whose processes live.
fn begin(broker: &Arc<Broker>, address: Address, kept: Kept, journal: Journal) -> Arc<Namespace> {
    let Kept { space, members, latest, .. } = kept;
    let sessions: Vec<(SessionId, Member)> =
        members.iter().map(|(session, member)| (session, member.clone())).collect();
    broker.numbers.cover(space.totals().last_number);
    let namespace = broker.make(address, space, Some(journal));
    {
        let mut state = namespace.lock();
        state.members = members;
        state.latest = latest;
        state.longest_label = MAX_NAME;
    }
    broker.registry.restore(&namespace, &broker.settings.limits);
    // Another daemon, without this journal, may have run since, or this is an old copy.
    let first = broker.numbers.begin();
    let _ = broker.enter(&namespace, broker.now(), None, |state, now| {
        state.space.handle_numbers(now, first);
    });
    for (session, member) in sessions {
        failpoint("restart.rejoin");
        rejoin(broker, &namespace, session, member);
    }
    // Handles deadlines that have passed meanwhile.
    let _ = broker.enter(&namespace, broker.now(), None, |state, now| {
        state.space.handle_timeout(now);
    });
    broker.begin(&namespace);
    namespace
}

/// Registers a restored session until its process resumes it; ends it if the process is dead.
fn rejoin(broker: &Arc<Broker>, namespace: &Arc<Namespace>, id: SessionId, member: Member) {
    let view = namespace.lock().space.session(broker.now(), id);
    let Some(process) = view.map(|view| view.process) else { return };
    let Member { secret, started, command } = member;
    let look = || match Peer::find(process.pid, process.uid, started) {
        peer::Found::Living { peer, proved } => {
            ClientUse::restored(broker, peer, command).map(|client| (client, proved))
        }
        peer::Found::Dead => None,
    };
    let found = ClientUse::found(broker, process.pid, process.uid, started);
    let found = found.map(|client| (client, true)).or_else(look);
    let Some((client, proved)) = found else {
        let _ = broker.enter(namespace, broker.now(), None, |state, now| {
            state.space.handle_lost(now, id, Cause::Died)
        });
        return;
    };
    let limits = &broker.settings.limits;
    let user = broker.registry.user(process.uid, limits);
    let label = process.command.clone();
    let limit = limits.unsent_bytes_per_session;
    let session = Session::new(id, namespace.clone(), client, user, secret, label, limit);
    let session = Arc::new(session);
    broker.registry.sessions.insert((namespace.number, id), session.clone());
    let cause = (!session.client.join(namespace, id)).then_some(Cause::Died);
    let _ = broker.enter(namespace, broker.now(), None, |state, now| {
        match cause {
            Some(cause) => drop(state.space.handle_lost(now, id, cause)),
            None if proved && !sabotaged(Bug::LivingHolderLoses) => {
                state.space.handle_restored(now, id)
            }
            None => state.space.handle_disconnect(now, id),
        }
        state.count_references(&session, now);
    });
}

#[cfg(test)]
mod tests {
    use syncd_core::{Process, Space, Time};
    use syncd_proto::Endpoint;

    use super::*;
    use crate::{
        Config, Server,
        broker::NoNamespace,
        entry::{self, Members},
        journal::Need,
    };

    /// Starts a daemon that finds a journal, which `write` makes for the namespace that is returned.
    async fn found(
        write: impl FnOnce(&Arc<Directory>, &str),
    ) -> (Server, Address, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let address = Address { owner: Some(7), name: "n".into() };
        let directory = Directory::open(&dir.path().join("s.sock.journal")).unwrap();
        write(&directory, &address.to_string());
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let server = Server::bind(Config::new(endpoint)).unwrap();
        restore(&server.broker).await.unwrap();
        (server, address, dir)
    }

    fn is_refused(server: &Server, address: &Address) -> bool {
        matches!(server.broker.namespace(address), Err(NoNamespace::InDoubt(_)))
    }

    // Rule R68
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn sessions_opened_after_a_failed_replay_may_hold_something() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (server, address, _dir) = found(|directory, address| {
            let config = syncd_core::Config::default();
            let mut space = Space::new(config.clone(), 1);
            let empty = entry::snapshot(&space, &Members::default(), &config, Time(0));
            let mut journal = Journal::create(directory, address, None, &empty).unwrap();
            let nobody = i32::MAX as u32;
            for (pid, is_as_told) in [(nobody, false), (child.id(), true)] {
                let process = Process { pid, uid: 7, command: "c".into() };
                space.handle_open(Time(1), process).unwrap();
                let mut step = space.take_step().unwrap();
                if !is_as_told {
                    step.outputs.clear();
                }
                journal.append(entry::Page::default().write(&step, None), Need::Growth).unwrap();
            }
        })
        .await;
        assert!(is_refused(&server, &address));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_refused(&server, &address));
    }

    // Rule R68
    #[tokio::test]
    async fn a_snapshot_that_cannot_be_read_may_say_that_anything_is_held() {
        let (server, address, dir) = found(|directory, address| {
            drop(Journal::create(directory, address, None, b"\xff\xff").unwrap());
        })
        .await;
        assert!(is_refused(&server, &address));
        for file in std::fs::read_dir(dir.path().join("s.sock.journal")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        assert!(!is_refused(&server, &address));
    }
}
