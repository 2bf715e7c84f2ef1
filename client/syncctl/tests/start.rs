//! A daemon that a client starts: it inherits nothing; when none is started; and how long the client
//! waits for it.
#![cfg(unix)]

mod support;

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use support::{code, daemon_pid, end_daemon, eventually, kill, socket, syncctl};

/// A place where a daemon is started; it ends with the test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        end_daemon(&socket(self.path()));
    }
}

fn run(socket: &Path) -> Command {
    let mut command = syncctl(socket);
    command.args(["run", "a", "--", "true"]).stdin(Stdio::null());
    command
}

fn assert_ran(output: &Output) {
    assert_eq!(code(output), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn a_started_daemon_inherits_nothing() {
    let dir = Place::new();
    let (socket, locked) = (socket(dir.path()), dir.path().join("locked"));
    // A caller with a file lock, a pipe that is read to its end, and a secret in its environment.
    let script = "exec 9>locked; flock 9; trap '' HUP; umask 0; exec \"$@\"";
    let mut caller = Command::new("bash");
    caller.args(["-c", script, "bash"]).arg(env!("CARGO_BIN_EXE_syncctl"));
    caller.arg("--socket").arg(&socket).args(["run", "a", "--", "true"]);
    caller.current_dir(dir.path()).env_remove("SYNCD_NO_AUTOSTART");
    caller.env("SECRET", "x").env("NOTIFY_SOCKET", "/nowhere").env("SYNCD_TOKEN", "7");
    caller.env("SYNCD_LINGER", "61s").stdin(Stdio::null());
    // It returns at the end of both pipes: so the daemon has inherited neither.
    assert_ran(&caller.output().unwrap());
    let pid = daemon_pid(&socket).unwrap();

    File::open(&locked).unwrap().try_lock().unwrap();
    let of = |file: &str| Path::new("/proc").join(pid.to_string()).join(file);
    assert_eq!(fs::read_link(of("cwd")).unwrap(), Path::new("/"));
    let environment = fs::read_to_string(of("environ")).unwrap();
    for absent in ["SECRET", "NOTIFY_SOCKET", "SYNCD_TOKEN"] {
        assert!(!environment.contains(absent), "{environment}");
    }
    assert!(environment.contains("SYNCD_LINGER=61s"), "{environment}");
    // The flag that bounds its log.
    let log = format!("SYNCD_LOG_FILE={}.log", socket.display());
    assert!(environment.contains(&log), "{environment}");
    assert!(fs::metadata(dir.path().join("syncd.sock.log")).unwrap().len() > 0);
    let status = fs::read_to_string(of("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(field("Umask:"), "0077");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    // SIGPIPE, as every Rust program. Beyond 31 are two of libc's own.
    let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0x1000, "{ignored:x}");
    // SAFETY: plain system calls.
    unsafe {
        let (pid, own) = (pid as libc::pid_t, libc::getsid(0));
        assert_ne!(libc::getsid(pid), own);
        assert_ne!(libc::getsid(pid), pid, "no terminal can become its own");
    }
}

#[test]
fn a_daemon_is_started_with_sigchld_ignored() {
    let dir = Place::new();
    let socket = socket(dir.path());
    let mut command = run(&socket);
    // SAFETY: a plain system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        });
    }
    assert_ran(&command.output().unwrap());
}

#[test]
fn a_daemon_that_is_exiting_is_waited_for() {
    let dir = Place::new();
    let socket = socket(dir.path());
    let leaving = File::create(dir.path().join("syncd.sock.pid")).unwrap();
    leaving.lock().unwrap();
    let command = run(&socket).stderr(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_millis(1500));
    leaving.unlock().unwrap();
    assert_ran(&command.wait_with_output().unwrap());
}

/// As in a serverless function that is frozen and thawed: the daemon's idle time expires just as a
/// client connects.
#[test]
fn an_idle_daemon_frozen_past_its_time_fails_no_client() {
    for _ in 0..5 {
        let dir = Place::new();
        let socket = socket(dir.path());
        let mut daemon = syncctl(&socket);
        daemon.args(["daemon", "--log", "error", "--idle-exit", "200ms"]).stdin(Stdio::null());
        let mut daemon = daemon.spawn().unwrap();
        eventually("it listens", || UnixStream::connect(&socket).is_ok());
        kill(daemon.id(), libc::SIGSTOP);
        sleep(Duration::from_millis(300));
        let command = run(&socket).stderr(Stdio::piped()).spawn().unwrap();
        sleep(Duration::from_millis(100));
        kill(daemon.id(), libc::SIGCONT);
        assert_ran(&command.wait_with_output().unwrap());
        end_daemon(&socket);
        daemon.wait().unwrap();
    }
}

#[test]
fn a_held_start_lock_blocks_no_client() {
    let dir = Place::new();
    let socket = socket(dir.path());
    let kept = File::create(dir.path().join("syncd.sock.start")).unwrap();
    kept.lock().unwrap();
    assert_ran(&run(&socket).output().unwrap());
}

#[test]
fn waiting_for_a_daemon_to_start_can_be_interrupted() {
    let dir = Place::new();
    let daemon = dir.path().join("daemon");
    fs::write(&daemon, "#!/bin/sh\necho $$ > \"${0%/*}/started\"\nexec sleep 60\n").unwrap();
    fs::set_permissions(&daemon, Permissions::from_mode(0o755)).unwrap();
    let mut command = run(&socket(dir.path()));
    let mut child = command.env("SYNCD_DAEMON", &daemon).spawn().unwrap();
    let started = dir.path().join("started");
    let pid = || fs::read_to_string(&started).ok()?.trim().parse::<u32>().ok();
    eventually("it was started", || pid().is_some());
    kill(child.id(), libc::SIGINT);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
    kill(pid().unwrap(), libc::SIGKILL);
}

#[test]
fn a_failed_start_is_reported_with_its_reason() {
    let dir = Place::new();
    fs::create_dir(dir.path().join("syncd.sock.pid")).unwrap();
    let failed = run(&socket(dir.path())).output().unwrap();
    let text = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(code(&failed), Some(69), "{text}");
    assert!(text.contains("exited at once") && text.contains("lock file"), "{text}");
}

#[test]
fn no_daemon_is_started_in_the_place_of_the_machines() {
    let dir = Place::new();
    let socket = socket(dir.path());
    drop(UnixListener::bind(&socket).unwrap());
    fs::set_permissions(&socket, Permissions::from_mode(0o660)).unwrap();
    let refused = run(&socket).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(code(&refused), Some(69), "{text}");
    assert!(text.contains("other users"), "{text}");
    assert!(!dir.path().join("syncd.sock.pid").exists());
}

#[test]
fn root_starts_no_daemon_in_the_place_of_a_service() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 || !Path::new("/run").is_dir() {
        return;
    }
    let dir = format!("/run/syncd-test-{}", std::process::id());
    let refused = run(&Path::new(&dir).join("syncd.sock")).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(code(&refused), Some(69), "{text}");
    assert!(text.contains("start that service"), "{text}");
    assert!(!Path::new(&dir).exists());
}
