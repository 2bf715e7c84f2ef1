//! The binary `syncd`: flags in, exit code out. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser;

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
    syncd::run(Arguments::parse().options).into()
}
