//! The binary `syncctl`: passes its arguments to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    syncctl::run(std::env::args_os())
}
