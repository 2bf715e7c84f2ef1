//! A journal's file in memory: what is written here is in the file, though the process is killed
//! in the next instruction. Never here: where room comes from, or what a record means.

use std::{
    fs::File,
    io,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Release, SeqCst},
        fence,
    },
};

use memmap2::{MmapOptions, MmapRaw};

use super::{
    failpoint::failpoint,
    format::{COMPLETE, HEADER, POSITION, RECORD_HEAD, SUPERSEDED, record_size, seal},
};

/// A whole file, all of whose bytes were reserved before.
pub struct Area(MmapRaw);

impl Area {
    /// Maps the first `length` bytes of a file.
    pub fn map(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if length < HEADER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(MmapOptions::new().len(length).map_raw(file)?))
    }

    /// How much of the file it is.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.0.len(), "beyond the file's end");
        // SAFETY: within the mapping, which lives as long as `self`, and aligned: a mapping
        // begins at a page. Nobody here makes a plain reference into it.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().add(at).cast()) }
    }

    /// Notes that all before `position` is written.
    pub fn set_position(&self, position: u64) {
        self.word(POSITION).store(position.to_le(), Release);
    }

    /// Notes that a later generation is complete.
    pub fn set_superseded(&self) {
        self.word(SUPERSEDED).store(1u64.to_le(), Release);
    }

    /// All is written: from here on it is a generation.
    pub fn set_complete(&self, generation: u64) {
        self.word(COMPLETE).store(generation.to_le(), Release);
    }

    /// From here on, and until it is complete, there is no generation in this file.
    pub fn begin(&self) {
        self.word(COMPLETE).store(0, Release);
        // Nothing that is written for the next one comes before.
        fence(SeqCst);
    }

    /// What follows a log's end.
    pub fn end_log(&self, at: usize) {
        self.word(at).store(0, Release);
    }

    /// Writes a record at `at` in the file, which is `position` in its log, and the zero that
    /// follows it. The order is what counts: after it a loader sees either all of it or an end.
    pub fn write_record(&self, at: usize, generation: u64, position: u64, payload: &[u8]) {
        self.end_log(at + record_size(payload.len()));
        let sum = seal(generation, position, payload);
        self.word(at);
        // SAFETY: what follows the record is within the mapping, as was just seen, so all of the
        // record is. `at` is aligned. Others only read what was committed.
        let length = unsafe {
            let record = self.0.as_mut_ptr().add(at);
            record.add(4).cast::<u32>().write(sum.to_le());
            record.add(RECORD_HEAD).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
            AtomicU32::from_ptr(record.cast())
        };
        failpoint("journal.append.middle");
        length.store((payload.len() as u32).to_le(), Release);
    }

    /// Bytes that are written no more.
    ///
    /// # Safety
    /// Nobody writes to them, in any process, as long as they are borrowed.
    pub unsafe fn bytes(&self, from: usize, to: usize) -> &[u8] {
        assert!(from <= to && to <= self.0.len(), "beyond the file's end");
        // SAFETY: within the mapping; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(from), to - from) }
    }
}
