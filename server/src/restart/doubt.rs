//! Namespaces in doubt: more may be held there than can be proved, because another process changed
//! the journal, or it was written by a version that this one can't read. Such a namespace can't be
//! entered before each process that may hold something has died, or has learnt that its session is
//! lost; if records are missing, so that these aren't known, before a person removes the files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use dashmap::{DashMap, Entry};
use syncd_core::{Cause, SessionId, Time};
use tracing::{error, info};

use super::{begin, keep_aside, legacy::Failed};
use crate::{
    broker::Broker,
    entry::{self, Kept},
    journal::{Found, Journal},
    namespace::Address,
    panic,
    peer::{self, Peer},
};

#[derive(Default)]
pub(crate) struct Doubts {
    namespaces: DashMap<Address, Doubt>,
    /// Files that may belong to any namespace, and what is wrong with each.
    unknown: Mutex<Vec<(PathBuf, String)>>,
}

pub(crate) struct Doubt {
    why: String,
    found: Found,
    kept: Option<Box<Kept>>,
    suspects: Vec<Suspect>,
}

/// A living process that may hold something.
struct Suspect {
    peer: Peer,
    /// How many sessions it may have.
    sessions: usize,
    /// The sessions that it knows to be lost.
    told: BTreeSet<SessionId>,
}

impl Suspect {
    fn may_hold(&self) -> bool {
        self.told.len() < self.sessions && !self.peer.has_exited()
    }
}

impl Doubt {
    pub(super) fn of(found: Found, failed: Failed) -> Self {
        let Failed { kept, proved, why } = failed;
        let mut doubt = Self { why, kept, suspects: Vec::new(), found };
        let members = doubt.kept.iter().flat_map(|kept| {
            kept.members.iter().filter_map(|(id, member)| {
                let process = kept.space.session(Time::default(), id)?.process;
                Some((process.pid, process.uid, member.started))
            })
        });
        // Sessions opened after the proved state may hold something, too.
        let opened = doubt.found.records().skip(proved);
        let opened = opened.filter_map(|record| entry::opened(record.bytes));
        let suspects: Vec<_> = members.chain(opened).collect();
        for (pid, user, started) in suspects {
            doubt.suspect(pid, user, started);
        }
        doubt
    }

    /// Whether all processes that may hold something are suspects: no record is missing, and the
    /// snapshot can be read.
    fn knows_all(&self) -> bool {
        self.found.is_whole && self.kept.is_some()
    }

    /// Whether the namespace may be entered.
    ///
    /// # Errors
    /// What must happen first: processes must end, or the files must be removed.
    fn check(&self, address: &Address) -> Result<(), String> {
        if !self.knows_all() {
            return match self.found.files().iter().find(|file| file.exists()) {
                Some(file) => Err(advise(address, file, &self.why)),
                None => Ok(()),
            };
        }
        let mut left = self.suspects.iter().filter(|suspect| suspect.may_hold());
        let Some(first) = left.next() else { return Ok(()) };
        let (pid, why) = (first.peer.pid, &self.why);
        let others = left.count();
        Err(format!(
            "it isn't known what is held in {address} ({why}): it can be used again once process \
             {pid} and {others} others, which may hold something, have ended"
        ))
    }

    fn suspect(&mut self, pid: u32, user: u32, started: Option<u64>) {
        let known = self.suspects.iter_mut().find(|known| known.peer.pid == pid);
        if let Some(known) = known {
            known.sessions += 1;
        } else if let peer::Found::Living { peer, .. } = Peer::find(pid, user, started) {
            self.suspects.push(Suspect { peer, sessions: 1, told: BTreeSet::new() });
        }
    }
}

impl Doubts {
    pub fn add(&self, address: Address, doubt: Doubt) {
        self.namespaces.insert(address, doubt);
    }

    /// Adds a file that can't be read, of an unknown namespace.
    pub fn add_unknown(&self, file: PathBuf, why: String) {
        panic::lock(&self.unknown).push((file, why));
    }

    /// The first reason why a namespace can't be entered, for Status.
    pub fn first(&self) -> Option<String> {
        let unknown = panic::lock(&self.unknown)
            .first()
            .map(|(file, why)| format!("{}: {why}", file.display()));
        unknown.or_else(|| {
            let doubt = self.namespaces.iter().next()?;
            Some(format!("{}: {}", doubt.key(), doubt.why))
        })
    }

    /// A process tries to resume a session that doesn't exist, and so learns that it is lost.
    pub fn tell(&self, address: &Address, pid: u32, session: SessionId) {
        if let Some(mut doubt) = self.namespaces.get_mut(address) {
            for suspect in doubt.suspects.iter_mut().filter(|suspect| suspect.peer.pid == pid) {
                suspect.told.insert(session);
            }
        }
    }

    /// Checks that a namespace may be entered. If its doubt is resolved, begins it from the proved
    /// state.
    ///
    /// # Errors
    /// Why it can't be entered.
    pub fn settle(&self, broker: &Arc<Broker>, address: &Address) -> Result<(), String> {
        if let Some(doubt) = self.namespaces.get(address) {
            doubt.check(address)?;
        } else if !broker.registry.namespaces.contains_key(address) {
            return self.check_unknown(address);
        }
        // Concurrent callers wait for the entry, and then find the namespace.
        if let Entry::Occupied(mut doubt) = self.namespaces.entry(address.clone()) {
            resolve(broker, address, doubt.get_mut());
            doubt.remove();
        }
        Ok(())
    }

    fn check_unknown(&self, address: &Address) -> Result<(), String> {
        let mut unknown = panic::lock(&self.unknown);
        unknown.retain(|(file, _)| file.exists());
        let Some((file, why)) = unknown.first() else { return Ok(()) };
        Err(advise(address, file, why))
    }
}

/// What to do about a file that can't be read.
fn advise(address: &Address, file: &Path, why: &str) -> String {
    format!(
        "it isn't known what is held in {address}: {} may say so, but {why}. Once all processes that \
         used the previous daemon have ended, remove that file",
        file.display()
    )
}

/// Begins a namespace in doubt, once no process is left that could hold more than is proved.
fn resolve(broker: &Arc<Broker>, address: &Address, doubt: &mut Doubt) {
    let Doubt { found, kept, .. } = doubt;
    let Some(directory) = &broker.settings.journal else { return };
    if let Some(mut kept) = kept.take() {
        let now = broker.now();
        let sessions: Vec<SessionId> = kept.members.iter().map(|(id, _)| id).collect();
        for session in sessions {
            kept.lose(now, session, Cause::Disconnected);
        }
        kept.configure(broker.core_config(address));
        let snapshot = kept.snapshot();
        match Journal::create(directory, &found.address, Some(found.generation), &snapshot) {
            Ok(journal) => drop(begin(broker, address.clone(), *kept, journal)),
            Err(error) => error!(namespace = %address, "restored as empty: {error}"),
        }
    }
    keep_aside(directory, found.files());
    info!(namespace = %address, "no process is left that may hold more than is proved: serving");
}
