//! `syncctl`, as a program beside the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    syncctl::run(std::env::args_os())
}
