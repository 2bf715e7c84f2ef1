//! The arguments: subcommands, flags, help texts with examples.

use std::{ffi::OsString, time::Duration};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use syncd_proto::Endpoint;

use crate::{failure, text::Color};

/// Show who holds which lock, run commands under a lock, release locks by force
#[derive(Debug, Parser)]
#[command(
    name = "syncctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 success; 1 refused or not found; 2 wrong usage; 69 no daemon. \
                  'syncctl run --help' lists those of run.\n\n\
                  Try 'syncctl demo', then 'syncctl help run'."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The options of all subcommands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The daemon's socket [default: $SYNCD_SOCKET, else the user's own, such as
    /// /tmp/syncd-1000/syncd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<Endpoint>,
    /// The namespace; 'shared/NAME' must be a shared one [default: the user's own]
    #[arg(long, global = true, value_name = "NAME", default_value = "", hide_default_value = true)]
    #[arg(env = "SYNCD_NAMESPACE", hide_env_values = true)]
    pub namespace: String,
    /// Print JSON, with durations in seconds
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub color: Color,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the daemon's state
    #[command(after_help = "Example:\n  syncctl status --json | jq .memory_bytes")]
    Status,
    /// List locks and other objects, with their holders
    #[command(after_help = "Examples:\n  syncctl ls backup/\n  syncctl ls --busy")]
    Ls {
        /// Only names with this prefix
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Only objects that are held or waited for
        #[arg(long)]
        busy: bool,
    },
    /// Show one object: its holders and its waiters, in order
    #[command(after_help = "Examples:\n  syncctl show backup/nightly\n  syncctl show '#17'")]
    Show {
        /// A name, '#id' or key
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List client processes, with what each holds and waits for
    #[command(after_help = "Example:\n  syncctl sessions --json | jq '.[] | select(.waits > 0)'")]
    Sessions,
    /// Print events as they happen, one line each, until Ctrl-C
    #[command(after_help = "Examples:\n  syncctl watch backup/\n  \
                            syncctl watch --json | jq 'select(.kind == \"abandoned\")'")]
    Watch {
        /// Only objects whose names have this prefix
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Run a command while holding a lock or a semaphore's permit
    Run(Run),
    /// Release a lock by force, from all its holders
    #[command(after_help = "Example:\n  syncctl release --force backup/nightly")]
    Release {
        /// A name, '#id' or key
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Required: the holder goes on working until it learns of it
        #[arg(long)]
        force: bool,
    },
    /// End a session: its holds are abandoned, and go to the next waiters
    #[command(after_help = "Examples:\n  syncctl kick 4711\n  syncctl kick id:12")]
    Kick {
        /// A session id or a process id; 'id:N' or 'pid:N' if it is ambiguous
        session: String,
    },
    /// Measure latency (beside a raw socket's), hand-off and throughput
    #[command(after_help = "Examples:\n  syncctl bench\n  taskset -c 0 syncctl bench --json\n\n\
                            taskset doesn't pin a daemon that runs already: to pin both, let bench \
                            start one, with '--socket' in an empty directory.")]
    Bench,
    /// Demonstrate locks, semaphores, conditions and the death of a holder with real processes
    #[command(after_help = "Example:\n  syncctl demo\n\nStarts a daemon of its own on a private \
                            socket, and removes it at the end. Exits with 0 if every check holds.")]
    Demo,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  syncctl completions bash > \
                            ~/.local/share/bash-completion/completions/syncctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run the daemon that is built into syncctl, in the foreground
    #[command(after_help = syncd::Options::EXAMPLES)]
    Daemon(Box<syncd::Options>),
    /// A process of demo or bench
    #[command(hide = true)]
    Worker(crate::worker::Worker),
}

/// `run`
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub struct Run {
    /// The lock's or semaphore's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Take a lock (the default)
    #[arg(long, conflicts_with = "semaphore")]
    pub lock: bool,
    /// Take one permit of a semaphore of N permits, which is created if there is none
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub semaphore: Option<u32>,
    /// Wait at most this long, such as 500ms, 10s, 2m, 1h (plain numbers are seconds); 0 doesn't wait
    #[arg(long, short = 'w', value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Don't wait
    #[arg(long, short = 'n', conflicts_with = "timeout")]
    pub no_wait: bool,
    /// The exit code if the lock can't be acquired in time
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = failure::CONFLICT)]
    pub conflict_exit_code: u8,
    /// Print who holds the lock while waiting, even if standard error isn't a terminal
    #[arg(long, short = 'v')]
    pub verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

const RUN_HELP: &str = "\
Examples:
  syncctl run backup/nightly --no-wait -- rsync -a /home /mnt
  syncctl run --semaphore 2 encode --timeout 10m -- ffmpeg -i in.mkv out.mp4

The command's environment has:
  SYNCD_LOCK       the name
  SYNCD_TOKEN      the fencing token: rises with every grant, so that storage which
                   remembers the highest can refuse a former holder
  SYNCD_ABANDONED  if the last holder died holding it: its pid and command

Exit codes: the command's own, and
    2  wrong usage, such as an empty name
   69  no daemon, and none could be started
   74  the lock was lost (daemon gone, kicked, released by force): the command was
       stopped, or had just ended
   75  the lock could not be acquired in time (--conflict-exit-code)
   76  the daemon refused: another kind, poisoned, a quota
  126  the command can't be executed
  127  there is no such command
If a signal ended the command, syncctl ends by the same signal (128+n to a shell), so that
one Ctrl-C ends a loop around it, even if standard error is closed.

Standard output is the command's alone; syncctl's messages go to standard error. The
command runs in a process group of its own, and the lock is held until it exits; signals
are passed on. If the lock is lost, the group gets SIGTERM and, two seconds later, SIGKILL.
If syncctl itself is killed (kill -9), the whole group is killed with it. A program that
leaves the group (a daemon, by setsid) goes on, and so do background processes that the
command leaves running when it exits. If the daemon doesn't confirm the release, syncctl
waits ten seconds or until a signal; the daemon handles the release when it goes on.";

/// Parses a duration: a number and one of us, ms, s, m, h, d.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a duration: use 500ms, 10s, 2m, 1h or a number of seconds");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in
            [("0", 0), ("1.5", 1500), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1w", "inf", "1 0"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
