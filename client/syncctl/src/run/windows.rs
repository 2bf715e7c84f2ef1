//! The command that `run` carries, on Windows: it shares our console, and with it Ctrl-C, and is
//! killed when we go.

use std::{ffi::OsString, io};

use tokio::process::{Child, Command};

use super::VARIABLES;

/// Nothing has to be made before there is a runtime.
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

/// What Ctrl-C leaves (STATUS_CONTROL_C_EXIT), cut to a byte.
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

    /// How it ended, once it has: its exit code, cut to a byte.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        loop {
            tokio::select! {
                status = self.0.wait() => return Ok(Ended(status?.code().unwrap_or(1) as u8)),
                // The command has had it too, and decides.
                _ = tokio::signal::ctrl_c() => {}
            }
        }
    }

    /// After the end: a Ctrl-C.
    pub async fn interrupted(&mut self) -> Ended {
        match tokio::signal::ctrl_c().await {
            Ok(()) => INTERRUPTED,
            Err(_) => std::future::pending().await,
        }
    }

    /// Kills it.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.0.kill().await
    }
}
