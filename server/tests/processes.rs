//! A client's locks when its process ends, stops or forks. Each client is a process of its own: this
//! test binary, run again.
#![cfg(target_os = "linux")]

mod support;

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use support::{Daemon, Holder, SOCKET, Session, acquire};
use syncd_proto::v1::{self, Cause, ErrorCode, client_message::Request, server_message::Message};

/// The environment variable that says what else the client does.
const FORK: &str = "SYNCD_TEST_FORK";
const RELEASE: &str = "SYNCD_TEST_RELEASE";

/// Not a test, but the tests' client. It ends with its standard input, and so does a child that it
/// has forked.
#[tokio::test]
async fn the_client() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut session =
        Session::open(support::channel(socket.parse().unwrap()).await, support::open())
            .await
            .unwrap();
    let handle = session.lock("a").await;
    session.ask(acquire(handle)).await;
    let wait = || drop(std::io::stdin().read_to_end(&mut Vec::new()));
    if std::env::var_os(FORK).is_some() {
        // SAFETY: the child only reads and exits.
        unsafe {
            if libc::fork() == 0 {
                wait();
                libc::_exit(0);
            }
        }
    }
    if std::env::var_os(RELEASE).is_some() {
        let release = v1::Release { handle, owner: 1, token: 0, quiet: true };
        session.send(Request::Release(release)).await;
        // Until it is written; not until it is read.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        // SAFETY: it only exits, with the connection as it is.
        unsafe { libc::_exit(0) };
    }
    println!("holding");
    wait();
}

async fn waiter(daemon: &Daemon) -> (Session, u32) {
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    session.send(acquire(handle)).await;
    // Its reply proves that the Acquire waits.
    session.ask(Request::Query(v1::Query { handle })).await;
    (session, handle)
}

async fn is_told_of(mut waiter: Session, pid: u32) {
    let Message::Granted(granted) = waiter.next().await.message.unwrap() else { panic!() };
    let abandoned = granted.abandoned.unwrap();
    assert_eq!(abandoned.cause(), Cause::Died);
    assert_eq!(abandoned.process.unwrap().pid, pid);
}

#[tokio::test]
async fn a_killed_holders_lock_is_released() {
    let daemon = Daemon::start();
    let mut holder = Holder::start(&daemon.endpoint, None).await;
    let (waiter, _) = waiter(&daemon).await;
    holder.0.kill().unwrap();
    is_told_of(waiter, holder.pid()).await;
}

#[tokio::test]
async fn a_forked_child_with_the_socket_open_keeps_nothing_for_its_dead_parent() {
    let daemon = Daemon::start();
    let mut holder = Holder::start(&daemon.endpoint, Some(FORK)).await;
    let (waiter, _) = waiter(&daemon).await;
    // The child's copy of the pipe keeps this end's reader waiting: so the child lives.
    let stdin = holder.0.stdin.take();
    holder.0.kill().unwrap();
    is_told_of(waiter, holder.pid()).await;
    drop(stdin);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_sent_before_a_process_exited_count() {
    let daemon = Daemon::start();
    let mut forked = Vec::new();
    for turn in 0..20 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_client"]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.env(SOCKET, daemon.endpoint.to_string()).env(RELEASE, "1");
        if turn % 2 == 1 {
            command.env(FORK, "1");
        }
        let mut client = command.spawn().unwrap();
        forked.push(client.stdin.take());
        let exited = tokio::task::spawn_blocking(move || client.wait());
        assert!(support::within(exited).await.unwrap().unwrap().success());
    }
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    assert!(matches!(session.ask(acquire(handle)).await, Message::Granted(_)));
    let status = daemon.inspect().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let counters = status.counters.unwrap();
    assert_eq!((counters.grants, counters.releases, counters.abandoned), (21, 20, 0));
}

#[tokio::test]
async fn a_stopped_holder_keeps_its_lock_whatever_the_grace() {
    let grace = Duration::from_millis(500);
    let daemon = Daemon::with(|config| config.grace = grace);
    let holder = Holder::start(&daemon.endpoint, None).await;
    holder.signal(libc::SIGSTOP);
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    let timeout_us = Some(2 * grace.as_micros() as u64);
    let tried = v1::Acquire { handle, owner: 1, timeout_us, ..Default::default() };
    let Message::Error(refused) = session.ask(Request::Acquire(tried)).await else {
        panic!("taken from a holder that lives")
    };
    assert_eq!(refused.code(), ErrorCode::TimedOut);
    assert_eq!(refused.holders[0].process.as_ref().unwrap().pid, holder.pid());
    // Killed while it is stopped, it loses the lock at once.
    let (waiter, _) = waiter(&daemon).await;
    holder.signal(libc::SIGKILL);
    is_told_of(waiter, holder.pid()).await;
}

#[tokio::test]
async fn a_process_that_dies_is_told_from_one_that_left_however_short_the_grace() {
    let daemon = Daemon::with(|config| config.grace = Duration::ZERO);
    for _ in 0..20 {
        let mut holder = Holder::start(&daemon.endpoint, None).await;
        let (waiter, _) = waiter(&daemon).await;
        holder.0.kill().unwrap();
        is_told_of(waiter, holder.pid()).await;
    }
}

#[tokio::test]
async fn a_process_that_dies_in_its_grace_loses_its_lock_at_once() {
    let daemon = Daemon::with(|config| config.grace = Duration::from_secs(3600));
    let mut holder = Holder::start(&daemon.endpoint, None).await;
    let (waiter, _) = waiter(&daemon).await;
    // At the end of its standard input it closes its connection and exits.
    drop(holder.0.stdin.take());
    is_told_of(waiter, holder.pid()).await;
}
