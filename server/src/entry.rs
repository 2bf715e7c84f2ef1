//! The meaning of a journal's bytes: the snapshot is a namespace's state and its sessions' members,
//! a record is one call of the core.
//!
//! A record has the call, not its outcome. The core is deterministic, so replaying the calls yields
//! the same outcomes; a digest verifies that. See "Restart" in `docs/ARCHITECTURE.md`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};
use syncd_core::{
    Cause, Config, Input, Output, Reason, RecordKind, Request, SessionId, Space, Step, Time,
};

use crate::{
    journal::Need,
    panic::{self, Panicked},
};

/// What the daemon knows of a session besides the core's state: how to identify its process, and the
/// secret of its resume key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub secret: [u8; 16],
    /// The process's start time, in the system's unit; `None` if the system doesn't report it.
    pub started: Option<u64>,
    /// The first words of its command line.
    pub command: Arc<str>,
}

/// The open sessions of a namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Members(BTreeMap<SessionId, Member>);

impl Members {
    /// Updates the members after a step, which may open a session (`opening`) or end some.
    pub fn follow(&mut self, step: &Step, mut opening: Option<Member>) {
        for output in &step.outputs {
            let Output::Record(record) = output else { continue };
            let Some(party) = &record.party else { continue };
            match record.kind {
                RecordKind::SessionOpened => {
                    self.0.extend(opening.take().map(|member| (party.session, member)));
                }
                RecordKind::SessionLost { .. } | RecordKind::SessionClosed => {
                    self.0.remove(&party.session);
                }
                _ => {}
            }
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Member)> {
        self.0.iter().map(|(&session, member)| (session, member))
    }
}

/// A record, to be written.
#[derive(Serialize)]
struct Written<'a> {
    at: Time,
    input: &'a Input,
    digest: u32,
    opening: Option<&'a Member>,
}

#[derive(Deserialize)]
struct Read {
    at: Time,
    input: Input,
    digest: u32,
    opening: Option<Member>,
}

/// A reused buffer for records.
#[derive(Debug, Default)]
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// The initial size, which nearly all records fit.
    const SIZE: usize = 1 << 10;

    /// Serializes a step's record over the former one. Writing to a slice takes half the time of
    /// appending to a vector.
    pub fn write(&mut self, step: &Step, opening: Option<&Member>) -> &[u8] {
        let record = Written { at: step.at, input: &step.input, digest: step.digest(), opening };
        let length = loop {
            match postcard::to_slice(&record, &mut self.0) {
                Ok(written) => break written.len(),
                Err(postcard::Error::SerializeBufferFull) => {
                    let larger = (2 * self.0.len()).max(Self::SIZE);
                    self.0.resize(larger, 0);
                }
                Err(error) => unreachable!("all values can be serialized: {error}"),
            }
        };
        &self.0[..length]
    }
}

/// Whether a call may make the state larger.
pub(crate) fn need(input: &Input) -> Need {
    match input {
        Input::Open(_) => Need::Growth,
        Input::Request { request, .. } if is_growth(request) => Need::Growth,
        _ => Need::Relief,
    }
}

/// Whether a request may make the state larger.
pub(crate) fn is_growth(request: &Request) -> bool {
    matches!(
        request,
        Request::Acquire(_)
            | Request::Create(_)
            | Request::AttachName(_)
            | Request::AttachKey(_)
            | Request::EventWait { .. }
            | Request::BarrierWait { .. }
    )
}

/// A namespace as read from a journal.
pub(crate) struct Kept {
    pub space: Space,
    pub members: Members,
    /// The core's configuration.
    pub config: Config,
    /// The time of the last call.
    pub latest: Time,
}

#[derive(Serialize)]
struct SnapshotRef<'a> {
    config: &'a Config,
    latest: Time,
    members: &'a Members,
    space: SpaceRef<'a>,
}

#[derive(Deserialize)]
struct Head {
    config: Config,
    latest: Time,
    members: Members,
}

struct SpaceRef<'a>(&'a Space);

impl Serialize for SpaceRef<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.save(to)
    }
}

/// Why a record or a snapshot can't be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it can't be decoded: {0}")]
    Form(#[from] postcard::Error),
    #[error("replaying it has another outcome than the one that clients were told")]
    Diverged,
    #[error("replaying it fails")]
    Panicked,
}

/// Serializes the state after the last record.
pub(crate) fn snapshot(space: &Space, members: &Members, config: &Config, latest: Time) -> Vec<u8> {
    let snapshot = SnapshotRef { config, latest, members, space: SpaceRef(space) };
    postcard::to_extend(&snapshot, Vec::new()).expect("all values can be serialized")
}

impl Kept {
    pub fn read(snapshot: &[u8]) -> Result<Self, Unusable> {
        let (Head { config, latest, members }, rest) = postcard::take_from_bytes(snapshot)?;
        let mut from = postcard::Deserializer::from_bytes(rest);
        let space = Space::restore(config.clone(), &mut from)?;
        Ok(Self { space, members, config, latest })
    }

    /// Repeats the call of a record, and verifies its digest.
    pub fn replay(&mut self, record: &[u8]) -> Result<(), Unusable> {
        let Read { at, input, digest, opening } = postcard::from_bytes(record)?;
        let replayed = panic::caught("a replayed call", || {
            self.space.replay(at, input);
            self.space.take_step()
        });
        let step = match replayed {
            Ok(Some(step)) => step,
            Ok(None) => return Err(Unusable::Diverged),
            Err(Panicked) => return Err(Unusable::Panicked),
        };
        if step.digest() != digest {
            return Err(Unusable::Diverged);
        }
        self.members.follow(&step, opening);
        self.latest = self.latest.max(at);
        Ok(())
    }

    /// Changes the core's configuration. A snapshot must be written before the next record.
    pub fn configure(&mut self, config: Config) {
        self.space.configure(config.clone());
        self.config = config;
    }

    /// Ends a session, and finishes all the work that this causes.
    pub fn lose(&mut self, now: Time, session: SessionId, cause: Cause) {
        let now = now.max(self.latest);
        self.latest = now;
        self.space.handle_lost(now, session, cause);
        while let Some(step) = self.space.take_step() {
            self.members.follow(&step, None);
            if self.space.poll_timeout().is_some_and(|due| due.reason == Reason::Work) {
                self.space.handle_work(now);
            }
        }
    }

    pub fn snapshot(&self) -> Vec<u8> {
        snapshot(&self.space, &self.members, &self.config, self.latest)
    }
}

/// The process (pid, user id, start time) that opened a session, if the record is of that. For
/// reading what is left of a damaged journal.
pub(crate) fn opened(record: &[u8]) -> Option<(u32, u32, Option<u64>)> {
    let Read { input, opening, .. } = postcard::from_bytes(record).ok()?;
    match input {
        Input::Open(process) => {
            Some((process.pid, process.uid, opening.and_then(|member| member.started)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Entry, parse};

    /// A journal of format version 1, recorded by `server/tests/restart/record.rs`. A change of what
    /// is serialized must raise the format's number, keep reading the one before, and add a
    /// recording; this one stays.
    #[test]
    fn a_journal_of_version_1_is_restored() {
        let file = include_bytes!("../tests/journals/1");
        let generation = parse(file).unwrap();
        let mut kept = Kept::read(generation.snapshot().unwrap()).unwrap();
        let mut records = 0;
        for entry in generation.entries() {
            let Entry::Record { bytes, .. } = entry else { panic!("{entry:?}") };
            kept.replay(bytes).unwrap();
            records += 1;
        }
        kept.space.check();
        let totals = kept.space.totals();
        assert_eq!((totals.sessions, totals.objects, totals.holds, totals.waiters), (2, 7, 2, 4));
        assert_eq!(kept.members.len(), 2);
        assert!(records > 100, "{records} records");
        // The restored state can be saved again.
        let again = Kept::read(&kept.snapshot()).unwrap();
        assert_eq!(again.snapshot(), kept.snapshot());
    }

    #[test]
    fn a_replay_with_another_outcome_is_detected() {
        let config = Config::default();
        let mut space = Space::new(config.clone(), 1);
        let mut kept =
            Kept::read(&snapshot(&space, &Members::default(), &config, Time(0))).unwrap();
        let process = syncd_core::Process { pid: 1, uid: 2, command: "c".into() };
        space.handle_open(Time(1), process).unwrap();
        let mut step = space.take_step().unwrap();
        step.outputs.pop();
        assert!(matches!(kept.replay(Page::default().write(&step, None)), Err(Unusable::Diverged)));
        assert!(matches!(kept.replay(b"\x01\xff"), Err(Unusable::Form(_))));
    }
}
