//! The command that `run` carries, on Windows: it shares our console, and with it Ctrl-C, and
//! is killed when we go. Never here: the lock.

use std::{ffi::OsString, io};

use tokio::process::{Child, Command};

/// A running command.
#[derive(Debug)]
pub struct Job(Child);

impl Job {
    /// Starts `program` with `arguments`, with `environment` added to ours.
    pub fn start(
        program: &OsString,
        arguments: &[OsString],
        environment: &[(&str, String)],
    ) -> io::Result<Self> {
        let environment = environment.iter().map(|(k, v)| (k, v));
        Command::new(program).args(arguments).envs(environment).kill_on_drop(true).spawn().map(Self)
    }

    /// Its exit code once it has exited, cut to a byte.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ended(&mut self) -> io::Result<u8> {
        loop {
            tokio::select! {
                status = self.0.wait() => return Ok(status?.code().unwrap_or(1) as u8),
                // The command has had it too, and decides.
                _ = tokio::signal::ctrl_c() => {}
            }
        }
    }

    /// Kills it.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.0.kill().await
    }
}
