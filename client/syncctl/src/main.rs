//! The binary `syncctl`: hands its arguments to the library. Nothing else lives here.

use std::process::ExitCode;

fn main() -> ExitCode {
    syncctl::run(std::env::args_os())
}
