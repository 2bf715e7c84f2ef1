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
    #[error("the system doesn't tell which process it is")]
    Nobody,
    #[error(
        "the daemon's user namespace doesn't map its user (it would be {0}, as all such users \
         are): map it, or run a daemon in the client's container"
    )]
    Unmapped(u32),
    #[error("its process can't be watched: {0}")]
    Unwatched(#[from] io::Error),
    #[error(
        "the daemon can't see your process, which is in another process namespace (such as a \
         container's), and couldn't notice its death: run it in the daemon's (docker run \
         --pid=host), or run a daemon of your own, at another SYNCD_SOCKET"
    )]
    Foreign,
    #[error("its process has exited")]
    Exited,
}

/// A client's process, alive when it was identified.
pub(crate) struct Peer {
    pub pid: u32,
    pub user: u32,
    /// When it was started, in the system's unit; `None` if unknown.
    pub started: Option<u64>,
    watch: Watch,
}

/// A process that the previous daemon knew, looked up again.
pub(crate) enum Found {
    /// It has exited; another process may have its PID.
    Dead,
    /// A process has its PID; `proved` if it is certainly the same one.
    Living { peer: Peer, proved: bool },
}

impl Peer {
    /// Identifies the process that connected, even if its PID is reused.
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

    /// Finds a process again by its PID and start time.
    pub fn find(pid: u32, user: u32, started: Option<u64>) -> Found {
        let Some(watch) = Watch::of(pid) else { return Found::Dead };
        // Watched first, so that the start time is that of the watched process.
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

    /// Waits until the process has exited. Cancel safe.
    pub async fn exited(&self) {
        self.watch.exited().await;
    }

    /// The beginning of its command line. That is read from the process's own memory, which can
    /// block for ever (a page that another process serves: userfaultfd, FUSE). So a thread reads
    /// it, at most one per permit, and after [`PATIENCE`] the program's name is used instead.
    /// `None` if the process has exited meanwhile, since another process may have its PID.
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
/// How much of a command line is read, in bytes.
const READ: u64 = 4096;
/// How much of a command line is shown, in characters.
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

/// `text` with control characters escaped, since terminals will show it; cut to the length of a
/// label.
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

/// Users that the daemon's user namespace doesn't map: the kernel reports all of them by one
/// number, the overflow UID (user_namespaces(7)).
#[cfg(target_os = "linux")]
mod unmapped {
    use std::{fs, sync::OnceLock};

    const EVERYBODY: u64 = u32::MAX as u64;

    /// Whether `user` may stand for users that aren't mapped.
    pub(super) fn is_ambiguous(user: u32) -> bool {
        static OVERFLOW: OnceLock<Option<u32>> = OnceLock::new();
        *OVERFLOW.get_or_init(|| {
            let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
            (!maps_everybody(&map)).then(|| overflow.trim().parse().unwrap_or(65_534))
        }) == Some(user)
    }

    /// Whether a `uid_map` maps all users. An empty one means that the kernel has no user namespaces.
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
    fn a_process_is_shown_by_the_beginning_of_its_command_line() {
        let shown = read_words(std::process::id(), "cmdline");
        let first = std::env::args().next().unwrap();
        let length = first.chars().count().min(MAX_COMMAND);
        assert_eq!(shown.chars().take(length).collect::<String>(), first[..length]);
        assert!(shown.chars().count() <= MAX_COMMAND);
        assert_eq!(read_words(0, "cmdline"), "");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_read_whatever_the_processs_name() {
        let (own, comm) = (std::process::id(), "/proc/self/comm");
        let name = std::fs::read(comm).unwrap();
        let began = watch::started(own);
        assert!(began.is_some());
        // The first is cut in the middle of a character.
        for called in [b"\xc3".as_slice(), b") 1 (", b"a) \xff"] {
            std::fs::write(comm, called).unwrap();
            assert_eq!(watch::started(own), began);
        }
        std::fs::write(comm, name).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_overflow_uid_is_a_user_only_where_all_users_are_mapped() {
        assert!(unmapped::maps_everybody("         0          0 4294967295\n"));
        assert!(unmapped::maps_everybody("0 0 1000\n1000 100000 4294966295\n"));
        assert!(!unmapped::maps_everybody("0 1000 1\n"));
        assert!(!unmapped::maps_everybody("0 100000 65536\n"));
        assert!(unmapped::maps_everybody(""));
    }
}
