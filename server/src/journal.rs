//! What the core decided, kept so that it outlives the daemon: bytes that somebody else makes and
//! reads. It outlives the process, killed in whatever instruction, and not the machine, after
//! whose restart every holder is dead. So nothing waits for a disk. Never here: what the bytes
//! mean.
//!
//! A journal is one namespace's: a snapshot, and the records after it. It has two files, used in
//! turn. Each holds a *generation*: a header, a snapshot, a log (`format` has the bytes). While
//! one is written to, the one before is left as it was, until the next snapshot goes there.
//!
//! # Layout
//! - `log`: `Journal`, the store. `current`: the generation that it writes to. `compaction`: the next snapshot, made beside the work.
//! - `directory`: the files, and room in them. `area`: a file in memory.
//! - `format`, `parse`: the bytes. `load`: what a daemon finds that starts.
//! - `boot`: which run of the machine. `failpoint`: where tests have the process killed.

mod area;
mod boot;
mod compaction;
mod current;
mod directory;
mod failpoint;
mod format;
mod load;
mod log;
mod parse;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc};

pub use compaction::Compaction;
pub use directory::Directory;
pub use failpoint::failpoint;
pub use format::{BootId, MAX_RECORD, Refusal, VERSION as FORMAT};
pub use load::{Damage, Found, Loaded, Record, Unusable, Why};
pub use log::Journal;
pub use parse::{Entry, Generation, Reason, parse};

/// Keeps what one namespace decided. The rule: **what the core decided is in the store before
/// anybody is told of it.** Each call of the core gives one record; the caller appends it, then
/// tells, at once or once the store says so.
///
/// A [`Journal`] is done when `append` returns. A store far away may be done later, and write many
/// records as one: what it returns is a number to wait for, and what is told waits with it.
pub trait Store: Send + Sized {
    /// Adds a record (1 byte to [`MAX_RECORD`]).
    ///
    /// # Errors
    /// If it isn't in the store. Nothing has changed then.
    fn append(&mut self, record: &[u8], need: Need) -> Result<Done, StoreError>;

    /// Whether there is room for a record that makes the state grow, of so many bytes. Asked
    /// before the call of the core: after it there's no way back. What was promised here holds
    /// for the next record.
    ///
    /// # Errors
    /// If there's none. It is looked for again at most every 100 ms.
    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError>;

    /// Whether it is time for a snapshot.
    fn is_due(&self) -> bool;

    /// Replaces all that is kept by `snapshot`: the state after the last record.
    ///
    /// # Errors
    /// Then all is kept as it was.
    fn switch(&mut self, snapshot: &[u8]) -> Result<(), StoreError>;

    /// How it fares.
    fn status(&self) -> Status;

    /// The namespace is over: nothing of it is kept.
    ///
    /// # Errors
    /// If something stays.
    fn remove(self) -> io::Result<()>;
}

/// What a record does to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The next snapshot may be larger by up to twice the record's length. Refused first.
    Growth,
    /// It will be larger by what was foreseen at most: a release, an end, a loss. For these a
    /// quarter of the log is kept, and a full disk never stops them: before the quarter is used up,
    /// a snapshot is due, for which there is room.
    Relief,
}

/// When a record is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Now,
    /// Once the store has reached this number.
    At(u64),
}

/// Why a store didn't do as it was told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A full or read-only filesystem, or a limit.
    #[error("no room in {}: {error}", file.display())]
    NoRoom { file: PathBuf, error: Arc<io::Error> },
    #[error("{}: {error}", file.display())]
    Io { file: PathBuf, error: Arc<io::Error> },
    #[error("a record has 1 to {MAX_RECORD} bytes, and not {0}")]
    Length(usize),
    /// A snapshot is being made already.
    #[error("a snapshot is being made already")]
    Busy,
    /// What was written before reads differently now.
    #[error("{} is damaged: {why}", file.display())]
    Damaged { file: PathBuf, why: String },
    /// The state can't be made from what is kept.
    #[error("the state could not be made again: {0}")]
    Rebuild(String),
}

impl StoreError {
    fn no_room(file: PathBuf, error: io::Error) -> Self {
        Self::NoRoom { file, error: Arc::new(error) }
    }

    fn io(file: PathBuf, error: io::Error) -> Self {
        Self::Io { file, error: Arc::new(error) }
    }
}

/// How a store fares, for `syncctl status`.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is kept.
    pub directory: PathBuf,
    /// What it takes there, used or reserved.
    pub bytes: u64,
    /// Records since the last snapshot.
    pub records: u64,
    pub snapshot_bytes: u64,
    /// When the last snapshot was taken, in microseconds since the Unix epoch.
    pub snapshot_at: u64,
    /// `None`: it is healthy.
    pub error: Option<String>,
}
