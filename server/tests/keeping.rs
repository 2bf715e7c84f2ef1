//! Where a daemon keeps its state: nobody else keeps theirs there, nobody goes on with what is older
//! than what was told since, and where nothing can be written no daemon starts.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;
mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use program::{Daemon, exit};
use support::{Session, acquire, within};
use syncd_proto::v1::{self, ErrorCode, server_message::Message};

async fn granted(session: &mut Session, name: &str) -> v1::Granted {
    let handle = session.lock(name).await;
    match session.ask(acquire(handle)).await {
        Message::Granted(granted) => granted,
        other => panic!("{other:?}"),
    }
}

/// Exit codes, as `--help` has them.
const FAILURE: Option<i32> = Some(1);

#[tokio::test]
async fn one_directory_keeps_the_state_of_one_daemon() {
    let mut first = Daemon::start(&[]).await;
    let mut session = first.session().await;
    granted(&mut session, "a").await;
    let dir = tempfile::tempdir().unwrap();
    let flags = vec!["--journal".to_owned(), first.journal().to_str().unwrap().to_owned()];
    let second = Daemon { dir, flags, child: None };
    assert_eq!(exit(second.command().spawn().unwrap()).await.code(), FAILURE);
    assert!(second.log().contains("another daemon keeps its state there"), "{}", second.log());
    // The first one's successor has it at once, be it killed or replaced.
    first.kill_and_run().await;
    first.replace().await;
    first.resume(&session, 2).await.unwrap();
    assert_eq!(exit(second.command().spawn().unwrap()).await.code(), FAILURE);
}

// Rule R68
#[tokio::test]
async fn what_was_kept_before_a_daemon_without_a_journal_is_not_gone_on_with() {
    let mut daemon = Daemon::start(&[]).await;
    let mut before = daemon.session().await;
    let first = granted(&mut before, "a").await;
    daemon.flags = vec!["--no-journal".into()];
    daemon.kill_and_run().await;
    let mut between = daemon.session().await;
    within(async {
        while !daemon.log().contains("which this one doesn't go on with") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let second = granted(&mut between, "a").await;
    assert!(second.token > first.token);
    daemon.flags.clear();
    daemon.kill_and_run().await;
    let refused = daemon.resume(&before, 2).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::NotFound);
    let mut after = daemon.session().await;
    assert!(granted(&mut after, "a").await.token > second.token);
}

/// An old copy of the journal, which nothing tells from a new one: tokens rise all the same.
#[tokio::test]
async fn tokens_rise_though_an_old_journal_is_put_back() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    session.lock("a").await;
    daemon.end(libc::SIGKILL);
    let old = daemon.dir.path().join("old");
    fs::rename(daemon.journal(), &old).unwrap();
    daemon.run().await;
    let mut between = daemon.session().await;
    let token = granted(&mut between, "a").await.token;
    daemon.end(libc::SIGKILL);
    fs::remove_dir_all(daemon.journal()).unwrap();
    fs::rename(&old, daemon.journal()).unwrap();
    daemon.run().await;
    let mut resumed = daemon.resume(&session, 1).await.unwrap();
    assert!(granted(&mut resumed, "a").await.token > token);
}

/// Nobody is told that all is lost because of permissions that somebody can put right. (Root may
/// write anywhere, so as root this shows nothing.)
#[tokio::test]
async fn no_daemon_starts_where_nothing_can_be_written() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    granted(&mut session, "a").await;
    daemon.end(libc::SIGKILL);
    let mode = |mode| fs::set_permissions(daemon.journal(), fs::Permissions::from_mode(mode));
    mode(0o500).unwrap();
    if fs::write(daemon.journal().join("probe"), "").is_err() {
        assert_eq!(exit(daemon.command().spawn().unwrap()).await.code(), FAILURE);
        assert!(daemon.log().contains("s.sock.journal"), "{}", daemon.log());
    }
    mode(0o700).unwrap();
    daemon.run().await;
    daemon.resume(&session, 2).await.unwrap();
}
