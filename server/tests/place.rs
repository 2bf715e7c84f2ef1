//! One place, one daemon: a daemon whose directory, socket or lock file is removed or replaced, and
//! the next one at that place; and fencing tokens, which rise from one to the next.
#![cfg(target_os = "linux")]

mod support;

use std::{
    fs,
    os::unix::net::UnixListener,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use support::{Session, acquire, channel, open, within};
use syncd_proto::{
    Endpoint,
    v1::{client_message::Request, server_message::Message},
};
use tokio::process::{Child, Command};

/// Exit codes, as `--help` has them.
const ALREADY_RUNNING: i32 = 3;
const PLACE_LOST: i32 = 4;

fn endpoint(dir: &Path) -> Endpoint {
    dir.join("s.sock").to_str().unwrap().parse().unwrap()
}

fn spawn(endpoint: &Endpoint) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
    command.env_clear().args(["--socket", &endpoint.to_string(), "--log", "off"]);
    command.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

/// A daemon that listens.
async fn start(endpoint: &Endpoint) -> Child {
    let child = spawn(endpoint);
    let listens = async {
        while tokio::net::UnixStream::connect(endpoint.as_path()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(listens).await;
    child
}

async fn exit(mut child: Child) -> ExitStatus {
    within(child.wait()).await.unwrap()
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().unwrap().cast_signed(), signal) }, 0);
}

async fn session(endpoint: &Endpoint) -> Session {
    Session::open(channel(endpoint.clone()).await, open()).await.unwrap()
}

async fn token(session: &mut Session, handle: u32) -> u64 {
    match session.ask(acquire(handle)).await {
        Message::Granted(granted) => granted.token,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_directory_made_anew_makes_no_second_owner() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("syncd");
    fs::create_dir(&dir).unwrap();
    let endpoint = endpoint(&dir);
    let first = start(&endpoint).await;
    let mut holder = session(&endpoint).await;
    let handle = holder.lock("a").await;
    let held = token(&mut holder, handle).await;
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let _second = start(&endpoint).await;
    // It is answered after the first daemon has told its holder that the session is lost.
    let mut next = session(&endpoint).await;
    let told = match holder.next().await.message.unwrap() {
        Message::SessionEnd(end) => end.shutting_down,
        other => panic!("{other:?}"),
    };
    assert!(told);
    let handle = next.lock("a").await;
    assert!(token(&mut next, handle).await > held);
    assert_eq!(exit(first).await.code(), Some(PLACE_LOST));
    next.lock("still served").await;
    assert!(endpoint.as_path().exists());
}

#[tokio::test]
async fn a_daemon_that_is_stopped_keeps_its_place_though_its_directory_is_made_anew() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("syncd");
    fs::create_dir(&dir).unwrap();
    let endpoint = endpoint(&dir);
    let first = start(&endpoint).await;
    signal(&first, libc::SIGSTOP);
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    assert_eq!(exit(spawn(&endpoint)).await.code(), Some(ALREADY_RUNNING));
    signal(&first, libc::SIGCONT);
    assert_eq!(exit(first).await.code(), Some(PLACE_LOST));
    let _second = start(&endpoint).await;
    session(&endpoint).await;
}

/// At any of a daemon's first steps: it reports that its place is lost.
#[tokio::test]
async fn a_place_may_be_lost_while_its_daemon_starts() {
    for delay in (0..40).map(|step| Duration::from_micros(step * 50)) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("syncd");
        fs::create_dir(&dir).unwrap();
        let endpoint = endpoint(&dir);
        let daemon = spawn(&endpoint);
        while !dir.join("s.sock.pid").exists() {
            std::thread::yield_now();
        }
        std::thread::sleep(delay);
        fs::rename(&dir, parent.path().join("away")).unwrap();
        fs::create_dir(&dir).unwrap();
        assert_eq!(exit(daemon).await.code(), Some(PLACE_LOST), "after {delay:?}");
    }
}

#[tokio::test]
async fn a_daemon_that_takes_the_path_over_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(dir.path());
    let daemon = start(&endpoint).await;
    fs::remove_file(endpoint.as_path()).unwrap();
    let other = UnixListener::bind(endpoint.as_path()).unwrap();
    assert_eq!(exit(daemon).await.code(), Some(PLACE_LOST));
    assert!(endpoint.as_path().exists());
    drop(std::os::unix::net::UnixStream::connect(endpoint.as_path()).unwrap());
    drop(other);
}

#[tokio::test]
async fn without_its_lock_file_a_daemon_exits() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(dir.path());
    let daemon = start(&endpoint).await;
    fs::remove_file(dir.path().join("s.sock.pid")).unwrap();
    assert_eq!(exit(daemon).await.code(), Some(PLACE_LOST));
    assert!(!endpoint.as_path().exists(), "its socket was its own to the last");
}

#[tokio::test]
async fn tokens_rise_though_the_clock_was_set_back_between_two_daemons() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(dir.path());
    let file = dir.path().join("s.sock.tokens");
    // The mark of a daemon whose clock was an hour ahead of the present.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut last = now.as_micros() as u64 + 3_600_000_000;
    let sum = last.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    fs::write(&file, format!("{last:020} {sum:016x}\n")).unwrap();
    for end in [libc::SIGKILL, libc::SIGTERM, libc::SIGKILL] {
        let daemon = start(&endpoint).await;
        let mut session = session(&endpoint).await;
        let handle = session.lock("a").await;
        let token = token(&mut session, handle).await;
        assert!(token > last, "{token} after {last}");
        last = token;
        // The namespace made anew goes on above, too.
        session.ask(Request::Goodbye(Default::default())).await;
        let mut again = self::session(&endpoint).await;
        let handle = again.lock("a").await;
        let next = self::token(&mut again, handle).await;
        assert!(next > last, "{next} after {last}");
        last = next;
        // What it held would be its own with the next daemon.
        again.ask(Request::Goodbye(Default::default())).await;
        signal(&daemon, end);
        exit(daemon).await;
    }
}
