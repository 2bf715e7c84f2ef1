//! The extension module of the Python package syncd. The public classes are in `syncd/*.py`.

mod aio;
mod books;
mod condition;
mod failure;
mod kind;
mod semlock;
mod wait;

use std::ffi::OsString;

use clap::Parser;
use pyo3::prelude::*;

/// Locks, semaphores and conditions for the programs of this machine.
///
/// This is the daemon. `python -m syncd run SCRIPT` runs a script on its semaphores instead.
#[derive(Parser)]
#[command(name = "syncd", bin_name = "python -m syncd", version, after_help = syncd::Options::EXAMPLES)]
struct Daemon {
    #[command(flatten)]
    options: syncd::Options,
}

/// Runs the daemon in this process, and exits with its exit code.
#[pyfunction]
fn daemon(py: Python<'_>, arguments: Vec<OsString>) {
    py.detach(|| {
        let code = match Daemon::try_parse_from(arguments) {
            Ok(daemon) => syncd::run(daemon.options),
            Err(error) => error.exit(),
        };
        std::process::exit(code.into())
    })
}

// The books assume the GIL: importing this makes a free-threaded Python enable it.
#[pymodule(gil_used = true)]
mod _native {
    #[pymodule_export]
    use super::{
        aio::{AsyncAction, AsyncCall, AsyncHold, AsyncObject, fresh_owner},
        condition::{Barrier, Condition, Event},
        daemon,
        semlock::{SemLock, sem_unlink},
        wait::at_exit,
    };
}
