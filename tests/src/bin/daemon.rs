//! The daemon, as a program beside the tests: `syncd` by another name.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: syncd::Options,
}

fn main() -> ExitCode {
    syncd::run(Arguments::parse().options).into()
}
