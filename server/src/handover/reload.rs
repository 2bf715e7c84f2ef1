//! A daemon that is told to reload (SIGHUP) starts the program that it was started as, which by
//! now may be another version, to take its place.

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

/// Tells the program that is started whose place it is to take.
const PREDECESSOR: &str = "SYNCD_PREDECESSOR";

/// How the program was started.
#[derive(Debug)]
pub(crate) struct Reload {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Reload {
    /// How this program was started, and the place that it was started to take. To be asked at the
    /// start: before the program's file is another one's, and while there is one thread.
    pub fn prepare() -> (Self, Option<Endpoint>) {
        let mut args = env::args_os();
        let named = args.next().map(PathBuf::from).unwrap_or_default();
        // A link that is followed leads to the old version, or out of a virtual environment.
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

    /// Starts it. If it doesn't come to serve, this daemon goes on.
    pub fn start(&self, endpoint: &Endpoint) {
        if std::process::id() == 1 {
            // Its end would be that of all others, too.
            return warn!("SIGHUP: process 1 can't be replaced: restart its container");
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).env(PREDECESSOR, endpoint.as_path());
        command.env_remove("SYNCD_AUTO_STARTED").stdin(Stdio::null()).stdout(Stdio::null());
        match command.spawn() {
            Ok(mut child) => {
                info!(successor = child.id(), "SIGHUP: starting a daemon to take this one's place");
                thread::spawn(move || {
                    if let Ok(status) = child.wait() {
                        warn!("the daemon that was to take this one's place ended: {status}");
                    }
                });
            }
            Err(error) => {
                let program = self.program.display();
                warn!("SIGHUP: {program} can't be started, so this daemon goes on: {error}");
            }
        }
    }

    /// Whether SIGHUP is to be waited for. Not by a daemon in somebody's terminal: it says there
    /// that the terminal is gone. Nor where whoever started it had it ignored (nohup).
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
