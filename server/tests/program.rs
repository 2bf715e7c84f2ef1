//! The binary: exit codes, one instance, signals, socket activation, readiness.
#![cfg(unix)]

mod support;

use std::{
    os::{
        fd::AsRawFd as _,
        unix::{
            net::{UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use support::Session;
use syncd_proto::v1;

fn syncd(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
    command.env_clear().env("SYNCD_SOCKET", socket(dir)).stderr(Stdio::piped());
    command
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("s.sock")
}

/// A daemon that ends with the test, even if that fails.
struct Running(Option<Child>);

impl Running {
    /// Starts it, and waits for READY=1.
    fn start(mut command: Command, dir: &Path) -> Self {
        let ready = UnixDatagram::bind(dir.join("notify")).unwrap();
        ready.set_read_timeout(Some(support::WATCHDOG)).unwrap();
        command.env("NOTIFY_SOCKET", dir.join("notify"));
        let running = Self(Some(command.spawn().unwrap()));
        let mut message = [0; 64];
        let length = ready.recv(&mut message).expect("it says that it is ready");
        assert_eq!(message[..length].trim_ascii(), b"READY=1");
        running
    }

    fn stop(mut self, signal: libc::c_int) -> Output {
        let child = self.0.take().unwrap();
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
        child.wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_signal_to_stop_is_a_success_and_leaves_no_socket() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(syncd(dir.path()), dir.path());
        assert!(socket(dir.path()).exists());
        assert_eq!(running.stop(signal).status.code(), Some(0));
        assert!(!socket(dir.path()).exists());
    }
}

#[test]
fn a_switch_in_the_environment_is_on_or_off_in_any_usual_word() {
    for (word, is_off) in [("1", true), ("yes", true), ("true", true), ("0", false), ("no", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut command = syncd(dir.path());
        command.env("SYNCD_NO_JOURNAL", word);
        let running = Running::start(command, dir.path());
        assert_eq!(!dir.path().join("s.sock.journal").exists(), is_off, "{word}");
        running.stop(libc::SIGTERM);
    }
    let dir = tempfile::tempdir().unwrap();
    let refused = syncd(dir.path()).env("SYNCD_NO_JOURNAL", "perhaps").output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("perhaps"));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let dir = tempfile::tempdir().unwrap();
    let help = syncd(dir.path()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let variables: Vec<&str> =
        help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
    assert!(variables.contains(&"SYNCD_GRACE") && variables.len() > 20, "{variables:?}");
    let mut command = syncd(dir.path());
    for variable in variables.iter().filter(|&&variable| variable != "SYNCD_SOCKET") {
        command.env(variable, "");
    }
    Running::start(command, dir.path()).stop(libc::SIGTERM);
}

#[test]
fn a_second_daemon_names_the_first_and_exits() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(syncd(dir.path()), dir.path());
    let pid = first.0.as_ref().unwrap().id();
    let second = syncd(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(3));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("already running at {}", socket(dir.path()).display())));
    assert!(said.contains(&format!("pid {pid}")), "{said}");
}

#[test]
fn a_killed_daemons_socket_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    Running::start(syncd(dir.path()), dir.path()).stop(libc::SIGKILL);
    assert!(socket(dir.path()).exists());
    std::fs::remove_file(dir.path().join("notify")).unwrap();
    Running::start(syncd(dir.path()), dir.path());
}

#[test]
fn where_no_file_can_be_written_the_daemon_serves_and_logs_that() {
    let dir = tempfile::tempdir().unwrap();
    // Each write to a file fails, as on a full disk.
    let mut command = Command::new("/bin/sh");
    command.env_clear().env("SYNCD_SOCKET", socket(dir.path())).stderr(Stdio::piped());
    command.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\"", env!("CARGO_BIN_EXE_syncd")]);
    let running = Running::start(command, dir.path());
    let second = syncd(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(3), "it has the lock");
    let output = running.stop(libc::SIGTERM);
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("can't be written to the lock file"), "{log}");
}

#[tokio::test]
async fn with_few_descriptors_new_clients_wait_and_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/sh");
    command.env_clear().env("SYNCD_SOCKET", socket(dir.path())).stderr(Stdio::piped());
    // Some twenty are its own, and each connection takes one, or two if its process is new.
    command.args(["-c", "ulimit -n 32; exec \"$0\"", env!("CARGO_BIN_EXE_syncd")]);
    let running = Running::start(command, dir.path());
    // Makes its namespace with all its files beforehand.
    let endpoint = socket(dir.path()).to_str().unwrap().parse().unwrap();
    let mut first = Session::open(support::channel(endpoint).await, support::open()).await.unwrap();
    first.lock("a").await;
    let mut clients = tokio::task::JoinSet::new();
    // Separate processes, since each process is watched once.
    for _ in 0..12 {
        let mut client = Command::new(std::env::current_exe().unwrap());
        client.args(["--exact", "one_of_many", "--nocapture"]).env(ONE_OF_MANY, socket(dir.path()));
        clients.spawn_blocking(move || client.output().unwrap());
    }
    while let Some(client) = support::within(clients.join_next()).await {
        let client = client.unwrap();
        let said = String::from_utf8_lossy(&client.stderr);
        assert!(client.status.success(), "{said}");
    }
    assert_eq!(running.stop(libc::SIGTERM).status.code(), Some(0));
}

const ONE_OF_MANY: &str = "SYNCD_TEST_ONE_OF_MANY";

/// Not a test, but a test's client.
#[tokio::test]
async fn one_of_many() {
    let Ok(socket) = std::env::var(ONE_OF_MANY) else { return };
    let channel = support::channel(socket.parse().unwrap()).await;
    let mut session = Session::open(channel, support::open()).await.unwrap();
    let handle = session.lock("a").await;
    let held = session.ask(support::acquire(handle)).await;
    assert!(matches!(held, v1::server_message::Message::Granted(_)), "{held:?}");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

#[test]
fn wrong_flags_and_a_failed_start_have_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [["--grace", "soon"], ["--log", "a=b=c"], ["--workers", "0"]] {
        let output = syncd(dir.path()).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty());
    }
    std::fs::write(socket(dir.path()), "no socket").unwrap();
    assert_eq!(syncd(dir.path()).output().unwrap().status.code(), Some(1));
}

#[test]
fn the_log_can_be_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = syncd(dir.path());
    command.args(["--log-format", "json"]);
    let log = Running::start(command, dir.path()).stop(libc::SIGTERM).stderr;
    let log = String::from_utf8(log).unwrap();
    assert!(!log.is_empty() && log.lines().all(|line| line.starts_with('{')), "{log}");
}

#[test]
fn the_help_has_examples_and_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let help = syncd(dir.path()).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    for word in ["Examples:", "Exit codes:", "SYNCD_SOCKET", "--idle-exit"] {
        assert!(help.contains(word), "{word}");
    }
}

#[tokio::test]
async fn a_socket_that_the_service_manager_passes_is_served_and_left_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(socket(dir.path())).unwrap();
    let fd = listener.as_raw_fd();
    // A shell knows its PID before it becomes the daemon.
    let mut command = Command::new("/bin/sh");
    command.env_clear().env("SYNCD_SOCKET", "/elsewhere/s.sock").stderr(Stdio::piped());
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\"", env!("CARGO_BIN_EXE_syncd")]);
    // SAFETY: nothing that allocates or locks is called.
    unsafe {
        command.pre_exec(move || {
            let passed = if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(fd, 3) };
            if passed < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let running = Running::start(command, dir.path());
    let endpoint = socket(dir.path()).to_str().unwrap().parse().unwrap();
    let mut session =
        Session::open(support::channel(endpoint).await, support::open()).await.unwrap();
    session.lock("a").await;
    drop(session);
    assert_eq!(running.stop(libc::SIGTERM).status.code(), Some(0));
    assert!(socket(dir.path()).exists(), "it is the service manager's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_several_threads_a_daemon_exits_once_its_clients_were_told() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let mut command = syncd(dir.path());
        command.args(["--workers", "4", "--log", "warn"]);
        let running = Running::start(command, dir.path());
        let endpoint: syncd_proto::Endpoint = socket(dir.path()).to_str().unwrap().parse().unwrap();
        let mut sessions = Vec::new();
        for _ in 0..8 {
            let channel = support::channel(endpoint.clone()).await;
            for _ in 0..4 {
                let opened = Session::open(channel.clone(), support::open()).await;
                sessions.push(opened.unwrap());
            }
        }
        let left = tokio::task::spawn_blocking(|| running.stop(libc::SIGTERM));
        for session in &mut sessions {
            let told = session.next().await.message.unwrap();
            let v1::server_message::Message::SessionEnd(end) = told else { panic!("{told:?}") };
            assert!(end.shutting_down);
        }
        let output = support::within(left).await.unwrap();
        assert_eq!(output.status.code(), Some(0));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!log.contains("did not end: exiting"), "{log}");
    }
}
