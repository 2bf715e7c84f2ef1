//! The daemon, as a program beside the tests: `syncd` by another name.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: syncd::Options,
}

fn main() -> ExitCode {
    // A bug of an unknown name ends it here.
    #[cfg(feature = "sabotage")]
    let _ = syncd_core::sabotage::chosen();
    syncd::run(Arguments::parse().options).into()
}
