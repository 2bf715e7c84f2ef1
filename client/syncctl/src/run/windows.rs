//! The command of `run` on Windows: it shares our console, and so Ctrl-C, and is killed if this
//! process ends.

use std::{ffi::OsString, io};

use tokio::process::{Child, Command};

use super::VARIABLES;

/// On Windows nothing has to be made before the runtime.
#[derive(Debug)]
pub struct Keeper;

impl Keeper {
    /// # Errors
    /// None.
    pub fn new() -> io::Result<Self> {
        Ok(Self)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(u8);

impl Ended {
    /// The exit code.
    pub fn end(self) -> u8 {
        self.0
    }
}

/// The exit code of Ctrl-C (STATUS_CONTROL_C_EXIT), cut to a byte.
const INTERRUPTED: Ended = Ended(0x3a);

/// A running command.
#[derive(Debug)]
pub struct Job(Child);

impl Job {
    /// Starts `program` with `arguments`, with `environment` added to ours.
    pub fn start(
        program: &OsString,
        arguments: &[OsString],
        environment: &[(&str, String)],
        Keeper: Keeper,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        for name in VARIABLES {
            command.env_remove(name);
        }
        let environment = environment.iter().map(|(k, v)| (k, v));
        command.args(arguments).envs(environment).kill_on_drop(true).spawn().map(Self)
    }

    /// Waits until the command has ended; the exit code is cut to a byte.
    ///
    /// # Cancel safety
    /// Safe: it can be called again.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        loop {
            tokio::select! {
                status = self.0.wait() => return Ok(Ended(status?.code().unwrap_or(1) as u8)),
                // The command gets Ctrl-C, too, and decides whether to end.
                _ = tokio::signal::ctrl_c() => {}
            }
        }
    }

    /// After the command's end: waits for Ctrl-C.
    pub async fn interrupted(&mut self) -> Ended {
        match tokio::signal::ctrl_c().await {
            Ok(()) => INTERRUPTED,
            Err(_) => std::future::pending().await,
        }
    }

    /// Kills the command.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.0.kill().await
    }
}
