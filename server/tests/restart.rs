//! A killed daemon and the next one: acknowledged state is kept, living processes keep what they hold,
//! and what dead ones held is granted to the next owner. The daemon is the real program; its clients
//! are this process and, where one must die, this test binary run again.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;
#[path = "restart/record.rs"]
mod record;
mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use program::Daemon;
use support::{
    Holder, SOCKET, Session, acquire, channel, granted, is_held, open, release, until, within,
};
use syncd_proto::v1::{
    self, Cause, ErrorCode, client_message::Request, inspect_client::InspectClient,
    server_message::Message,
};

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

// Rule R67
#[tokio::test]
async fn who_lives_keeps_what_it_holds_and_its_place_and_a_waiter_is_granted() {
    let mut daemon = Daemon::start(&["--grace", "100ms"]).await;
    let (mut holder, mut waiter) = (daemon.session().await, daemon.session().await);
    let (held, wanted) = (holder.lock("a").await, waiter.lock("a").await);
    let grant = granted(&mut holder, acquire(held)).await;
    let wait = waiter.send(acquire(wanted)).await;
    // It has been read when a later request is answered.
    waiter.lock("b").await;
    for _ in 0..3 {
        daemon.kill_and_run().await;
        // Longer than the grace: no time-out takes what a living process holds.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut third = daemon.session().await;
    let theirs = third.lock("a").await;
    let try_it =
        v1::Acquire { handle: theirs, owner: 1, timeout_us: Some(0), ..Default::default() };
    match third.ask(Request::Acquire(try_it)).await {
        Message::Error(error) => assert_eq!(error.code(), ErrorCode::TimedOut),
        other => panic!("granted twice: {other:?}"),
    }
    let mut holder = daemon.resume(&holder, 2).await.unwrap();
    let mut waiter = daemon.resume(&waiter, 2).await.unwrap();
    release(&mut holder, held, grant.token).await;
    let told = waiter.next().await;
    assert_eq!(told.id, wait);
    match told.message.unwrap() {
        Message::Granted(next) => {
            assert!(next.token > grant.token && next.abandoned.is_none());
        }
        other => panic!("{other:?}"),
    }
}

// Rule R67: also a grant that wasn't read.
#[tokio::test]
async fn what_was_decided_and_not_read_is_told_after_a_restart() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    let grant = granted(&mut session, acquire(handle)).await;
    daemon.kill_and_run().await;
    let mut again = daemon.resume(&session, 1).await.unwrap();
    assert_eq!(again.opened.last_id, 3);
    match again.next().await.message.unwrap() {
        Message::Granted(told) => assert_eq!(told.token, grant.token),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_time_that_the_daemon_was_away_counts() {
    let mut daemon = Daemon::start(&[]).await;
    let (mut holder, mut waiter) = (daemon.session().await, daemon.session().await);
    let (held, wanted) = (holder.lock("a").await, waiter.lock("a").await);
    granted(&mut holder, acquire(held)).await;
    let timeout = Duration::from_millis(1500);
    let begun = Instant::now();
    let timeout_us = Some(timeout.as_micros() as u64);
    let patient = v1::Acquire { handle: wanted, owner: 1, timeout_us, ..Default::default() };
    let id = waiter.send(Request::Acquire(patient)).await;
    waiter.lock("b").await;
    daemon.end(libc::SIGKILL);
    tokio::time::sleep(timeout).await;
    daemon.run().await;
    let mut waiter = daemon.resume(&waiter, 2).await.unwrap();
    let told = waiter.next().await;
    assert_eq!(told.id, id);
    match told.message.unwrap() {
        Message::Error(error) => assert_eq!(error.code(), ErrorCode::TimedOut),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= timeout);
}

#[tokio::test]
async fn what_a_process_held_that_died_meanwhile_is_abandoned_and_told_once() {
    let mut daemon = Daemon::start(&[]).await;
    let mut holder = Holder::start(&daemon.endpoint(), None).await;
    let pid = holder.pid();
    let mut waiter = daemon.session().await;
    let handle = waiter.lock("a").await;
    let wait = waiter.send(acquire(handle)).await;
    waiter.lock("b").await;
    daemon.end(libc::SIGKILL);
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    daemon.run().await;
    let mut waiter = daemon.resume(&waiter, 2).await.unwrap();
    let told = waiter.next().await;
    assert_eq!(told.id, wait);
    let Message::Granted(grant) = told.message.unwrap() else { panic!("not granted") };
    let abandoned = grant.abandoned.expect("it is told");
    assert_eq!(abandoned.process.as_ref().map(|process| process.pid), Some(pid));
    assert_eq!(abandoned.cause(), Cause::Died);
    release(&mut waiter, handle, grant.token).await;
    let again = granted(&mut waiter, acquire(handle)).await;
    assert!(again.abandoned.is_none());
}

#[tokio::test]
async fn a_daemon_that_was_told_to_leave_leaves_all_to_the_next_one() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    assert!(session.opened.outlives_daemon);
    let handle = session.lock("a").await;
    let grant = granted(&mut session, acquire(handle)).await;
    daemon.end(libc::SIGTERM);
    let told = session.next().await;
    assert_eq!(told.seq, 0);
    match told.message.unwrap() {
        Message::SessionEnd(end) => assert!(end.shutting_down),
        other => panic!("{other:?}"),
    }
    // With other flags.
    daemon.flags = vec!["--grace".into(), "3s".into(), "--max-objects".into(), "7".into()];
    daemon.run().await;
    daemon.kill_and_run().await;
    let mut again = daemon.resume(&session, 2).await.unwrap();
    release(&mut again, handle, grant.token).await;
}

#[tokio::test]
async fn without_a_journal_nothing_is_kept_and_the_client_knows() {
    let mut daemon = Daemon::start(&["--no-journal"]).await;
    let mut session = daemon.session().await;
    assert!(!session.opened.outlives_daemon);
    session.lock("a").await;
    assert!(!daemon.journal().exists());
    daemon.kill_and_run().await;
    let refused = daemon.resume(&session, 1).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_namespace_that_is_over_leaves_no_file() {
    let daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    session.lock("a").await;
    assert_eq!(files(&daemon.journal()).len(), 2);
    session.ask(Request::Goodbye(v1::Goodbye {})).await;
    within(async {
        while !files(&daemon.journal()).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Many snapshots, killed again and again: the state goes on through all of them.
#[tokio::test]
async fn many_snapshots_lose_nothing() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    let (mut received, mut token) = (1, 0);
    for _ in 0..5 {
        for _ in 0..1500 {
            let grant = granted(&mut session, acquire(handle)).await;
            assert!(grant.token > token);
            token = grant.token;
            release(&mut session, handle, token).await;
            received += 2;
        }
        daemon.kill_and_run().await;
        session = daemon.resume(&session, received).await.unwrap();
    }
}

// Rule R68
#[tokio::test]
async fn a_journal_that_somebody_changed_grants_nothing_that_may_be_held() {
    let mut daemon = Daemon::start(&[]).await;
    let holder = Holder::start(&daemon.endpoint(), None).await;
    let mut session = daemon.session().await;
    let handle = session.lock("kept-back").await;
    granted(&mut session, acquire(handle)).await;
    daemon.end(libc::SIGKILL);
    let name = b"kept-back";
    let changed = files(&daemon.journal()).into_iter().find_map(|file| {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.windows(name.len()).position(|text| text == name)?;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        Some(file)
    });
    let changed = changed.expect("the name is in a record");
    daemon.run().await;
    let refused = Session::open(channel(daemon.endpoint()).await, open()).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::Quota, "{refused:?}");
    for told in [&refused.text, &daemon.log()] {
        assert!(told.contains(changed.to_str().unwrap()) && told.contains("record 5"), "{told}");
    }
    // Another user's namespace, or another of one's own, is served.
    let other = v1::Open { namespace: "other".into(), ..open() };
    Session::open(channel(daemon.endpoint()).await, other).await.unwrap();
    let lost = daemon.resume(&session, 2).await.err().unwrap();
    assert_eq!(lost.code(), ErrorCode::NotFound);
    // As a person would who knows that nothing is held any more.
    drop(holder);
    for file in
        files(&daemon.journal()).iter().filter(|file| file.file_stem() == changed.file_stem())
    {
        fs::remove_file(file).unwrap();
    }
    let mut next = daemon.session().await;
    let handle = next.lock("a").await;
    let grant = granted(&mut next, acquire(handle)).await;
    // The state before the damage was proved.
    assert!(grant.abandoned.is_some());
}

/// The environment variable of a client's process that makes it acquire a lock of its own.
const OWN: &str = "SYNCD_TEST_OWN";
/// The one that makes it become another program once it has read a line.
const EXEC: &str = "SYNCD_TEST_EXEC";

/// The name of a process's own lock.
fn own(pid: u32) -> String {
    format!("of {pid}")
}

/// There are half as many descriptors as processes that must be watched.
#[tokio::test]
async fn with_few_descriptors_all_is_restored_and_each_death_noticed() {
    let mut daemon = Daemon::start(&[]).await;
    let mut holders = Vec::new();
    for _ in 0..64 {
        holders.push(Holder::start(&daemon.endpoint(), Some(OWN)).await);
    }
    daemon.end(libc::SIGKILL);
    let mut command = daemon.command();
    // SAFETY: a plain system call, of the child alone.
    unsafe {
        command.pre_exec(|| {
            let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    daemon.child = Some(command.spawn().unwrap());
    daemon.listens().await;
    daemon.logs("too few descriptors", 1).await;
    let mut session = daemon.session().await;
    for mut holder in holders {
        let handle = session.lock(&own(holder.pid())).await;
        assert!(is_held(&mut session, handle).await, "{}", daemon.log());
        let wait = session.send(acquire(handle)).await;
        holder.0.kill().unwrap();
        // Not reaped: it is a zombie.
        let told = session.next().await;
        assert_eq!(told.id, wait);
        let Message::Granted(grant) = told.message.unwrap() else { panic!("not granted") };
        assert_eq!(grant.abandoned.expect("it is told").cause(), Cause::Died);
    }
}

/// A process that has become another program (exec) can't be told from the one before. Its session is
/// never resumed, and what it holds must be released by force.
#[tokio::test]
async fn what_nobody_comes_back_for_is_taken_by_force() {
    let mut daemon = Daemon::start(&["--grace", "100ms"]).await;
    let mut holder = Holder::start(&daemon.endpoint(), Some(EXEC)).await;
    let pid = holder.pid();
    daemon.end(libc::SIGKILL);
    holder.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    until(|| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n").await;
    daemon.run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await);
    let wait = other.send(acquire(handle)).await;
    let mut inspect = InspectClient::new(channel(daemon.endpoint()).await);
    let force = v1::ForceReleaseRequest { object: "a".into(), ..Default::default() };
    let taken = inspect.force_release(force).await.unwrap().into_inner().released;
    let pids = taken.iter().map(|holder| holder.process.as_ref().unwrap().pid);
    assert_eq!(pids.collect::<Vec<_>>(), [pid]);
    let told = other.next().await;
    assert_eq!(told.id, wait);
    let Message::Granted(grant) = told.message.unwrap() else { panic!("not granted") };
    assert_eq!(grant.abandoned.expect("it is told").cause(), Cause::Forced);
}

/// Not a test, but a client's process.
#[tokio::test]
async fn the_client() {
    let Ok(endpoint) = std::env::var(SOCKET) else { return };
    let mut session =
        Session::open(channel(endpoint.parse().unwrap()).await, open()).await.unwrap();
    let is_own = std::env::var_os(OWN).is_some();
    let name = if is_own { own(std::process::id()) } else { "a".into() };
    let handle = session.lock(&name).await;
    granted(&mut session, acquire(handle)).await;
    println!("holding");
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    if std::env::var_os(EXEC).is_some() {
        panic!("{}", std::process::Command::new("sleep").arg("600").exec());
    }
}
