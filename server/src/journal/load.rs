//! What a daemon that starts finds in its directory. Loading changes nothing there. Never here:
//! what is then made of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use super::{
    Directory,
    current::wanted_size,
    directory::{file_name, number_and_slot, without_room},
    format::{HEADER, Header, MAX_RECORD, Refusal},
    parse::{Entry, Generation, parse},
};

/// More damage than this isn't told one by one.
const MOST_DAMAGE: usize = 64;
/// A file up to here is read as a whole. Of a larger one, what its header says was written, and no more
/// log than this.
const LARGE: u64 = 1 << 30;

/// All that was found.
#[derive(Debug, Default)]
pub struct Loaded {
    pub found: Vec<Found>,
    pub unusable: Vec<Unusable>,
}

/// The journal of one namespace.
#[derive(Debug)]
pub struct Found {
    pub address: String,
    /// The version of the daemon that took the last snapshot.
    pub daemon: String,
    /// When that was, in microseconds since the Unix epoch.
    pub taken_at: u64,
    /// Of the last snapshot.
    pub generation: u64,
    /// What is wrong with it. If something is, [`resume`](super::Journal::resume) refuses it: make
    /// another after its generation, then keep its files aside.
    pub damage: Vec<Damage>,
    /// Snapshot and records are all that was ever written, whatever damage there is.
    pub is_whole: bool,
    pub(super) number: u64,
    files: Vec<PathBuf>,
    /// What the snapshot is of, and what the last record is of: the same, but for damage.
    generations: Vec<Kept>,
}

/// A generation whose bytes were read.
#[derive(Debug)]
pub(super) struct Kept {
    pub slot: usize,
    pub header: Header,
    /// The end of its log, or of that part of it that the next snapshot isn't of.
    pub position: u64,
    pub records: u64,
    /// Why the file is larger than it can be.
    excess: Option<String>,
    bytes: Vec<u8>,
}

/// A record that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub bytes: &'a [u8],
    /// Others are missing before it.
    pub is_after_damage: bool,
}

/// Something in a file that isn't as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: PathBuf,
    /// How many records there were before it, and where in the file it is; `None`: it isn't in
    /// the log.
    pub record: Option<(u64, u64)>,
    pub reason: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((records, offset)) = self.record {
            write!(f, ", record {} at byte {offset}", records + 1)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// A file that no namespace can be restored from.
#[derive(Debug)]
pub struct Unusable {
    pub file: PathBuf,
    pub why: Why,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// All whom it tells of are dead: it may be discarded.
    #[error("it is of another run of the machine")]
    OtherBoot,
    #[error("it is of user {0}")]
    OtherUser(u32),
    /// Nothing is lost with it: it may be discarded.
    #[error("a later journal of the same namespace is there")]
    Superseded,
    /// Nothing is lost with it: it may be discarded.
    #[error("it was not completed")]
    Unfinished,
    #[error(transparent)]
    Refused(Refusal),
    #[error("the snapshot of {0} is damaged, and there is no earlier one")]
    NoSnapshot(String),
    #[error("it can't be read: {0}")]
    Unreadable(io::Error),
}

impl Why {
    /// Nobody can miss the file.
    pub fn is_worthless(&self) -> bool {
        matches!(self, Self::OtherBoot | Self::Superseded | Self::Unfinished)
    }
}

impl Directory {
    /// Looks through all that is here.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn load(&self) -> io::Result<Loaded> {
        let mut numbers = BTreeMap::<u64, BTreeSet<usize>>::new();
        let mut loaded = Loaded::default();
        for name in self.names()? {
            if let Some((number, slot)) = number_and_slot(&name) {
                numbers.entry(number).or_default().insert(slot);
            } else if without_room(&name).is_some() {
                let file = self.path_of(&name);
                loaded.unusable.push(Unusable { file, why: Why::Unfinished });
            }
        }
        for (number, slots) in numbers {
            self.load_one(number, slots, &mut loaded);
        }
        loaded.found.sort_by(|a, b| (&a.address, b.generation).cmp(&(&b.address, a.generation)));
        let mut latest: Vec<Found> = Vec::new();
        for found in loaded.found {
            if latest.last().is_some_and(|last| last.address == found.address) {
                let unusable = |file| Unusable { file, why: Why::Superseded };
                loaded.unusable.extend(found.files.into_iter().map(unusable));
            } else {
                latest.push(found);
            }
        }
        loaded.found = latest;
        Ok(loaded)
    }

    fn load_one(&self, number: u64, slots: BTreeSet<usize>, loaded: &mut Loaded) {
        let (mut files, mut candidates, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for slot in slots {
            let name = file_name(number, slot);
            let file = self.path_of(&name);
            files.push(file.clone());
            match self.candidate(slot, &name) {
                Ok(kept) => candidates.push(kept),
                Err(why) => others.push(Unusable { file, why }),
            }
        }
        candidates.sort_by_key(|kept| kept.header.generation);
        let path = |kept: &Kept| self.path_of(&file_name(number, kept.slot));
        let read = |mut kept: Kept| {
            kept.bytes = self.read(&file_name(number, kept.slot), kept.most())?.0;
            Ok(kept)
        };
        let Some(newest) = candidates.pop() else {
            loaded.unusable.extend(others);
            return;
        };
        let newest_file = path(&newest);
        let newest = match read(newest) {
            Ok(newest) => newest,
            Err(error) => {
                loaded.unusable.extend(others);
                loaded.unusable.push(Unusable { file: newest_file, why: Why::Unreadable(error) });
                return;
            }
        };
        let older = || candidates.pop().and_then(|older| read(older).ok());
        match Found::new(number, files, newest, older, &others, &path) {
            Ok(found) => loaded.found.push(found),
            Err(address) => {
                loaded.unusable.push(Unusable { file: newest_file, why: Why::NoSnapshot(address) });
                loaded.unusable.extend(others);
            }
        }
    }

    /// A file, if it holds a generation of this user and this run of the machine.
    fn candidate(&self, slot: usize, name: &OsStr) -> Result<Kept, Why> {
        // The header first: all that is needed of the older one, as a rule.
        let (bytes, size) = self.read(name, HEADER as u64).map_err(Why::Unreadable)?;
        let header = match parse(&bytes) {
            Ok(generation) => generation.header,
            Err(Refusal::Unfinished) => return Err(Why::Unfinished),
            Err(refusal) => return Err(Why::Refused(refusal)),
        };
        if self.boot.is_none_or(|boot| header.boot != boot) {
            return Err(Why::OtherBoot);
        }
        if header.user != self.user {
            return Err(Why::OtherUser(header.user));
        }
        let limit = LARGE.max(wanted_size(header.snapshot_length, false).saturating_mul(4));
        let excess = (size > limit).then(|| {
            format!("it has {size} bytes, and no journal of its state has more than {limit}")
        });
        Ok(Kept { slot, header, position: 0, records: 0, excess, bytes })
    }
}

impl Kept {
    /// So much of the file may be of use. Its header is there.
    fn most(&self) -> u64 {
        match self.excess {
            None => u64::MAX,
            // The number isn't sealed: it may be anything.
            Some(_) => {
                let log = self.generation().position.saturating_add(2 * MAX_RECORD as u64);
                self.header.log_start().saturating_add(log.min(LARGE))
            }
        }
    }

    fn generation(&self) -> Generation<'_> {
        parse(&self.bytes).expect("it was parsed before")
    }

    /// Reads its log up to `end`. Returns what is wrong.
    fn read_log(&mut self, end: Option<u64>, file: &Path) -> Vec<Damage> {
        let (mut position, mut records, mut damages) = (0, 0, Vec::new());
        let mut entries = self.generation().entries();
        while end.is_none_or(|end| position < end)
            && let Some(entry) = entries.next()
        {
            if let Entry::Damage { position, reason } = entry {
                if damages.len() < MOST_DAMAGE {
                    let record = Some((records, self.header.log_start() + position));
                    let reason = reason.to_string();
                    damages.push(Damage { file: file.to_owned(), record, reason });
                }
            } else {
                records += 1;
            }
            position = entries.position();
        }
        (self.position, self.records) = (position, records);
        damages
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let end = self.position;
        let mut is_after_damage = false;
        let entries = self.generation().entries();
        let entries = entries.take_while(move |entry| entry.position() < end);
        entries.filter_map(move |entry| match entry {
            Entry::Record { bytes, .. } => Some(Record { bytes, is_after_damage }),
            Entry::Damage { .. } => {
                is_after_damage = true;
                None
            }
        })
    }
}

impl Found {
    /// Puts together what two files hold.
    ///
    /// # Errors
    /// The address, if there is no snapshot.
    fn new(
        number: u64,
        files: Vec<PathBuf>,
        mut newest: Kept,
        older: impl FnOnce() -> Option<Kept>,
        others: &[Unusable],
        path: &dyn Fn(&Kept) -> PathBuf,
    ) -> Result<Self, String> {
        let file = path(&newest);
        let damaged = |file: &Path, reason: &str| Damage {
            file: file.to_owned(),
            record: None,
            reason: reason.into(),
        };
        let mut damage = newest.read_log(None, &file);
        let mut is_whole = damage.is_empty();
        damage.extend(newest.excess.iter().map(|reason| damaged(&file, reason)));
        let generation = newest.generation();
        let (is_superseded, has_snapshot) =
            (generation.is_superseded, generation.snapshot().is_some());
        if is_superseded {
            damage.push(damaged(&file, "there was a later snapshot, which is gone"));
            is_whole = false;
        }
        for Unusable { file, why } in others.iter().filter(|other| !other.why.is_worthless()) {
            damage.push(damaged(file, &why.to_string()));
        }
        let Header { address, daemon, taken_at, generation, position_before, .. } =
            newest.header.clone();
        let mut generations = Vec::new();
        if !has_snapshot {
            damage.push(damaged(&file, "the snapshot isn't the one that was written"));
            let fits = |older: &Kept| {
                older.header.generation + 1 == generation
                    && older.header.address == address
                    && older.generation().snapshot().is_some()
            };
            let Some(mut older) = older().filter(fits) else { return Err(address) };
            let before = older.read_log(Some(position_before), &path(&older));
            is_whole &= before.is_empty() && older.position == position_before;
            damage.extend(before);
            generations.push(older);
        }
        generations.push(newest);
        Ok(Self {
            address,
            daemon,
            taken_at,
            damage,
            is_whole,
            number,
            generation,
            files,
            generations,
        })
    }

    /// Its files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(super) fn newest(&self) -> &Kept {
        self.generations.last().expect("there is one")
    }

    /// Whether this is what `earlier` was, and what has been added to it since.
    pub fn is_later(&self, earlier: &Self) -> bool {
        let is_same = (self.number, self.generation) == (earlier.number, earlier.generation);
        let is_sound = self.damage.is_empty() && earlier.damage.is_empty();
        is_same && is_sound && self.newest().records >= earlier.newest().records
    }

    /// The state that the records go on from.
    pub fn snapshot(&self) -> &[u8] {
        self.generations[0].generation().snapshot().expect("it was looked at before")
    }

    /// What came after it, in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut is_after_damage = false;
        self.generations.iter().flat_map(Kept::records).map(move |record| {
            is_after_damage |= record.is_after_damage;
            Record { is_after_damage, ..record }
        })
    }
}
