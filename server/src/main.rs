//! The binary `syncd`: flags in, exit code out. Everything else is the library's.

use std::{env, process::ExitCode};

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser};

/// Locks, semaphores and conditions for the programs of this machine.
///
/// A process that dies lets go of what it holds, and the next one is told. Programs reach the
/// daemon through the crate syncd-client, the Python package syncd, or syncctl; they start one
/// by themselves if there is none.
#[derive(Parser)]
#[command(name = "syncd", version, after_help = syncd::Options::EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    options: syncd::Options,
}

/// The core is built with bugs on purpose where that was asked of the daemon, and nowhere else: with
/// them this is no constant, and can't be built.
#[cfg(not(feature = "sabotage"))]
const _: () = assert!(!syncd_core::sabotage::sabotaged(syncd_core::sabotage::Bug::TokenReused));

fn main() -> ExitCode {
    let matches = Arguments::command().mut_args(without_empty_variable).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    syncd::run(arguments.options).into()
}

/// An empty environment variable counts as unset.
fn without_empty_variable(arg: Arg) -> Arg {
    let variable = arg.get_env().and_then(env::var_os);
    if variable.is_some_and(|value| value.is_empty()) { arg.env(None::<&str>) } else { arg }
}
