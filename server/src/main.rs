//! The binary `syncd`: parses flags and runs the library.

use std::{env, process::ExitCode};

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser};

/// Locks, semaphores and conditions for the programs of this machine.
///
/// When a process dies, what it holds is released, and the next owner is told. Programs use the
/// daemon through the crate syncd-client, the Python package syncd, or syncctl, which start a
/// daemon if there is none.
#[derive(Parser)]
#[command(name = "syncd", version, after_help = syncd::Options::EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    options: syncd::Options,
}

/// Fails to build if the core has the feature `sabotage` without this crate: `sabotaged` isn't const
/// with it.
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
