//! The numbers of records, which fencing tokens are taken from: they never fall, even if the daemon
//! restarts or the clock is set back. A file beside the socket holds a mark above all numbers that
//! clients have seen; it is raised before a client sees any number beyond it. (The core assigns the
//! numbers.)

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tracing::{info, warn};

use crate::panic;

/// How far ahead the mark is set. About the number of microseconds between two marks of the busiest
/// daemon, so that the numbers stay near the clock: after a reboot, when the file is gone, the clock
/// alone must be above them all.
const AHEAD: u64 = 1_000_000;
/// A mark above this is taken for damage: no clock reaches it.
const ABSURD: u64 = 1 << 62;

pub(crate) struct Numbers {
    /// Above all numbers of namespaces that were retired.
    next: AtomicU64,
    /// The mark in the file: clients may see numbers below it.
    mark: AtomicU64,
    file: Option<Mutex<MarkFile>>,
    /// A thread is moving the mark.
    moving: AtomicBool,
    failing: AtomicBool,
    /// Another daemon may write the file.
    frozen: AtomicBool,
}

impl Numbers {
    /// Begins at the clock, or at the previous daemon's mark if that is higher.
    pub fn open(file: Option<File>) -> Self {
        let mut file = file.map(|file| MarkFile { file, slot: 0 });
        let before = file.as_mut().and_then(|file| {
            file.read().unwrap_or_else(|error| {
                warn!(%error, "the file of the highest fencing token can't be read");
                None
            })
        });
        let clock = unix_micros();
        if let Some(mark) = before.filter(|&mark| mark > clock.saturating_add(AHEAD)) {
            info!(
                mark,
                clock,
                "the clock is behind the mark (it was set back, or daemons were started in quick succession): fencing tokens continue from the mark"
            );
        }
        let numbers = Self {
            next: AtomicU64::new(clock.max(before.unwrap_or(0))),
            mark: AtomicU64::new(0),
            file: file.map(Mutex::new),
            moving: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
        };
        numbers.move_mark(numbers.next.load(Ordering::Relaxed));
        numbers
    }

    /// The first number for a new namespace.
    pub fn begin(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Raises the mark above `last` if necessary. Call it before a client sees any number up to
    /// `last`.
    pub fn cover(self: &Arc<Self>, last: u64) {
        let mark = self.mark.load(Ordering::Acquire);
        if last >= mark {
            self.move_mark(last);
        } else if mark - last < AHEAD / 2
            && !self.moving.swap(true, Ordering::Relaxed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Ahead of time, so that no call has to wait for a disk.
            let numbers = self.clone();
            runtime.spawn_blocking(move || {
                numbers.move_mark(last);
                numbers.moving.store(false, Ordering::Relaxed);
            });
        }
    }

    /// A namespace with numbers up to `last` has ended; `None` if the last number is unknown.
    pub fn retire(&self, last: Option<u64>) {
        let after = last.map_or_else(|| self.mark.load(Ordering::Acquire), |last| last + 1);
        self.next.fetch_max(after, Ordering::Relaxed);
    }

    /// Stops or resumes writing the file. While it is stopped, no client may see a new number.
    pub fn freeze(&self, frozen: bool) {
        let _file = self.file.as_ref().map(panic::lock);
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    fn move_mark(&self, last: u64) {
        let mark = last + AHEAD;
        if let Some(file) = &self.file {
            let mut file = panic::lock(file);
            if mark <= self.mark.load(Ordering::Acquire) || self.frozen.load(Ordering::Relaxed) {
                return;
            }
            let written = file.write(mark);
            let failed_before = self.failing.swap(written.is_err(), Ordering::Relaxed);
            match written {
                Err(error) if !failed_before => {
                    warn!(%error, "the highest fencing token can't be kept: should the clock be \
                        set back before the next daemon starts, its tokens would be lower");
                }
                Ok(()) if failed_before => info!("the highest fencing token is kept again"),
                _ => {}
            }
        }
        self.mark.fetch_max(mark, Ordering::Release);
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// A mark in two slots, written in turn: if part of a write is lost, the mark before it is still
/// whole, and no client has seen a number beyond that.
struct MarkFile {
    file: File,
    slot: u64,
}

/// The size of a slot: "00001732485600000000 0123456789abcdef\n".
const SLOT: usize = 20 + 1 + 16 + 1;

impl MarkFile {
    /// The highest mark with a valid checksum.
    fn read(&mut self) -> io::Result<Option<u64>> {
        let mut highest = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT];
            if read_at(&self.file, &mut bytes, slot * SLOT as u64)? == SLOT
                && let Some(mark) = parse(&bytes)
                && highest.is_none_or(|highest| mark > highest)
            {
                highest = Some(mark);
                self.slot = 1 - slot;
            }
        }
        Ok(highest)
    }

    fn write(&mut self, mark: u64) -> io::Result<()> {
        let line = format!("{mark:020} {:016x}\n", checksum(mark));
        write_at(&self.file, line.as_bytes(), self.slot * SLOT as u64)?;
        self.slot = 1 - self.slot;
        Ok(())
    }
}

fn parse(bytes: &[u8; SLOT]) -> Option<u64> {
    let (mark, sum) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split_once(' ')?;
    let mark = mark.parse().ok().filter(|&mark| mark < ABSURD)?;
    (u64::from_str_radix(sum, 16).ok()? == checksum(mark)).then_some(mark)
}

/// FNV-1a.
fn checksum(mark: u64) -> u64 {
    mark.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(unix)]
pub(crate) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}

#[cfg(windows)]
pub(crate) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    match std::os::windows::fs::FileExt::seek_write(file, bytes, at)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn open(path: &std::path::Path) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn numbers_go_on_above_what_was_used_though_the_clock_is_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        // The previous daemon's clock was an hour ahead of this one's.
        let ahead = unix_micros() + 3_600_000_000;
        let numbers = Arc::new(Numbers::open(Some(open(&path))));
        numbers.cover(ahead);
        drop(numbers);
        let next = Numbers::open(Some(open(&path))).begin();
        assert!(next > ahead && next <= ahead + AHEAD);
    }

    #[test]
    fn a_torn_mark_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let mut file = MarkFile { file: open(&path), slot: 0 };
        for mark in [1000, 2000, 3000] {
            file.write(mark).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        // 3000 is in the first slot: whatever part of it is lost, 2000 remains.
        for torn in 0..SLOT {
            let mut bytes = whole.clone();
            bytes[torn..SLOT].fill(0);
            std::fs::write(&path, bytes).unwrap();
            let read = MarkFile { file: open(&path), slot: 0 }.read().unwrap();
            assert_eq!(read, Some(2000), "torn at {torn}");
        }
        std::fs::write(&path, "no marks at all").unwrap();
        assert_eq!(MarkFile { file: open(&path), slot: 0 }.read().unwrap(), None);
    }

    #[test]
    fn a_namespace_that_failed_may_have_used_all_up_to_the_mark() {
        let numbers = Arc::new(Numbers::open(None));
        let first = numbers.begin();
        numbers.retire(Some(first + 5));
        assert_eq!(numbers.begin(), first + 6);
        numbers.retire(None);
        assert_eq!(numbers.begin(), first + AHEAD);
    }
}
