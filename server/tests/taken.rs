//! A journal that somebody takes away from a daemon that lives: it knows all that was in it, and
//! writes it anew, so that the next daemon finds it.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;
mod support;

use std::{fs, path::Path, time::Duration};

use program::Daemon;
use support::{Session, acquire, within};
use syncd_proto::v1::{self, ErrorCode, client_message::Request, server_message::Message};

async fn token(session: &mut Session, handle: u32) -> u64 {
    match session.ask(acquire(handle)).await {
        Message::Granted(granted) => granted.token,
        other => panic!("{other:?}"),
    }
}

/// Whether somebody holds it.
async fn is_held(session: &mut Session, handle: u32) -> bool {
    let request = v1::Acquire { handle, owner: 1, timeout_us: Some(0), ..Default::default() };
    match session.ask(Request::Acquire(request)).await {
        Message::Granted(_) => false,
        Message::Error(error) if error.code() == ErrorCode::TimedOut => true,
        other => panic!("{other:?}"),
    }
}

async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// A held lock outlives the daemon, whatever `take` does to its journal before.
async fn is_written_anew_after(take: impl FnOnce(&Path)) {
    let mut daemon = Daemon::start(&[]).await;
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    let held = token(&mut holder, handle).await;
    take(&daemon.journal());
    until(|| daemon.log().contains("written anew")).await;
    assert!(files(&daemon.journal()) >= 2, "both files of the namespace");
    daemon.kill_and_run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await, "{}", daemon.log());
    let mut holder = daemon.resume(&holder, 2).await.unwrap();
    let second = holder.lock("b").await;
    assert!(token(&mut holder, second).await > held);
}

// Rule R67
#[tokio::test]
async fn a_journal_whose_directory_is_removed_is_written_anew() {
    is_written_anew_after(|journal| fs::remove_dir_all(journal).unwrap()).await;
}

#[tokio::test]
async fn a_journal_that_is_moved_away_is_written_anew() {
    is_written_anew_after(|journal| {
        fs::rename(journal, journal.with_file_name("elsewhere")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_file_of_a_journal_that_is_removed_is_written_anew() {
    is_written_anew_after(|journal| {
        let file = fs::read_dir(journal).unwrap().next().unwrap().unwrap();
        fs::remove_file(file.path()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_anew_grants_nothing_more() {
    let mut daemon = Daemon::start(&[]).await;
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    let held = token(&mut holder, handle).await;
    fs::rename(daemon.journal(), daemon.dir.path().join("elsewhere")).unwrap();
    // No directory can be made where there is a file.
    fs::write(daemon.journal(), "").unwrap();
    until(|| daemon.log().contains("can't be written anew")).await;
    match holder.ask(acquire(handle)).await {
        Message::Error(error) => assert_eq!(error.code(), ErrorCode::Quota, "{error:?}"),
        other => panic!("{other:?}"),
    }
    let release = v1::Release { handle, owner: 1, token: held, quiet: false };
    assert!(matches!(holder.ask(Request::Release(release)).await, Message::Done(_)));
    fs::remove_file(daemon.journal()).unwrap();
    until(|| files(&daemon.journal()) >= 2).await;
    let next = token(&mut holder, handle).await;
    daemon.kill_and_run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await, "{next}: {}", daemon.log());
}
