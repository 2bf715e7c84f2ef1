//! Reload (SIGHUP): the daemon starts its own program, which may be a newer version by now, to
//! replace it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use syncd_proto::Endpoint;
use tracing::{info, warn};

/// The variable that tells the new program which place to take over.
const PREDECESSOR: &str = "SYNCD_PREDECESSOR";

/// How the program was started.
#[derive(Debug)]
pub(crate) struct Reload {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Reload {
    /// How this program was started, and the place that it has to take over. Must be called at the
    /// start, while there is one thread, and before the program's file may be replaced.
    pub fn prepare() -> (Self, Option<Endpoint>) {
        let mut args = env::args_os();
        let named = args.next().map(PathBuf::from).unwrap_or_default();
        // Prefer the name as given: resolving symbolic links would lead to the old version, or out of
        // a virtual environment.
        let program = match named.is_absolute() {
            true => named,
            false => env::current_exe().unwrap_or(named),
        };
        let place = env::var(PREDECESSOR).ok();
        // SAFETY: the caller's promise: no other thread reads the environment.
        unsafe { env::remove_var(PREDECESSOR) };
        let place = place.and_then(|path| path.parse().ok());
        (Self { program, args: args.collect() }, place)
    }

    /// Starts the program. If that doesn't replace this daemon, this one goes on.
    pub fn start(&self, endpoint: &Endpoint) {
        if std::process::id() == 1 {
            // The end of process 1 ends all processes of its container.
            return warn!("SIGHUP: process 1 can't be replaced: restart its container");
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).env(PREDECESSOR, endpoint.as_path());
        command.env_remove("SYNCD_AUTO_STARTED").stdin(Stdio::null()).stdout(Stdio::null());
        match command.spawn() {
            Ok(mut child) => {
                info!(successor = child.id(), "SIGHUP: starting a daemon to replace this one");
                thread::spawn(move || {
                    if let Ok(status) = child.wait() {
                        warn!("the daemon that should replace this one ended: {status}");
                    }
                });
            }
            Err(error) => {
                let program = self.program.display();
                warn!("SIGHUP: {program} can't be started, so this daemon goes on: {error}");
            }
        }
    }

    /// Whether to reload on SIGHUP. Not with a controlling terminal, where SIGHUP means that the
    /// terminal is gone; nor if the daemon was started with SIGHUP ignored, as by nohup(1).
    pub fn is_wanted(&self) -> bool {
        let is_ignored = || {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
            let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            mask.is_some_and(|mask| mask & 1 << (libc::SIGHUP - 1) != 0)
        };
        fs::File::open("/dev/tty").is_err() && !is_ignored()
    }
}
