//! The arguments: subcommands, flags, their help with its examples.

use std::{ffi::OsString, time::Duration};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use syncd_proto::Endpoint;

use crate::{failure, text::Color};

/// See who holds which lock, run commands under one, and overrule when it must be.
#[derive(Debug, Parser)]
#[command(
    name = "syncctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 refused or not found; 2 wrong usage; 69 no daemon. \
                  'syncctl run --help' tells those of run.\n\n\
                  Try 'syncctl demo', then 'syncctl help run'."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What all subcommands take.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The daemon's socket [default: $SYNCD_SOCKET, else the user's own, as in
    /// /tmp/syncd-1000/syncd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<Endpoint>,
    /// The namespace: 'shared/NAME' is the shared one of that name and nothing else [default: the
    /// user's own]
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
    /// The daemon at a glance
    #[command(after_help = "Example:\n  syncctl status --json | jq .memory_bytes")]
    Status,
    /// Locks and their kin, with who holds them
    #[command(after_help = "Examples:\n  syncctl ls backup/\n  syncctl ls --busy")]
    Ls {
        /// Only names that begin so
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Only what somebody holds or waits for
        #[arg(long)]
        busy: bool,
    },
    /// One object: all who hold it, all who wait, in order
    #[command(after_help = "Examples:\n  syncctl show backup/nightly\n  syncctl show '#17'")]
    Show {
        /// A name, '#id' or key
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Client processes, with what each holds and waits for
    #[command(after_help = "Example:\n  syncctl sessions --json | jq '.[] | select(.waits > 0)'")]
    Sessions,
    /// Events as they happen, one line each, until Ctrl-C
    #[command(after_help = "Examples:\n  syncctl watch backup/\n  \
                            syncctl watch --json | jq 'select(.kind == \"abandoned\")'")]
    Watch {
        /// Only objects whose names begin so
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Run a command while holding a lock or a semaphore's permit
    Run(Run),
    /// Take a lock from all who hold it
    #[command(after_help = "Example:\n  syncctl release --force backup/nightly")]
    Release {
        /// A name, '#id' or key
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Mean it: who holds it goes on working until told
        #[arg(long)]
        force: bool,
    },
    /// End a session: what it holds goes to the next in line, as abandoned
    #[command(after_help = "Examples:\n  syncctl kick 4711\n  syncctl kick id:12")]
    Kick {
        /// A session's id or a process's; 'id:N' or 'pid:N' where both fit
        session: String,
    },
    /// Measure this machine: latency beside a raw socket's, hand-off, throughput
    #[command(after_help = "Examples:\n  syncctl bench\n  taskset -c 0 syncctl bench --json\n\n\
                            A daemon that runs already keeps its own CPUs: to pin both, let bench \
                            start one, with '--socket' in an empty directory.")]
    Bench,
    /// See it work: three programs, real processes, one of them killed
    #[command(after_help = "Example:\n  syncctl demo\n\nStarts a daemon of its own on a private \
                            socket, and leaves nothing behind. Exits with 0 if every check holds.")]
    Demo,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  syncctl completions bash > \
                            ~/.local/share/bash-completion/completions/syncctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run the daemon that syncctl carries, in the foreground
    #[command(after_help = syncd::Options::EXAMPLES)]
    Daemon(Box<syncd::Options>),
    /// One of the processes that demo and bench are made of
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
    /// Take a lock, alone (the default)
    #[arg(long, conflicts_with = "semaphore")]
    pub lock: bool,
    /// Take one permit of a semaphore of N, made if there is none
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub semaphore: Option<u32>,
    /// Wait at most so long, as in 500ms, 10s, 2m, 1h (plain numbers are seconds); 0 only tries
    #[arg(long, short = 'w', value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Don't wait
    #[arg(long, short = 'n', conflicts_with = "timeout")]
    pub no_wait: bool,
    /// What to exit with when it can't be had in time
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = failure::CONFLICT)]
    pub conflict_exit_code: u8,
    /// Say who holds it while waiting, on a terminal or not
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

The command finds in its environment:
  SYNCD_LOCK       the name
  SYNCD_TOKEN      the fencing token: rises with every grant, so that a store which
                   remembers the highest can refuse a holder from the past
  SYNCD_ABANDONED  if the one before died holding it: its pid and command

Exit codes: the command's own, and
    2  wrong usage, such as an empty name
   69  no daemon, and none could be started
   74  the lock was lost (daemon gone, kicked, taken by force): the command was stopped,
       or had just ended
   75  not to be had in time (--conflict-exit-code)
   76  the daemon refused: another kind, poisoned, a quota
  126  the command can't be executed
  127  there is no such command
If a signal ended the command, syncctl ends by the same (128+n to a shell), so that one
Ctrl-C ends a loop around it. Nothing about this changes when standard error is closed.

Standard output is the command's alone; what syncctl has to say goes to standard error.
The command runs in its own process group and the lock is held until it exits; signals
are passed on. If the lock is lost, the group gets SIGTERM and, two seconds later, SIGKILL.
If syncctl itself is killed (kill -9), the whole group is killed with it. A program that
leaves the group (a daemon, by setsid) goes on, and so does what the command left running
in the background when it exited. A daemon that doesn't answer when the lock is given back
is waited for for ten seconds or until a signal; it has the lock back when it goes on.";

/// A duration in words: a number and one of us, ms, s, m, h, d.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no duration: say 500ms, 10s, 2m, 1h or a number of seconds");
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
