//! A running daemon's journal is removed, moved or truncated: the daemon writes it anew, so that the
//! next one finds it.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;
mod support;

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    time::Duration,
};

use program::Daemon;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use support::{Session, acquire, granted, is_held, open, release, until, within};
use syncd_proto::v1::{ErrorCode, server_message::Message};

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Asserts that a hold outlives the daemon after `take` has changed its journal.
async fn is_written_anew_after(take: impl FnOnce(&Path)) {
    let mut daemon = Daemon::start(&[]).await;
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    let held = granted(&mut holder, acquire(handle)).await.token;
    take(&daemon.journal());
    until(|| daemon.log().contains("written anew")).await;
    assert!(files(&daemon.journal()) >= 2, "both files of the namespace");
    daemon.kill_and_run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await, "{}", daemon.log());
    let mut holder = daemon.resume(&holder, 2).await.unwrap();
    let second = holder.lock("b").await;
    assert!(granted(&mut holder, acquire(second)).await.token > held);
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
    let held = granted(&mut holder, acquire(handle)).await.token;
    fs::rename(daemon.journal(), daemon.dir.path().join("elsewhere")).unwrap();
    // No directory can be made where there is a file.
    fs::write(daemon.journal(), "").unwrap();
    until(|| daemon.log().contains("can't be written anew")).await;
    match holder.ask(acquire(handle)).await {
        Message::Error(error) => assert_eq!(error.code(), ErrorCode::Quota, "{error:?}"),
        other => panic!("{other:?}"),
    }
    release(&mut holder, handle, held).await;
    fs::remove_file(daemon.journal()).unwrap();
    until(|| files(&daemon.journal()) >= 2).await;
    let next = granted(&mut holder, acquire(handle)).await.token;
    daemon.kill_and_run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await, "{next}: {}", daemon.log());
}

/// Two daemons in one directory would each take the other's files for its own.
#[tokio::test]
async fn a_directory_that_becomes_another_daemons_is_left_alone() {
    let daemon = Daemon::start(&[]).await;
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    let held = granted(&mut holder, acquire(handle)).await.token;
    let theirs = daemon.dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
    let owner = File::open(&theirs).unwrap();
    flock(&owner, FlockOperation::LockExclusive).unwrap();
    renameat_with(CWD, &theirs, CWD, daemon.journal(), RenameFlags::EXCHANGE).unwrap();
    until(|| daemon.log().contains("can't be written anew")).await;
    until(|| daemon.log().contains("another daemon keeps its state there")).await;
    release(&mut holder, handle, held).await;
    assert_eq!(files(&daemon.journal()), 0);
    // Once that daemon has ended.
    drop(owner);
    until(|| files(&daemon.journal()) >= 2).await;
    granted(&mut holder, acquire(handle)).await;
}

fn cut(journal: &Path) {
    for file in fs::read_dir(journal).unwrap() {
        File::options().write(true).open(file.unwrap().path()).unwrap().set_len(0).unwrap();
    }
}

#[tokio::test]
async fn a_journal_whose_files_are_cut_is_written_anew() {
    is_written_anew_after(cut).await;
}

/// The mapping has no page any more: a store there is a SIGBUS, unless the daemon notices first.
#[tokio::test]
async fn a_daemon_that_writes_where_a_file_was_cut_ends_and_says_why() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    let status = within(async {
        loop {
            cut(&daemon.journal());
            session.send(acquire(handle)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(status) = daemon.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
        }
    })
    .await;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    assert!(daemon.log().contains("was cut short by somebody else"), "{}", daemon.log());
    // What was held can't be known.
    daemon.run().await;
    let refused = Session::open(support::channel(daemon.endpoint()).await, open()).await;
    let refused = refused.err().expect("somebody may hold something");
    assert!(refused.text.contains("shorter than a header"), "{}", refused.text);
    for file in fs::read_dir(daemon.journal()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    daemon.session().await;
}
