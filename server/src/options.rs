//! The daemon as a program: flags and their environment variables, the log, signals and exit codes.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::{ValueEnum, builder::BoolishValueParser};
use syncd_proto::Endpoint;
use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::{
    Config, Journaling, Limits, ServeError, Server,
    handover::Reload,
    log::{Destination, Log},
    signals,
};

/// The daemon's flags. Each has an environment variable; a flag takes precedence.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Listen on this socket. Default: where the user's clients look, whatever their environment:
    /// /tmp/syncd-UID/syncd.sock, and /run/syncd-0/syncd.sock for root.
    #[arg(long, env = "SYNCD_SOCKET", value_name = "PATH")]
    socket: Option<Endpoint>,

    /// What to log: a level (error, warn, info, debug, trace), or levels by target, such as
    /// "info,syncd=debug".
    #[arg(long, env = "SYNCD_LOG", value_name = "FILTER", default_value = "info")]
    log: String,

    /// Log to this file instead of stderr. At 1 MiB it is renamed to PATH.old, which replaces the
    /// previous one, and a new file begins.
    #[arg(long, env = "SYNCD_LOG_FILE", value_name = "PATH")]
    log_file: Option<PathBuf>,

    /// The format of the log.
    #[arg(long, env = "SYNCD_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// Exit after this time without a connection, a session or an object: 300s, 5m, 1h.
    #[arg(long, env = "SYNCD_IDLE_EXIT", value_name = "DURATION", value_parser = duration)]
    idle_exit: Option<Duration>,

    /// Replace the running daemon, which exits: its clients go on, blocked calls too, and no client
    /// is refused meanwhile. Both must keep the same journal. If no daemon is running, start as
    /// usual; if the running one can't be replaced, it goes on.
    #[cfg(unix)]
    #[arg(long, env = "SYNCD_REPLACE", value_parser = BoolishValueParser::new())]
    #[arg(conflicts_with = "no_journal")]
    replace: bool,

    /// How long a living process keeps what it holds after its connection broke; at least 100ms. (A
    /// process that dies loses it at once.)
    #[arg(long, env = "SYNCD_GRACE", value_name = "DURATION", value_parser = duration)]
    #[arg(default_value = "10s")]
    grace: Duration,

    /// How long an anonymous object is kept while no session is attached to it.
    #[arg(long, env = "SYNCD_LINGER", value_name = "DURATION", value_parser = duration)]
    #[arg(default_value = "60s")]
    linger: Duration,

    /// Make NAME a namespace that all users share. Otherwise each user has their own. Repeatable.
    #[arg(long, env = "SYNCD_SHARE", value_name = "NAME", value_delimiter = ',')]
    share: Vec<String>,

    /// The socket's permissions, in octal.
    #[arg(long, env = "SYNCD_MODE", value_name = "OCTAL", value_parser = mode)]
    #[arg(default_value = "600")]
    mode: u32,

    /// The socket's group, by name or number: with --mode 660, all its members may connect.
    #[cfg(unix)]
    #[arg(long, env = "SYNCD_GROUP", value_name = "GROUP", value_parser = group)]
    group: Option<u32>,

    /// Keep the state in this directory, so that it outlives the daemon: it should be in memory (a
    /// tmpfs), or on a disk that is never slow. Default: beside the socket.
    #[arg(long, env = "SYNCD_JOURNAL", value_name = "DIR", conflicts_with = "no_journal")]
    journal: Option<PathBuf>,

    /// Keep no state: a call is some hundred nanoseconds faster; but if the daemon is killed, all
    /// locks are lost, and the next daemon grants them to others while their holders work on.
    #[arg(long, env = "SYNCD_NO_JOURNAL", value_parser = BoolishValueParser::new())]
    no_journal: bool,

    /// Threads. One thread has the lowest latency, and serves some hundred thousand locks a second.
    #[arg(long, env = "SYNCD_WORKERS", value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,

    #[command(flatten)]
    limits: Limits,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A line of text per event.
    Text,
    /// A JSON object per event.
    Json,
}

impl Options {
    /// For `--help`.
    pub const EXAMPLES: &str = "\
Examples:
  syncd                                  for this user, until it is told to stop
  syncd --idle-exit 300s                 as a client starts it
  syncd --socket /tmp/x/syncd.sock --log debug
  syncd --socket /run/syncd/syncd.sock --mode 660 --group lockers --share jobs
                                         for the machine: the group's members may
                                         connect, and share the namespace \"jobs\"
  SYNCD_SOCKET=/tmp/x/syncd.sock syncctl status

Exit codes:
  0  it was told to stop, or was idle for long enough
  1  it could not start
  2  the flags are wrong
  3  another daemon has the socket already
  4  its socket, lock file or directory was removed or taken over
  5  --replace: the running daemon couldn't be replaced, and goes on";

    fn config(self) -> Result<Config, String> {
        let endpoint = match self.socket {
            Some(endpoint) => endpoint,
            None => Endpoint::from_env_or_default().map_err(|error| error.to_string())?,
        };
        let mut config = Config::new(endpoint);
        config.mode = self.mode;
        #[cfg(unix)]
        {
            config.group = self.group;
        }
        config.idle_exit = self.idle_exit;
        #[cfg(unix)]
        {
            config.replace = self.replace;
        }
        config.grace = self.grace;
        config.linger = self.linger;
        config.shared = self.share;
        config.limits = self.limits;
        config.journal = match self.journal {
            _ if self.no_journal => Journaling::Off,
            Some(directory) => Journaling::In(directory),
            None => Journaling::Beside,
        };
        Ok(config)
    }
}

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const ALREADY_RUNNING: u8 = 3;
const PLACE_LOST: u8 = 4;
const NOT_REPLACED: u8 = 5;

/// Runs the daemon: logs, serves until SIGTERM or SIGINT, and returns the exit code. Call it before
/// the process has other threads.
pub fn run(options: Options) -> u8 {
    let usage = |error: String| {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "syncd: {error}");
        USAGE
    };
    let filter = match EnvFilter::try_new(&options.log) {
        Ok(filter) => filter,
        Err(error) => return usage(format!("--log {:?}: {error}", options.log)),
    };
    // Before the log's thread starts: these two need a process with one thread.
    let activated = activated();
    let (reload, predecessor) = Reload::prepare();
    let destination = match &options.log_file {
        Some(path) => Destination::File(path.clone()),
        None => Destination::Stderr { ansi: std::io::stderr().is_terminal() },
    };
    let ansi = matches!(destination, Destination::Stderr { ansi: true });
    let (writer, _log) = Log::start(destination);
    #[cfg(target_os = "linux")]
    crate::log::sigbus::explain(options.log_file.as_deref());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false)
        .with_ansi(ansi);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    std::panic::set_hook(Box::new(|panic| error!("{panic}")));
    let workers = options.workers;
    #[cfg_attr(windows, allow(unused_mut, reason = "there is nothing to prepare"))]
    let mut config = match options.config() {
        Ok(config) => config,
        Err(error) => return usage(error),
    };
    if let Some(endpoint) = predecessor {
        (config.endpoint, config.replace) = (endpoint, true);
    }
    if config.replace && config.journal == Journaling::Off {
        return usage("--replace needs a journal: without one all locks would be lost".into());
    }
    let served = activated.and_then(|activated| {
        #[cfg(unix)]
        prepare(&mut config, activated);
        #[cfg(windows)]
        let () = activated;
        serve(config, workers, reload)
    });
    match served {
        Ok(()) => 0,
        Err(failure) => {
            error!("{failure}");
            match failure {
                ServeError::AlreadyRunning { .. } => {
                    tell_starter("busy");
                    ALREADY_RUNNING
                }
                ServeError::PlaceLost { .. } => PLACE_LOST,
                ServeError::NotReplaced { .. } => NOT_REPLACED,
                _ => FAILURE,
            }
        }
    }
}

/// Writes a word to standard output for the client that started this process, if one did.
fn tell_starter(word: &str) {
    if std::env::var_os("SYNCD_AUTO_STARTED").is_some() {
        let _ = writeln!(std::io::stdout(), "{word}");
    }
}

#[cfg(unix)]
use crate::instance::activated;

#[cfg(windows)]
fn activated() -> Result<(), ServeError> {
    Ok(())
}

/// Takes the socket that systemd passed, and raises the limit of open files.
#[cfg(unix)]
fn prepare(config: &mut Config, activated: Option<std::os::fd::OwnedFd>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    config.activated = activated;
    if let Some(fd) = &config.activated
        && let Some(path) = bound_path(fd)
    {
        config.endpoint = path;
    }
}

#[cfg(unix)]
fn bound_path(fd: &std::os::fd::OwnedFd) -> Option<Endpoint> {
    let socket = std::os::unix::net::UnixListener::from(fd.try_clone().ok()?);
    socket.local_addr().ok()?.as_pathname()?.to_str()?.parse().ok()
}

fn serve(config: Config, workers: u16, reload: Reload) -> Result<(), ServeError> {
    let mut runtime = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(workers.into()).enable_all();
    let runtime = runtime.build().map_err(ServeError::Runtime)?;
    let served = runtime.block_on(async {
        let server = Server::bind(config)?;
        let stopped = signals::stopped().map_err(ServeError::Runtime)?;
        signals::reload_when_told(reload, server.endpoint()).map_err(ServeError::Runtime)?;
        if !server.replaces_its_starter() {
            signals::notify_manager("READY=1");
        }
        server
            .run(async {
                stopped.await;
                signals::notify_manager("STOPPING=1");
            })
            .await
    });
    runtime.shutdown_background();
    served
}

/// Parses "90", "90s", "1500ms", "5m" or "2h"; without a unit, seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write it as 500ms, 90s, 5m or 1h".to_owned())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => return Err(format!("unknown unit {unit:?}: use ms, s, m or h")),
    }
    .ok_or_else(|| "too long".to_owned())
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permissions are octal, up to 777".to_owned()),
    }
}

#[cfg(unix)]
fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = std::ffi::CString::new(text).map_err(|_| "no group has such a name".to_owned())?;
    // SAFETY: the name is a C string; the result is read before the next call, since flags are parsed
    // while there is one thread.
    let group = unsafe { libc::getgrnam(name.as_ptr()).as_ref() };
    group.map(|group| group.gr_gid).ok_or_else(|| format!("no group {text:?} on this machine"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        _options: Options,
    }

    #[test]
    fn the_flags_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "s", "1d", "-1s", "1.5s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(duration(&format!("{}h", u64::MAX)).is_err());
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(mode("660"), Ok(0o660));
        assert!(mode("1777").is_err() && mode("8").is_err());
    }
}
