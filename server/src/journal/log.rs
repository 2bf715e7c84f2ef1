//! The journal of one namespace while it is written. A record is a few stores to memory; only
//! what needs room, or a snapshot, calls the system. Never here: reading (load), or a snapshot
//! made beside the work (compaction).

use std::{
    io,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    time::{Duration, Instant},
};

use super::{
    Compaction, Done, Found, Need, Status, Store, StoreError,
    area::Area,
    current::{
        Current, END, header_after, least_size, make_room, map, wanted_size, write_generation,
    },
    directory::{Directory, Slot},
    failpoint::failpoint,
    format::{Header, MAX_ADDRESS, MAX_RECORD, record_size},
};

mod lost;

/// The most that one record waits for room to be reserved.
const STEP: u64 = 256 << 10;
/// How long no room stays no room.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// What the journal and a compaction beside it both know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// All before it is written.
    pub position: AtomicU64,
    /// The other file is a compaction's.
    pub is_compacting: AtomicBool,
}

/// The journal of one namespace.
pub struct Journal {
    directory: Arc<Directory>,
    slots: [Arc<Slot>; 2],
    shared: Arc<Shared>,
    current: Current,
    /// The other file, if it is small: to touch each of its pages anew would cost more than all else
    /// does.
    spare: Option<Area>,
    /// Why there was no room, or no snapshot, and when.
    trouble: Option<(Instant, StoreError)>,
    /// When a snapshot failed last.
    failed: Option<Instant>,
    /// It failed for want of room, which nobody has been told.
    is_short: bool,
    /// By how much the state may become larger by what frees something.
    foreseen: u64,
    /// How much larger than the last one a snapshot may be for either file.
    larger: u64,
    /// It is lost, and why there is no other one yet.
    lost: Option<StoreError>,
}

impl Journal {
    /// The journal of a namespace that has none. If there is one of generation `after` that can't be
    /// gone on with, the new one counts for more.
    ///
    /// # Errors
    /// If there is no room, or the files can't be made.
    pub fn create(
        directory: &Arc<Directory>,
        address: &str,
        after: Option<u64>,
        snapshot: &[u8],
    ) -> Result<Self, StoreError> {
        if address.len() > MAX_ADDRESS {
            let why = format!("the address has more than {MAX_ADDRESS} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidInput, why);
            return Err(StoreError::io(directory.path().to_owned(), error));
        }
        let number = directory.next_number();
        let open = |slot| {
            Slot::open(directory, number, slot, true)
                .map_err(|error| StoreError::io(directory.path().to_owned(), error))
        };
        let first = open(0)?;
        let slots = match open(1) {
            Ok(second) => [Arc::new(first), Arc::new(second)],
            Err(error) => {
                let _ = first.remove();
                return Err(error);
            }
        };
        let none = Header {
            boot: directory.boot.unwrap_or_default(),
            generation: after.unwrap_or_default(),
            user: directory.user,
            address: address.into(),
            daemon: String::new(),
            taken_at: 0,
            snapshot_length: 0,
            snapshot_checksum: 0,
            position_before: 0,
        };
        let header = header_after(&none, 0, snapshot);
        let begin = || {
            let length = snapshot.len() as u64;
            make_room(&slots[0], length, true)?;
            make_room(&slots[1], length, true)?;
            let area = map(&slots[0])?;
            write_generation(&slots[0], &area, &header, snapshot).map(|()| area)
        };
        match begin() {
            Ok(area) => {
                area.set_complete(header.generation);
                let current = Current::new(0, area, header.clone());
                Ok(Self::with(directory, slots, current))
            }
            Err(error) => {
                slots.iter().for_each(|slot| drop(slot.remove()));
                Err(error)
            }
        }
    }

    /// Goes on where the daemon before was stopped.
    ///
    /// # Errors
    /// If it is damaged, or can't be opened for writing.
    pub fn resume(directory: &Arc<Directory>, found: &Found) -> Result<Self, StoreError> {
        if let Some(damage) = found.damage.first() {
            let why = damage.reason.clone();
            return Err(StoreError::Damaged { file: damage.file.clone(), why });
        }
        let failed = |error| StoreError::io(directory.path().to_owned(), error);
        let open = |slot, is_new| Slot::open(directory, found.number, slot, is_new).map(Arc::new);
        let open_or_make = |slot| match open(slot, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => open(slot, true),
            opened => opened,
        };
        let slots = [open_or_make(0).map_err(failed)?, open_or_make(1).map_err(failed)?];
        let newest = found.newest();
        let slot = &slots[newest.slot];
        // It may have been killed as it reserved more.
        slot.reserve((newest.header.log_start() + newest.position + END).next_multiple_of(4096))?;
        let mut current = Current::new(newest.slot, map(slot)?, newest.header.clone());
        current.position = newest.position;
        current.records = newest.records;
        current.growth = newest.position;
        current.area.set_position(newest.position);
        current.area.end_log((current.start + current.position) as usize);
        Ok(Self::with(directory, slots, current))
    }

    fn with(directory: &Arc<Directory>, slots: [Arc<Slot>; 2], current: Current) -> Self {
        let shared = Arc::new(Shared::default());
        shared.position.store(current.position, Release);
        let directory = directory.clone();
        let mut journal = Self {
            directory,
            slots,
            shared,
            current,
            spare: None,
            trouble: None,
            failed: None,
            is_short: false,
            foreseen: 0,
            larger: 0,
            lost: None,
        };
        journal.limit_growth();
        journal
    }

    fn other(&self) -> &Arc<Slot> {
        &self.slots[1 - self.current.slot]
    }

    /// The next snapshot fits the other file if each byte of growth adds two to the state, and so
    /// does the one after it this file.
    fn limit_growth(&mut self) {
        let size = self.slots.iter().map(|slot| slot.size()).min().unwrap_or_default();
        self.larger = size.saturating_sub(least_size(self.current.header.snapshot_length));
        self.foresee(self.foreseen);
    }

    /// What frees something may make the state so much larger, whenever it comes: a hold that is
    /// abandoned says who had it. Growth leaves room for that from now on.
    pub fn foresee(&mut self, bytes: u64) {
        self.foreseen = bytes;
        let most = self.larger.saturating_sub(bytes);
        self.current.growth_limit = if self.lost.is_some() { 0 } else { most / 2 };
    }

    /// Whether a snapshot failed for want of room since this was asked last.
    pub fn take_shortage(&mut self) -> bool {
        std::mem::take(&mut self.is_short)
    }

    /// A snapshot was begun and came to nothing.
    pub fn note_failure(&mut self, error: &StoreError) {
        self.failed = Some(Instant::now());
        self.is_short = matches!(error, StoreError::NoRoom { .. });
    }

    /// Has room for a record, unless there was none a moment ago.
    #[cold]
    fn find_room(&mut self, size: u64, need: Need) -> Result<(), StoreError> {
        if let (Some(error), Need::Growth) = (&self.lost, need) {
            return Err(error.clone());
        }
        if let Some((since, error)) = &self.trouble
            && since.elapsed() < RETRY
        {
            return Err(error.clone());
        }
        let found = self.reserve(size, need);
        self.note(&found);
        found
    }

    fn note<T>(&mut self, result: &Result<T, StoreError>) {
        self.trouble = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
    }

    fn reserve(&mut self, size: u64, need: Need) -> Result<(), StoreError> {
        let current = &self.current;
        let needed = current.position + size + END;
        if needed > current.room_for(need) {
            let slot = &self.slots[current.slot];
            let kept = current.room - current.room_for(need);
            let least = (current.start + needed + kept).next_multiple_of(4096);
            let more = (current.room / 2).min(STEP);
            if slot.reserve((least + more).next_multiple_of(4096)).is_err() {
                slot.reserve(least)?;
            }
            let area = map(slot)?;
            self.current.extend(area);
        }
        if need == Need::Growth && self.current.growth + size > self.current.growth_limit {
            let growth = self.current.growth + size;
            let state = self.current.header.snapshot_length;
            let least = least_size(state) + 2 * growth + self.foreseen;
            let more = (self.current.room / 2).min(STEP);
            for slot in &self.slots {
                if slot.reserve((least + more).next_multiple_of(4096)).is_err() {
                    slot.reserve(least.next_multiple_of(4096))?;
                }
            }
            self.limit_growth();
        }
        Ok(())
    }

    /// Begins a snapshot beside the work: call [`Compaction::work`] next, where it may take its
    /// time, then [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`StoreError::Busy`] if there is one.
    pub fn compaction(&self) -> Result<Compaction, StoreError> {
        if self.shared.is_compacting.swap(true, Acquire) {
            return Err(StoreError::Busy);
        }
        let slots = [&self.slots[self.current.slot], self.other()].map(Arc::clone);
        let header = self.current.header.clone();
        Ok(Compaction::new(slots, self.shared.clone(), header, self.current.position))
    }

    /// Goes on with what a compaction has made. False: too much has come meanwhile, so that it
    /// must [catch up](Compaction::catch_up) first.
    ///
    /// # Errors
    /// If it isn't this journal's, or isn't ready.
    pub fn finish(&mut self, compaction: &mut Compaction) -> Result<bool, StoreError> {
        if !compaction.is_of(&self.shared) {
            return Err(StoreError::Rebuild("it is another journal's".into()));
        }
        let Some(mut next) = compaction.take_ready(1 - self.current.slot) else {
            return Err(StoreError::Rebuild("there is no snapshot yet".into()));
        };
        let (start, end) = (self.current.start, self.current.position);
        let copied = compaction.copied();
        let size = end - copied;
        if size > Compaction::LEFT || next.position + size + END > next.room {
            compaction.give_back(next);
            return Ok(false);
        }
        // SAFETY: records that were written are written no more, and it is this journal alone
        // that would.
        let log = unsafe { self.current.area.bytes(start as usize, (start + end) as usize) };
        compaction.copy(log, |record| next.write(record))?;
        next.growth = next.position;
        failpoint("journal.compaction.before_complete");
        self.complete(next);
        compaction.leave(self.spare.take());
        (self.trouble, self.failed, self.is_short) = (None, None, false);
        Ok(true)
    }

    /// From here on all goes to `next`.
    fn complete(&mut self, next: Current) {
        next.area.set_complete(next.header.generation);
        failpoint("journal.switch.complete");
        self.current.area.set_superseded();
        self.spare = Some(std::mem::replace(&mut self.current, next).area);
        self.shared.position.store(self.current.position, Release);
        self.limit_growth();
    }

    fn switch_to(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        if self.shared.is_compacting.load(Acquire) {
            return Err(StoreError::Busy);
        }
        let length = snapshot.len() as u64;
        let next = 1 - self.current.slot;
        let header = header_after(&self.current.header, self.current.position, snapshot);
        let slot = &self.slots[next];
        let wanted = wanted_size(length, false).saturating_add(self.foreseen);
        if slot.size() > 4 * wanted {
            self.spare = None;
            slot.shrink(wanted);
        }
        make_room(slot, length, false)?;
        // For the switch after this one; if it can't be had, growth is refused in time.
        let _ = self.slots[self.current.slot].reserve(wanted);
        let spare = self.spare.take().filter(|spare| spare.len() == slot.size());
        let area = spare.map_or_else(|| map(slot), Ok)?;
        write_generation(slot, &area, &header, snapshot)?;
        failpoint("journal.switch.before_complete");
        self.complete(Current::new(next, area, header));
        Ok(())
    }
}

impl Store for Journal {
    fn append(&mut self, record: &[u8], need: Need) -> Result<Done, StoreError> {
        failpoint("journal.append.before");
        if record.is_empty() || record.len() > MAX_RECORD {
            return Err(StoreError::Length(record.len()));
        }
        let size = record_size(record.len()) as u64;
        if !self.current.fits(size, need) {
            self.find_room(size, need)?;
        }
        self.current.write(record);
        if need == Need::Growth {
            self.current.growth += size;
        }
        self.shared.position.store(self.current.position, Release);
        failpoint("journal.append.after");
        Ok(Done::Now)
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        let size = record_size(bytes) as u64;
        match self.current.fits(size, Need::Growth) {
            true => Ok(()),
            false => self.find_room(size, Need::Growth),
        }
    }

    fn is_due(&self) -> bool {
        self.current.is_due()
            && !self.shared.is_compacting.load(Acquire)
            && (self.current.is_at_end() || self.failed.is_none_or(|at| at.elapsed() >= RETRY))
    }

    fn switch(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        let switched = self.switch_to(snapshot);
        if !matches!(switched, Err(StoreError::Busy)) {
            self.note(&switched);
            match &switched {
                Ok(()) => (self.failed, self.is_short) = (None, false),
                Err(error) => self.note_failure(error),
            }
        }
        switched
    }

    fn status(&self) -> Status {
        let Current { header, records, .. } = &self.current;
        Status {
            directory: self.directory.path().to_owned(),
            bytes: self.slots.iter().map(|slot| slot.size()).sum(),
            records: *records,
            snapshot_bytes: header.snapshot_length,
            snapshot_at: header.taken_at,
            error: self
                .lost
                .as_ref()
                .or(self.trouble.as_ref().map(|(_, error)| error))
                .map(StoreError::to_string),
        }
    }

    fn remove(self) -> io::Result<()> {
        let Self { slots, current, spare, .. } = self;
        let newer = current.slot;
        drop((current, spare));
        // The older first: should this be cut short, what is found is the last state.
        slots[1 - newer].remove()?;
        slots[newer].remove()
    }
}
