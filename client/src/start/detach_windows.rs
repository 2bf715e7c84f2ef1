//! Starts a process that outlives its starter, on Windows.

use std::{
    fs::File,
    io,
    os::windows::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use super::command::Plan;

/// A daemon that was started.
pub(super) struct Detached(Child);

/// What the daemon has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    /// Another daemon has the place.
    Busy,
    Exited,
}

/// The daemon's exit code if another has the place.
const ALREADY_RUNNING: i32 = 3;

pub(super) fn spawn(plan: &Plan, log: &File) -> io::Result<Detached> {
    const DETACHED_PROCESS: u32 = 0x8;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    let mut command = Command::new(&plan.program);
    command.args(&plan.args).env_clear().envs(plan.environment.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?);
    command.creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
    command.spawn().map(Detached)
}

impl Detached {
    pub(super) fn said(&mut self) -> Said {
        match self.0.try_wait() {
            Ok(Some(status)) if status.code() == Some(ALREADY_RUNNING) => Said::Busy,
            Ok(Some(_)) => Said::Exited,
            _ => Said::Nothing,
        }
    }
}
