//! The command line of syncd as a library, so that other binaries can contain it: see [`run`].
//!
//! # Layout
//! - `cli`: arguments. `failure`: errors and exit codes. `text`: terminal output. `view`: JSON.
//! - `broker`: connecting to a daemon. `show`, `watch`, `overrule`: inspection and administration.
//! - `run`: a command under a lock. `bench`: measurements.
//! - `demo`: the demonstration. `worker`: the processes of demo and bench.

mod bench;
mod broker;
mod cli;
mod demo;
mod failure;
mod overrule;
mod run;
mod show;
mod text;
mod view;
mod watch;
mod worker;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use syncd_proto::v1;

use cli::{Cli, Command, Global};
use failure::Failure;
use text::{Screen, complain};

/// Runs the command line `args`, whose first element is the program's name, and returns the exit
/// code. Call it once, from the main thread, before there are other threads: `run` forks.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let Cli { global, command } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let done = match command {
        Command::Daemon(options) => return syncd::run(*options).into(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(), "syncctl", &mut script);
            let screen = Screen::new(false, global.color);
            screen
                .line(String::from_utf8_lossy(&script).trim_end())
                .map(|()| 0)
                .map_err(Failure::from)
        }
        Command::Bench => bench::bench(&global, Screen::new(global.json, global.color)).map(|()| 0),
        Command::Worker(worker) => worker.work(&global).map(|()| 0),
        Command::Run(command) => run::run(command, &global),
        command => runtime().and_then(|runtime| runtime.block_on(act(command, global))),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.is_silent() {
                complain(&failure);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    // Building a runtime panics, instead of failing, if some of its descriptors can't be opened:
    // check that as many are free.
    #[cfg(unix)]
    for pair in [(); 3].map(|()| std::os::unix::net::UnixStream::pair()) {
        pair?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::from)
}

async fn act(command: Command, global: Global) -> Result<u8, Failure> {
    let screen = Screen::new(global.json, global.color);
    let inspect = async || broker::inspect(&global.endpoint()?).await;
    let namespace = global.namespace.clone();
    match command {
        Command::Status => show::status(inspect().await?, screen).await,
        Command::Ls { prefix, busy } => {
            let request = v1::ListRequest { namespace, prefix, busy, ..Default::default() };
            show::ls(inspect().await?, screen, request).await
        }
        Command::Show { name: object } => {
            show::show(inspect().await?, screen, v1::DescribeRequest { namespace, object }).await
        }
        Command::Sessions => show::sessions(inspect().await?, screen, namespace).await,
        Command::Watch { prefix } => {
            watch::watch(&global.endpoint()?, screen, v1::WatchRequest { namespace, prefix }).await
        }
        Command::Release { name, force: false } => Err(overrule::unforced(&name)),
        Command::Release { name: object, force: true } => {
            let request = v1::ForceReleaseRequest { namespace, object };
            overrule::release(inspect().await?, screen, request).await
        }
        Command::Kick { session } => {
            overrule::kick(inspect().await?, screen, &namespace, &session).await
        }
        Command::Demo => demo::demo(screen).await,
        Command::Bench
        | Command::Completions { .. }
        | Command::Daemon(_)
        | Command::Run(_)
        | Command::Worker(_) => unreachable!("has a runtime of its own, or none"),
    }
    .map(|()| 0)
}

/// The arguments without hidden subcommands.
fn visible() -> clap::Command {
    let all = Cli::command();
    let shown: Vec<_> = all.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    clap::Command::new("syncctl").args(all.get_arguments().cloned()).subcommands(shown)
}
