//! What a daemon left, read and replayed. Nothing is changed by that.

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

/// All that a daemon left, loaded and replayed; nothing is changed by that.
#[derive(Default)]
pub(crate) struct Legacy {
    pub(super) unreadable: Option<io::Error>,
    pub(super) unusable: Vec<journal::Unusable>,
    pub(super) replayed: Vec<(Found, Result<Kept, Failed>)>,
    /// To load it, the last time.
    pub(super) took: Duration,
}

impl Legacy {
    pub fn load(directory: &Directory) -> Self {
        Self::default().load_again(directory)
    }

    /// Loads what is there by now. Of what was loaded before, only what has come since is replayed.
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

    /// Whether all of it can be gone on with.
    ///
    /// # Errors
    /// What can't be.
    pub fn check(&self) -> Result<(), String> {
        if let Some(error) = &self.unreadable {
            return Err(format!("the journal can't be read: {error}"));
        }
        if let Some(bad) = self.unusable.iter().find(|unusable| !unusable.why.is_worthless()) {
            return Err(format!("{}: {}", bad.file.display(), bad.why));
        }
        for (found, kept) in &self.replayed {
            if Address::shown(&found.address).is_none() {
                return Err(format!("{:?} is no namespace", found.address));
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

/// Why a journal can't be gone on with, and the last state that it proves: that after the first
/// so many records.
pub(super) struct Failed {
    pub kept: Option<Box<Kept>>,
    pub proved: usize,
    pub why: String,
}

/// The state that a journal proves: all of it, or why there is an end to that.
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
            // The call was made; so the state before it has to be made again.
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

/// The same, from the state that was proved by what the journal had been earlier.
fn replay_rest(earlier: &Found, mut kept: Kept, found: &Found) -> Result<Kept, Failed> {
    let mut rest = found.records().skip(earlier.records().count());
    let is_longer = found.is_later(earlier);
    match is_longer && rest.all(|record| kept.replay(record.bytes).is_ok()) {
        true => Ok(kept),
        false => replay(found),
    }
}

/// The state after the first so many records.
fn replay_first(found: &Found, records: usize) -> Result<Kept, Unusable> {
    let mut kept = Kept::read(found.snapshot())?;
    for record in found.records().take(records) {
        kept.replay(record.bytes)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use syncd_core::{Config, Process, Space, Time};

    use super::*;
    use crate::{
        entry::{Members, Page, snapshot},
        journal::{Journal, Need, Store as _},
    };

    /// A namespace that is written to.
    struct Living {
        directory: Arc<Directory>,
        space: Space,
        journal: Journal,
    }

    impl Living {
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

    fn state(legacy: &Legacy) -> Vec<u8> {
        legacy.check().unwrap();
        let [(_, Ok(kept))] = &*legacy.replayed else { panic!("one namespace") };
        kept.snapshot()
    }

    #[test]
    fn what_was_loaded_ahead_is_the_same_once_all_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(&dir.path().join("journal")).unwrap();
        let space = Space::new(Config::default(), 1);
        let empty = snapshot(&space, &Members::default(), &Config::default(), Time(0));
        let journal = Journal::create(&directory, "7/n", None, &empty).unwrap();
        let mut living = Living { directory, space, journal };
        living.open_one(1);
        let mut ahead = Legacy::load(&living.directory);
        // Records after those that were loaded; none; another snapshot; one and records.
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
    fn what_was_loaded_ahead_is_no_more_than_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(&dir.path().join("journal")).unwrap();
        let space = Space::new(Config::default(), 1);
        let empty = snapshot(&space, &Members::default(), &Config::default(), Time(0));
        let journal = Journal::create(&directory, "7/n", None, &empty).unwrap();
        let mut living = Living { directory, space, journal };
        living.open_one(1);
        let ahead = Legacy::load(&living.directory);
        living.journal.remove().unwrap();
        let again = ahead.load_again(&living.directory);
        assert_eq!(again.holdings().namespaces, 0);
        // Another one of the same name begins anew.
        let journal = Journal::create(&living.directory, "7/n", None, &empty).unwrap();
        let last = again.load_again(&living.directory);
        assert_eq!(state(&last), empty);
        drop(journal);
    }
}
