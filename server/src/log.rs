//! Writing the log: in its own thread, so that neither a full disk nor a pipe that is full or closed
//! can block or end the daemon. Lines that couldn't be written are counted, and reported with the
//! next line that can.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing::warn;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

#[cfg(target_os = "linux")]
pub(crate) mod sigbus;

/// The most lines that wait for the log's thread; more are dropped.
const WAITING: usize = 4096;
/// The size at which a log file is rotated, in bytes.
const FILE_SIZE: u64 = 1 << 20;

/// Lines that couldn't be written.
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// Lines that were dropped because the queue was full.
static CROWDED_OUT: OnceLock<ErrorCounter> = OnceLock::new();
/// How many of both have been reported.
static TOLD: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log were lost since the process started.
pub(crate) fn dropped() -> u64 {
    let crowded_out = CROWDED_OUT.get().map_or(0, ErrorCounter::dropped_lines);
    REFUSED.load(Relaxed) + crowded_out as u64
}

/// The log's thread. When this is dropped, the thread has a second to finish.
pub(crate) struct Log(Option<WorkerGuard>);

/// Where the log goes.
pub(crate) enum Destination {
    Stderr {
        /// Whether lines may have colours: stderr is a terminal.
        ansi: bool,
    },
    File(PathBuf),
}

impl Log {
    pub fn start(destination: Destination) -> (NonBlocking, Self) {
        let (ansi, to): (bool, Box<dyn Write + Send>) = match destination {
            Destination::Stderr { ansi } => (ansi, Box::new(io::stderr())),
            Destination::File(path) => (false, Box::new(Rotating { path, file: None, size: 0 })),
        };
        let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
        let (writer, guard) = lines.thread_name("syncd-log").finish(Lines { ansi, to });
        let _ = CROWDED_OUT.set(writer.error_counter());
        (writer, Self(Some(guard)))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // It prints, and so may panic, if the writer is stuck.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.take()));
    }
}

/// Writes whole lines, and never fails. A line stays one line, whatever it quotes.
struct Lines<W> {
    ansi: bool,
    to: W,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        if self.to.write_all(one_line(&text, self.ansi).as_bytes()).is_err() {
            REFUSED.fetch_add(1, Relaxed);
        } else {
            let dropped = dropped();
            let untold = dropped - TOLD.swap(dropped, Relaxed);
            if untold > 0 {
                warn!(lines = untold, "lines of the log were lost: they could not be written");
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.to.flush();
        Ok(())
    }
}

/// `line` with all control characters escaped, except the final newline and, if `ansi`, colours.
fn one_line(line: &str, ansi: bool) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || (ansi && c == '\u{1b}');
    let body = line.strip_suffix('\n').unwrap_or(line);
    if body.chars().all(is_harmless) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 16);
    for c in body.chars() {
        if is_harmless(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown.push('\n');
    Cow::Owned(shown)
}

/// A log file of bounded size; rotated to `<path>.old`.
struct Rotating {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Rotating {
    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_some() && self.size >= FILE_SIZE {
            self.file = None;
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            fs::rename(&self.path, old)?;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.append(true).create(true);
                #[cfg(unix)]
                {
                    use std::os::unix::fs::OpenOptionsExt as _;
                    options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
                }
                let file = options.open(&self.path)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.open()?.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_cannot_forge_a_line() {
        assert_eq!(one_line("plain text\n", false), "plain text\n");
        assert_eq!(one_line("a\nINFO forged\n", false), "a\\nINFO forged\n");
        assert_eq!(one_line("a\u{1b}[2Jb\n", false), "a\\u{1b}[2Jb\n");
        assert_eq!(one_line("\u{1b}[32mINFO\n", true), "\u{1b}[32mINFO\n");
    }

    #[test]
    fn a_log_file_is_rotated_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Rotating { path: path.clone(), file: None, size: 0 };
        let line = [b'x'; 1000];
        for _ in 0..5000 {
            log.write_all(&line).unwrap();
        }
        let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("log") < FILE_SIZE + 1000);
        assert!((FILE_SIZE..FILE_SIZE + 1000).contains(&size("log.old")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_destination_that_fails_loses_only_its_own_lines() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let before = dropped();
        let mut lines = Lines { ansi: false, to: Full };
        lines.write_all(b"lost\n").unwrap();
        lines.flush().unwrap();
        assert_eq!(dropped(), before + 1);
    }
}
