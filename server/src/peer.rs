//! A client's process: who it is, and when it has exited.

#[cfg_attr(target_os = "linux", path = "peer/linux.rs")]
#[cfg_attr(windows, path = "peer/windows.rs")]
#[cfg_attr(not(any(target_os = "linux", windows)), path = "peer/unwatched.rs")]
mod watch;

use std::{
    fs::File,
    io::{self, Read as _},
    sync::Arc,
    time::Duration,
};

use syncd_proto::socket::Socket;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::namespace::MAX_NAME;
use watch::Watch;

/// Why a connection's process isn't known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unidentified {
    #[error("the system doesn't tell who it is")]
    Nobody,
    #[error(
        "its user has no number here: the daemon's user namespace doesn't map it (it would be \
         {0}, as all such users are): map it, or run a daemon in the client's container"
    )]
    Unmapped(u32),
    #[error("its process can't be watched: {0}")]
    Unwatched(#[from] io::Error),
    #[error(
        "the daemon can't see your process, which is in another process namespace (a container's, \
         say), and could not notice its death: run it in the daemon's (docker run --pid=host), or a \
         daemon of your own, at another SYNCD_SOCKET"
    )]
    Foreign,
    #[error("its process has exited")]
    Exited,
}

/// A process at the other end of a socket, alive when it was identified.
pub(crate) struct Peer {
    pub pid: u32,
    pub user: u32,
    /// When it began, in the system's own unit; `None`: the system doesn't tell.
    pub started: Option<u64>,
    watch: Watch,
}

/// What became of a process that the daemon before knew.
pub(crate) enum Found {
    /// It has exited, whoever may have its number now.
    Dead,
    /// Somebody has its number. `proved`: it is that very process.
    Living { peer: Peer, proved: bool },
}

impl Peer {
    /// The very process that connected, whatever becomes of its number.
    pub fn identify(socket: &Socket) -> Result<Self, Unidentified> {
        let peer = socket.peer();
        let user = if cfg!(windows) { Some(0) } else { peer.uid };
        let user = user.ok_or(Unidentified::Nobody)?;
        #[cfg(target_os = "linux")]
        if unmapped::is_ambiguous(user) {
            return Err(Unidentified::Unmapped(user));
        }
        let pid = peer.pid.ok_or(Unidentified::Foreign)?;
        let watch = Watch::new(socket, pid)?;
        let peer = Self { pid, user, started: watch::started(pid), watch };
        if peer.has_exited() { Err(Unidentified::Exited) } else { Ok(peer) }
    }

    /// Finds a process again by its number and by when it began.
    pub fn find(pid: u32, user: u32, started: Option<u64>) -> Found {
        let Some(watch) = Watch::of(pid) else { return Found::Dead };
        // Watched first: what is told of the number now is told of the process that is watched.
        let now = watch::started(pid);
        let peer = Self { pid, user, started: now, watch };
        let is_another = now.zip(started).is_some_and(|(now, then)| now != then);
        if is_another || peer.has_exited() {
            return Found::Dead;
        }
        Found::Living { peer, proved: now.is_some() && now == started }
    }

    pub fn has_exited(&self) -> bool {
        self.watch.has_exited()
    }

    /// Returns when it has exited.
    pub async fn exited(&self) {
        self.watch.exited().await;
    }

    /// The first words of its command line. To read them is to read the process's own memory,
    /// which it may never give out (a page that another process serves), so a thread does that,
    /// at most one per permit, and isn't waited for for long: then the program's name must do.
    /// `None` if the process has exited meanwhile, since its number may be another's.
    pub async fn command(&self, permits: &Arc<Semaphore>) -> Option<Arc<str>> {
        let pid = self.pid;
        let words = match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                let reading = spawn_blocking(move || {
                    let words = read_words(pid, "cmdline");
                    drop(permit);
                    words
                });
                timeout(PATIENCE, reading).await.ok().and_then(Result::ok).unwrap_or_default()
            }
            Err(_) => String::new(),
        };
        let words = if words.is_empty() { read_words(pid, "comm") } else { words };
        (!self.has_exited()).then(|| words.into())
    }
}

/// How long a connection waits for its process's command line.
const PATIENCE: Duration = Duration::from_millis(100);
/// So much of a command line is read, in bytes, and so many characters of it are shown.
const READ: u64 = 4096;
const MAX_COMMAND: usize = 64;

fn read_words(pid: u32, file: &str) -> String {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/{file}"))
        .and_then(|file| file.take(READ).read_to_end(&mut text));
    if read.is_err() {
        return String::new();
    }
    let words = String::from_utf8_lossy(&text).replace('\0', " ");
    printable(words.trim().chars().take(MAX_COMMAND).collect::<String>().trim_end())
}

/// With control characters escaped, since people will see it in their terminal; cut where that
/// makes it longer than a label may be.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let end = shown.len();
        if c.is_control() {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        if shown.len() > MAX_NAME {
            shown.truncate(end);
            break;
        }
    }
    shown
}

/// User numbers that are no user's: where the daemon's user namespace doesn't map a user, the
/// kernel calls it by the overflow number, and so all of them would be one.
#[cfg(target_os = "linux")]
mod unmapped {
    use std::{fs, sync::OnceLock};

    const EVERYBODY: u64 = u32::MAX as u64;

    /// Whether that number may stand for a user that isn't mapped.
    pub(super) fn is_ambiguous(user: u32) -> bool {
        static OVERFLOW: OnceLock<Option<u32>> = OnceLock::new();
        *OVERFLOW.get_or_init(|| {
            let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
            (!maps_everybody(&map)).then(|| overflow.trim().parse().unwrap_or(65_534))
        }) == Some(user)
    }

    /// No map at all is no user namespace.
    pub(super) fn maps_everybody(map: &str) -> bool {
        let lengths = map.lines().filter_map(|line| line.split_whitespace().nth(2));
        map.is_empty() || lengths.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() >= EVERYBODY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_control_characters_are_escaped() {
        assert_eq!(printable("nightly \u{1b}[2J backup\n"), r"nightly \u{1b}[2J backup\n");
        assert!(printable(&"\u{1b}".repeat(MAX_NAME)).len() <= MAX_NAME);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_known_by_the_first_words_of_its_command_line() {
        let shown = read_words(std::process::id(), "cmdline");
        let first = std::env::args().next().unwrap();
        let length = first.chars().count().min(MAX_COMMAND);
        assert_eq!(shown.chars().take(length).collect::<String>(), first[..length]);
        assert!(shown.chars().count() <= MAX_COMMAND);
        assert_eq!(read_words(0, "cmdline"), "");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn when_a_process_began_is_told_whatever_it_calls_itself() {
        let (own, comm) = (std::process::id(), "/proc/self/comm");
        let name = std::fs::read(comm).unwrap();
        let began = watch::started(own);
        assert!(began.is_some());
        // One that is cut in the middle of a letter.
        for called in [b"\xc3".as_slice(), b") 1 (", b"a) \xff"] {
            std::fs::write(comm, called).unwrap();
            assert_eq!(watch::started(own), began);
        }
        std::fs::write(comm, name).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_where_everybody_is_mapped_is_the_overflow_number_a_users_own() {
        assert!(unmapped::maps_everybody("         0          0 4294967295\n"));
        assert!(unmapped::maps_everybody("0 0 1000\n1000 100000 4294966295\n"));
        assert!(!unmapped::maps_everybody("0 1000 1\n"));
        assert!(!unmapped::maps_everybody("0 100000 65536\n"));
        assert!(unmapped::maps_everybody(""));
    }
}
