//! Loading and replaying the previous daemon's journals, without changing them.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use crate::{
    broker::Holdings,
    entry::{Kept, Unusable},
    journal::{self, Directory, Found, Loaded, failpoint},
    namespace::Address,
};

/// The previous daemon's journals, loaded and replayed.
#[derive(Default)]
pub(crate) struct Legacy {
    pub(super) unreadable: Option<io::Error>,
    pub(super) unusable: Vec<journal::Unusable>,
    pub(super) replayed: Vec<(Found, Result<Kept, Failed>)>,
    /// How long the last load took.
    pub(super) took: Duration,
}

impl Legacy {
    pub fn load(directory: &Directory) -> Self {
        Self::default().load_again(directory)
    }

    /// Loads the current files. Of journals that were loaded before, only new records are replayed.
    pub fn load_again(self, directory: &Directory) -> Self {
        let begun = Instant::now();
        let (loaded, unreadable) = match directory.load() {
            Ok(loaded) => (loaded, None),
            Err(error) => (Loaded::default(), Some(error)),
        };
        let before = self.replayed.into_iter();
        let mut before: HashMap<_, _> =
            before.map(|(found, kept)| (found.address.clone(), (found, kept))).collect();
        let replayed = loaded.found.into_iter().map(|found| {
            let kept = match before.remove(&found.address) {
                Some((earlier, Ok(kept))) => replay_rest(&earlier, kept, &found),
                _ => replay(&found),
            };
            (found, kept)
        });
        let replayed = replayed.collect();
        Self { unreadable, unusable: loaded.unusable, replayed, took: begun.elapsed() }
    }

    /// Checks that all of it can be restored.
    ///
    /// # Errors
    /// The first that can't be, and why.
    pub fn check(&self) -> Result<(), String> {
        if let Some(error) = &self.unreadable {
            return Err(format!("the journal can't be read: {error}"));
        }
        if let Some(bad) = self.unusable.iter().find(|unusable| !unusable.why.is_worthless()) {
            return Err(format!("{}: {}", bad.file.display(), bad.why));
        }
        for (found, kept) in &self.replayed {
            if Address::shown(&found.address).is_none() {
                return Err(format!("{:?} isn't the name of a namespace", found.address));
            }
            kept.as_ref().map_err(|failed| failed.why.clone())?;
        }
        Ok(())
    }

    pub fn holdings(&self) -> Holdings {
        let kept = self.replayed.iter().filter_map(|(_, kept)| kept.as_ref().ok());
        kept.fold(Holdings::default(), |mut sum, kept| {
            sum.namespaces += 1;
            sum.sessions += kept.members.len();
            sum
        })
    }
}

/// Why a journal can't be restored whole, and the last state that it proves.
pub(super) struct Failed {
    pub kept: Option<Box<Kept>>,
    /// `kept` is the state after this many records.
    pub proved: usize,
    pub why: String,
}

/// Replays a journal. On failure returns the state that it proves.
fn replay(found: &Found) -> Result<Kept, Failed> {
    let files = found.files().iter().map(|file| file.display().to_string());
    let files = files.collect::<Vec<_>>().join(" and ");
    let mut kept = Kept::read(found.snapshot()).map_err(|why| {
        let why = format!("{files}: the snapshot: {why}");
        Failed { kept: None, proved: 0, why }
    })?;
    let mut proved = 0;
    for record in found.records().take_while(|record| !record.is_after_damage) {
        if let Err(why) = kept.replay(record.bytes) {
            // The call has changed the state: the state before it is replayed anew.
            let kept = replay_first(found, proved).ok().map(Box::new);
            let why = format!("{files}, record {}: {why}", proved + 1);
            return Err(Failed { kept, proved, why });
        }
        proved += 1;
        failpoint("restart.replay");
    }
    match found.damage.first() {
        Some(damage) if !found.is_whole => {
            Err(Failed { kept: Some(Box::new(kept)), proved, why: damage.to_string() })
        }
        _ => Ok(kept),
    }
}

/// Replays a journal from `kept`, the state at the end of an `earlier` load.
fn replay_rest(earlier: &Found, mut kept: Kept, found: &Found) -> Result<Kept, Failed> {
    let mut rest = found.records().skip(earlier.records().count());
    if found.is_later(earlier) && rest.all(|record| kept.replay(record.bytes).is_ok()) {
        Ok(kept)
    } else {
        replay(found)
    }
}

/// The state after the first `records` records.
fn replay_first(found: &Found, records: usize) -> Result<Kept, Unusable> {
    let mut kept = Kept::read(found.snapshot())?;
    for record in found.records().take(records) {
        kept.replay(record.bytes)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use syncd_core::{Config, Process, Space, Time};

    use super::*;
    use crate::{
        entry::{Members, Page, snapshot},
        journal::{Journal, Need, Store as _},
    };

    /// A namespace with its journal.
    struct Living {
        directory: Arc<Directory>,
        space: Space,
        journal: Journal,
    }

    impl Living {
        fn begin(dir: &Path) -> Self {
            let directory = Directory::open(&dir.join("journal")).unwrap();
            let space = Space::new(Config::default(), 1);
            let journal = Journal::create(&directory, "7/n", None, &empty()).unwrap();
            let mut living = Self { directory, space, journal };
            living.open_one(1);
            living
        }

        fn open_one(&mut self, pid: u32) {
            let process = Process { pid, uid: 7, command: "c".into() };
            self.space.handle_open(Time(pid.into()), process).unwrap();
            let step = self.space.take_step().unwrap();
            self.journal.append(Page::default().write(&step, None), Need::Growth).unwrap();
        }

        fn snapshot(&self) -> Vec<u8> {
            snapshot(&self.space, &Members::default(), &Config::default(), Time(9))
        }
    }

    fn empty() -> Vec<u8> {
        let space = Space::new(Config::default(), 1);
        snapshot(&space, &Members::default(), &Config::default(), Time(0))
    }

    fn state(legacy: &Legacy) -> Vec<u8> {
        legacy.check().unwrap();
        let [(_, Ok(kept))] = &*legacy.replayed else { panic!("one namespace") };
        kept.snapshot()
    }

    #[test]
    fn loading_ahead_and_again_gives_the_same_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut living = Living::begin(dir.path());
        let mut ahead = Legacy::load(&living.directory);
        // New records; none; a new snapshot and records, twice.
        for step in 0..4 {
            if step >= 2 {
                let snapshot = living.snapshot();
                living.journal.switch(&snapshot).unwrap();
            }
            if step != 1 {
                (0..3).for_each(|n| living.open_one(10 * step + n));
            }
            ahead = ahead.load_again(&living.directory);
            assert_eq!(state(&ahead), state(&Legacy::load(&living.directory)));
            assert_eq!(ahead.holdings().namespaces, 1);
        }
    }

    #[test]
    fn a_journal_removed_after_loading_ahead_is_not_restored() {
        let dir = tempfile::tempdir().unwrap();
        let living = Living::begin(dir.path());
        let ahead = Legacy::load(&living.directory);
        living.journal.remove().unwrap();
        let again = ahead.load_again(&living.directory);
        assert_eq!(again.holdings().namespaces, 0);
        // A new journal of the same name begins empty.
        let journal = Journal::create(&living.directory, "7/n", None, &empty()).unwrap();
        let last = again.load_again(&living.directory);
        assert_eq!(state(&last), empty());
        drop(journal);
    }
}
