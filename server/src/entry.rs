//! What the bytes of a journal mean: one call of a namespace's core per record, and its state with
//! who is in it as the snapshot before them.
//!
//! A record has the call and not its outcome: the core is deterministic, so whoever makes the
//! calls again gets what was told, and a digest shows that it is. `docs/ARCHITECTURE.md` weighs
//! that against keeping outcomes.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};
use syncd_core::{
    Cause, Config, Input, Output, Reason, RecordKind, Request, SessionId, Space, Step, Time,
};

use crate::{
    journal::Need,
    panic::{self, Panicked},
};

/// What a daemon knows of a session besides the core: how its process is known, and what that
/// shows to resume it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub secret: [u8; 16],
    /// When the process began, in the system's own unit; `None`: the system doesn't tell.
    pub started: Option<u64>,
    /// The first words of its command line.
    pub command: Arc<str>,
}

/// The sessions of a namespace that aren't over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Members(BTreeMap<SessionId, Member>);

impl Members {
    /// Follows a step: who came by it (`opening`), and who went.
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

/// A record.
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

/// Where records are written, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// What nearly all records fit.
    const SIZE: usize = 1 << 10;

    /// A step's record, written over the one before. A slice of fixed length takes it in half the
    /// time that a vector takes which grows by it.
    pub fn write(&mut self, step: &Step, opening: Option<&Member>) -> &[u8] {
        let record = Written { at: step.at, input: &step.input, digest: step.digest(), opening };
        let length = loop {
            match postcard::to_slice(&record, &mut self.0) {
                Ok(written) => break written.len(),
                Err(postcard::Error::SerializeBufferFull) => {
                    let larger = (2 * self.0.len()).max(Self::SIZE);
                    self.0.resize(larger, 0);
                }
                Err(error) => unreachable!("each value has a form: {error}"),
            }
        };
        &self.0[..length]
    }
}

/// Whether the state may be larger after a call.
pub(crate) fn need(input: &Input) -> Need {
    match input {
        Input::Open(_) => Need::Growth,
        Input::Request { request, .. } if is_growth(request) => Need::Growth,
        _ => Need::Relief,
    }
}

/// Whether more may be kept after a request than before.
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

/// A namespace as a daemon left it.
pub(crate) struct Kept {
    pub space: Space,
    pub members: Members,
    /// What the core was configured to.
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

/// Why a record or a snapshot can't be gone on from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it doesn't read as what it should be: {0}")]
    Form(#[from] postcard::Error),
    #[error("this daemon comes to another conclusion than the one that wrote it told its clients")]
    Diverged,
    #[error("this daemon fails at what it says")]
    Panicked,
}

/// The state after the last record.
pub(crate) fn snapshot(space: &Space, members: &Members, config: &Config, latest: Time) -> Vec<u8> {
    let snapshot = SnapshotRef { config, latest, members, space: SpaceRef(space) };
    postcard::to_extend(&snapshot, Vec::new()).expect("memory takes it, and each value has a form")
}

impl Kept {
    pub fn read(snapshot: &[u8]) -> Result<Self, Unusable> {
        let (Head { config, latest, members }, rest) = postcard::take_from_bytes(snapshot)?;
        let mut from = postcard::Deserializer::from_bytes(rest);
        let space = Space::restore(config.clone(), &mut from)?;
        Ok(Self { space, members, config, latest })
    }

    /// Makes the call of a record again.
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

    /// From here on the core is configured so. A snapshot must come before the next record.
    pub fn configure(&mut self, config: Config) {
        self.space.configure(config.clone());
        self.config = config;
    }

    /// Ends a session, whoever has waited for that included.
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

/// Who a record says opened a session, by its process: for who looks what a damaged journal may
/// have known.
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

    /// What this version recorded (`server/tests/restart/record.rs` says how). A change of what is
    /// serialized raises the format's number and adds a way to read the one before, and a
    /// recording: this one stays.
    #[test]
    fn what_version_1_has_left_is_restored() {
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
        // What is restored can be kept again.
        let again = Kept::read(&kept.snapshot()).unwrap();
        assert_eq!(again.snapshot(), kept.snapshot());
    }

    #[test]
    fn a_call_that_comes_out_otherwise_is_noticed() {
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
