//! A snapshot made beside the work: of a state that is too large to be written in one go while
//! others wait. It is made again from the file, by whoever knows how, and the records that came
//! meanwhile are copied behind it. Until it is complete, a loader sees the journal without it.

use std::sync::{
    Arc,
    atomic::Ordering::{Acquire, Release},
};

use super::{
    Entry, StoreError,
    area::Area,
    current::{Current, END, header_after, make_room, map, wanted_size, write_generation},
    directory::Slot,
    failpoint::failpoint,
    format::{HEADER, Header, record_size},
    log::Shared,
    parse::Entries,
};

/// A snapshot in the making. It is given up by being dropped.
pub struct Compaction {
    /// The one that is written to by the journal, and the one that is written to here.
    slots: [Arc<Slot>; 2],
    shared: Arc<Shared>,
    header: Header,
    /// The snapshot is of the state there.
    position: u64,
    /// Records before it are in the new snapshot or the new log.
    copied: u64,
    next: Option<Current>,
    /// What the journal is done with: to unmap it takes a while, which nobody is to wait for.
    left: Option<Area>,
}

impl Compaction {
    /// Bytes of log that may be left for [`finish`](super::Journal::finish).
    pub(super) const LEFT: u64 = 64 << 10;
    /// Here it is worth no other round.
    const LITTLE: u64 = 16 << 10;

    pub(super) fn new(
        slots: [Arc<Slot>; 2],
        shared: Arc<Shared>,
        header: Header,
        position: u64,
    ) -> Self {
        Self { slots, shared, header, position, copied: position, next: None, left: None }
    }

    /// Makes the snapshot, without the journal: `rebuild` makes the state from the snapshot before
    /// and the records after it, and returns the new snapshot.
    ///
    /// # Errors
    /// If `rebuild` fails, or what it needs is damaged, or there is no room.
    pub fn work<E: std::fmt::Display>(
        &mut self,
        rebuild: impl FnOnce(&[u8], &mut dyn Iterator<Item = &[u8]>) -> Result<Vec<u8>, E>,
    ) -> Result<(), StoreError> {
        let start = self.header.log_start();
        let area = self.map_current(start + self.position)?;
        // SAFETY: the journal appends behind it, and leaves this file alone once there is another
        // generation, which only this compaction can make.
        let bytes = unsafe { area.bytes(HEADER, (start + self.position) as usize) };
        let (before, log) = bytes.split_at(start as usize - HEADER);
        let before = &before[..self.header.snapshot_length as usize];
        if crc32fast::hash(before) != self.header.snapshot_checksum {
            return Err(self.damaged("the snapshot's checksum is wrong"));
        }
        let mut damage = None;
        let entries = Entries::new(log, self.header.generation, self.position);
        let mut records = entries.map_while(|entry| match entry {
            Entry::Record { bytes, .. } => Some(bytes),
            Entry::Damage { reason, .. } => {
                damage = Some(reason.to_string());
                None
            }
        });
        let snapshot = rebuild(before, &mut records);
        drop(records);
        if let Some(why) = damage {
            return Err(self.damaged(why));
        }
        let snapshot = snapshot.map_err(|error| StoreError::Rebuild(error.to_string()))?;
        drop(area);
        self.write(&snapshot)?;
        self.catch_up()
    }

    fn write(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        let length = snapshot.len() as u64;
        let [before, slot] = &self.slots;
        make_room(slot, length, false)?;
        // For the next switch; if it can't be had, growth is refused in time.
        let _ = before.reserve(wanted_size(length, false));
        let header = header_after(&self.header, self.position, snapshot);
        let area = map(slot)?;
        write_generation(slot, &area, &header, snapshot)?;
        // Which of the two it is, the journal knows.
        self.next = Some(Current::new(0, area, header));
        Ok(())
    }

    /// Copies what has come meanwhile, until little is left.
    ///
    /// # Errors
    /// If there is no room.
    pub fn catch_up(&mut self) -> Result<(), StoreError> {
        let start = self.header.log_start();
        let Some(mut next) = self.next.take() else {
            return Err(StoreError::Rebuild("there is no snapshot to go behind".into()));
        };
        loop {
            let end = self.shared.position.load(Acquire);
            let needed = next.start + next.position + (end - self.copied) + Self::LEFT + END;
            // The journal, too, has the file made larger: what counts is what is mapped.
            if next.area.len() < needed {
                self.slots[1].reserve((needed + 3 * Self::LEFT).next_multiple_of(4096))?;
                next.extend(map(&self.slots[1])?);
            }
            if end - self.copied <= Self::LITTLE {
                self.next = Some(next);
                failpoint("journal.compaction.copied");
                return Ok(());
            }
            let area = self.map_current(start + end)?;
            // SAFETY: as in `work`.
            let log = unsafe { area.bytes(start as usize, (start + end) as usize) };
            self.copy(log, |record| next.write(record))?;
        }
    }

    /// Hands on the records of `log` that weren't yet.
    pub(super) fn copy(
        &mut self,
        log: &[u8],
        mut write: impl FnMut(&[u8]),
    ) -> Result<(), StoreError> {
        let entries = Entries::new(log, self.header.generation, log.len() as u64);
        for entry in entries.starting_at(self.copied) {
            match entry {
                Entry::Record { bytes, .. } => {
                    write(bytes);
                    self.copied += record_size(bytes.len()) as u64;
                }
                Entry::Damage { reason, .. } => return Err(self.damaged(reason.to_string())),
            }
        }
        Ok(())
    }

    fn map_current(&self, to: u64) -> Result<Area, StoreError> {
        let slot = &self.slots[0];
        Area::map(slot.file(), to).map_err(|error| StoreError::io(slot.path(), error))
    }

    fn damaged(&self, why: impl Into<String>) -> StoreError {
        StoreError::Damaged { file: self.slots[0].path(), why: why.into() }
    }

    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// The generation, in the slot that it is in.
    pub(super) fn take_ready(&mut self, slot: usize) -> Option<Current> {
        let mut next = self.next.take()?;
        next.slot = slot;
        Some(next)
    }

    pub(super) fn give_back(&mut self, next: Current) {
        self.next = Some(next);
    }

    /// Unmaps it when the compaction is dropped.
    pub(super) fn leave(&mut self, area: Option<Area>) {
        self.left = area;
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        self.shared.is_compacting.store(false, Release);
    }
}
