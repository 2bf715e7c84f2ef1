//! The generation that is written to: where the next record goes, how much room there is, and when
//! the next snapshot is due. Never here: which of the two files it is in, or more room.

use std::time::SystemTime;

use super::{
    Need, StoreError,
    area::Area,
    directory::Slot,
    failpoint::failpoint,
    format::{HEADER, Header, log_start, record_size},
};

/// Each file of a namespace that is young or small.
const SMALLEST: u64 = 64 << 10;
/// A first snapshot up to here fits such a file.
const SMALL_SNAPSHOT: u64 = 8 << 10;
/// The log is as large as the snapshot, within these bounds: so that writing snapshots stays a
/// constant share of the work, and what a restart has to replay stays bounded.
const LOG: std::ops::RangeInclusive<u64> = 256 << 10..=32 << 20;
/// Log after a snapshot that just fits.
const LEAST_LOG: u64 = 16 << 10;
/// The end of a log.
pub(super) const END: u64 = 8;

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
    pub room: u64,
    /// So much at the end is for what doesn't make the state grow.
    pub kept: u64,
    pub due: u64,
    /// With more growth a snapshot might not fit the other file.
    pub growth_limit: u64,
    /// The last record, which may be yet to be written.
    #[cfg(feature = "sabotage")]
    late: Vec<u8>,
}

impl Current {
    pub fn new(slot: usize, area: Area, header: Header) -> Self {
        let start = header.log_start();
        let room = area.len() - start;
        let (kept, due) = (room / 4, (room.saturating_sub(LEAST_LOG) / 2).max(room / 4));
        let (position, records, growth, growth_limit) = Default::default();
        Self {
            slot,
            area,
            header,
            start,
            position,
            records,
            growth,
            room,
            kept,
            due,
            growth_limit,
            #[cfg(feature = "sabotage")]
            late: Vec::new(),
        }
    }

    /// The rest of the first `room` bytes of log, but for what is kept.
    pub fn room_for(&self, need: Need) -> u64 {
        match need {
            Need::Growth => self.room - self.kept,
            Need::Relief => self.room,
        }
    }

    pub fn fits(&self, size: u64, need: Need) -> bool {
        self.position + size + END <= self.room_for(need)
            && (need == Need::Relief || self.growth + size <= self.growth_limit)
    }

    /// There is more of the file.
    pub fn extend(&mut self, area: Area) {
        self.room = area.len() - self.start;
        self.area = area;
    }

    /// What has come since the snapshot is worth another one.
    pub fn is_due(&self) -> bool {
        let is_stuck = self.growth >= self.growth_limit && self.position >= self.room / 8;
        self.position >= self.due || is_stuck
    }

    /// A few more records, and there is no room for another one.
    pub fn is_at_end(&self) -> bool {
        self.position + LEAST_LOG / 2 >= self.room
    }

    /// Adds a record for which there is room.
    pub fn write(&mut self, record: &[u8]) {
        #[cfg(feature = "sabotage")]
        let late = std::mem::replace(&mut self.late, record.to_vec());
        #[cfg(feature = "sabotage")]
        let record = match syncd_core::sabotage::Bug::ToldBeforeRecord {
            bug if !syncd_core::sabotage::sabotaged(bug) => record,
            _ if late.is_empty() => return,
            _ => &late,
        };
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
    least_size(snapshot).saturating_add(log + 4095) & !4095
}

/// How large a file must be for it.
pub(super) fn least_size(snapshot: u64) -> u64 {
    log_start(snapshot).saturating_add(LEAST_LOG)
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
    area: &Area,
    header: &Header,
    snapshot: &[u8],
) -> Result<(), StoreError> {
    area.begin();
    slot.write(HEADER as u64, snapshot)?;
    area.end_log(header.log_start() as usize);
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

/// All of a file, in memory.
pub(super) fn map(slot: &Slot) -> Result<Area, StoreError> {
    Area::map(slot.file(), slot.size()).map_err(|error| StoreError::io(slot.path(), error))
}
