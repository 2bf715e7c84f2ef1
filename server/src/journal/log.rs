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
    time::{Duration, Instant, SystemTime},
};

use super::{
    Compaction, Done, Found, Need, Status, Store, StoreError,
    area::Area,
    directory::{Directory, Slot},
    failpoint::failpoint,
    format::{BootId, COMPLETE, HEADER, Header, MAX_ADDRESS, MAX_RECORD, log_start, record_size},
};

/// Each file of a namespace that is young or small.
const SMALLEST: u64 = 64 << 10;
/// A first snapshot up to here fits such a file.
const SMALL_SNAPSHOT: u64 = 8 << 10;
/// The log is as large as the snapshot, within these bounds: so that writing snapshots stays a
/// constant share of the work, and what a restart has to replay stays bounded.
const LOG: std::ops::RangeInclusive<u64> = 256 << 10..=32 << 20;
/// Log after a snapshot that just fits.
pub(super) const LEAST_LOG: u64 = 16 << 10;
/// The most that one record waits for room to be reserved.
const STEP: u64 = 1 << 20;
/// How long no room stays no room.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// The end of a log.
pub(super) const END: u64 = 8;

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
    /// Why there was no room, or no snapshot, and when.
    trouble: Option<(Instant, StoreError)>,
    /// When a snapshot failed last.
    failed: Option<Instant>,
}

/// The generation that is written to.
pub(super) struct Current {
    pub slot: usize,
    pub area: Area,
    pub header: Header,
    /// Where in the file the log begins.
    pub start: u64,
    pub position: u64,
    pub records: u64,
    /// Bytes of records that make the state grow.
    pub growth: u64,
    /// The end of what is reserved.
    room: u64,
    /// So much at the end is for what doesn't make the state grow.
    kept: u64,
    due: u64,
    /// With more growth a snapshot might not fit the other file.
    growth_limit: u64,
}

impl Current {
    pub fn new(slot: usize, area: Area, size: u64, header: Header) -> Self {
        let start = header.log_start();
        let room = size - start;
        let (kept, due) = (room / 4, (room.saturating_sub(LEAST_LOG) / 2).max(room / 4));
        let (position, records, growth, growth_limit) = Default::default();
        Self { slot, area, header, start, position, records, growth, room, kept, due, growth_limit }
    }

    /// The rest of the first `room` bytes of log, but for what is kept.
    fn room_for(&self, need: Need) -> u64 {
        match need {
            Need::Growth => self.room - self.kept,
            Need::Relief => self.room,
        }
    }

    fn fits(&self, size: u64, need: Need) -> bool {
        self.position + size + END <= self.room_for(need)
            && (need == Need::Relief || self.growth + size <= self.growth_limit)
    }

    /// There is more of the file.
    pub fn extend(&mut self, area: Area, size: u64) {
        self.area = area;
        self.room = size - self.start;
    }

    /// What has come since the snapshot is worth another one.
    fn is_due(&self) -> bool {
        let is_stuck = self.growth >= self.growth_limit && self.position >= self.room / 8;
        self.position >= self.due || is_stuck
    }

    /// Adds a record for which there is room.
    pub fn write(&mut self, record: &[u8]) {
        let at = (self.start + self.position) as usize;
        self.area.write_record(at, self.header.generation, self.position, record);
        self.position += record_size(record.len()) as u64;
        self.records += 1;
        self.area.set_position(self.position);
    }
}

/// How large a file is for a snapshot of so many bytes.
pub(super) fn wanted_size(snapshot: u64, is_first: bool) -> u64 {
    if is_first && snapshot <= SMALL_SNAPSHOT {
        return SMALLEST;
    }
    let log = snapshot.clamp(*LOG.start(), *LOG.end());
    (least_size(snapshot) + log).next_multiple_of(4096)
}

/// How large a file must be for it.
pub(super) fn least_size(snapshot: u64) -> u64 {
    log_start(snapshot) + LEAST_LOG
}

/// Has room for a snapshot in a file, and for a log if it can be had.
pub(super) fn make_room(slot: &Slot, snapshot: u64, is_first: bool) -> Result<(), StoreError> {
    slot.reserve(least_size(snapshot).next_multiple_of(4096))?;
    let _ = slot.reserve(wanted_size(snapshot, is_first));
    Ok(())
}

/// Writes a generation without records to a file, for which there is room: all but that it is
/// complete.
pub(super) fn write_generation(
    slot: &Slot,
    header: &Header,
    snapshot: &[u8],
) -> Result<(), StoreError> {
    // First: from here on, and until it is complete, there is nothing in this file.
    slot.write(COMPLETE as u64, &[0; 8])?;
    slot.write(HEADER as u64, snapshot)?;
    slot.write(header.log_start(), &[0; END as usize])?;
    failpoint("journal.switch.middle");
    slot.write(0, &header.encode())
}

/// The header of a generation.
pub(super) fn header_after(before: &Header, position: u64, snapshot: &[u8]) -> Header {
    Header {
        generation: before.generation + 1,
        daemon: env!("CARGO_PKG_VERSION").into(),
        taken_at: unix_micros(),
        snapshot_length: snapshot.len() as u64,
        snapshot_checksum: crc32fast::hash(snapshot),
        position_before: position,
        ..before.clone()
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

pub(super) fn map(slot: &Slot) -> Result<(Area, u64), StoreError> {
    let size = slot.size();
    let area = Area::map(slot.file(), size).map_err(|error| StoreError::io(slot.path(), error))?;
    Ok((area, size))
}

impl Journal {
    /// The journal of a namespace that has none. If one was found that can't be gone on with,
    /// `after` is it: the new one counts for more.
    ///
    /// # Errors
    /// If there is no room, or the files can't be made.
    pub fn create(
        directory: &Arc<Directory>,
        address: &str,
        after: Option<&Found>,
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
            generation: after.map_or(0, |found| found.generation),
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
            write_generation(&slots[0], &header, snapshot)?;
            map(&slots[0])
        };
        match begin() {
            Ok((area, size)) => {
                area.set_complete(header.generation);
                let current = Current::new(0, area, size, header.clone());
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
        let (area, size) = map(slot)?;
        let mut current = Current::new(newest.slot, area, size, newest.header.clone());
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
        let mut journal = Self { directory, slots, shared, current, trouble: None, failed: None };
        journal.limit_growth();
        journal
    }

    fn other(&self) -> &Arc<Slot> {
        &self.slots[1 - self.current.slot]
    }

    /// The next snapshot fits the other file if each byte of growth adds two to the state.
    fn limit_growth(&mut self) {
        let most =
            self.other().size().saturating_sub(least_size(self.current.header.snapshot_length));
        self.current.growth_limit = most / 2;
    }

    /// Has room for a record, unless there was none a moment ago.
    #[cold]
    fn find_room(&mut self, size: u64, need: Need) -> Result<(), StoreError> {
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
            let (area, size) = map(slot)?;
            self.current.extend(area, size);
        }
        if need == Need::Growth && self.current.growth + size > self.current.growth_limit {
            let growth = self.current.growth + size;
            let least = least_size(self.current.header.snapshot_length) + 2 * growth;
            let more = (self.current.room / 2).min(STEP);
            if self.other().reserve((least + more).next_multiple_of(4096)).is_err() {
                self.other().reserve(least.next_multiple_of(4096))?;
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
        (self.trouble, self.failed) = (None, None);
        Ok(true)
    }

    /// From here on all goes to `next`.
    fn complete(&mut self, next: Current) {
        next.area.set_complete(next.header.generation);
        failpoint("journal.switch.complete");
        self.current.area.set_superseded();
        self.current = next;
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
        let wanted = wanted_size(length, false);
        if slot.size() > 4 * wanted {
            slot.shrink(wanted);
        }
        make_room(slot, length, false)?;
        // For the switch after this one; if it can't be had, growth is refused in time.
        let _ = self.slots[self.current.slot].reserve(wanted);
        write_generation(slot, &header, snapshot)?;
        let (area, size) = map(slot)?;
        failpoint("journal.switch.before_complete");
        self.complete(Current::new(next, area, size, header));
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
            && self.failed.is_none_or(|at| at.elapsed() >= RETRY)
    }

    fn switch(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        let switched = self.switch_to(snapshot);
        if !matches!(switched, Err(StoreError::Busy)) {
            self.note(&switched);
            self.failed = switched.is_err().then(Instant::now);
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
            error: self.trouble.as_ref().map(|(_, error)| error.to_string()),
        }
    }

    fn remove(self: Box<Self>) -> io::Result<()> {
        let Self { slots, current, .. } = *self;
        let newer = current.slot;
        drop(current);
        // The older first: should this be cut short, what is found is the last state.
        slots[1 - newer].remove()?;
        slots[newer].remove()
    }
}
