//! The journal's directory: only one daemon uses it, no daemon restores state that is out of date,
//! and none starts if it can't write there.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;
mod support;

use std::{
    fs::{self, File},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use program::{Daemon, exit};
use support::{Session, acquire, channel, granted, is_held, open};
use syncd_proto::v1::{self, ErrorCode};

/// Takes the lock of that name.
async fn take(session: &mut Session, name: &str) -> v1::Granted {
    let handle = session.lock(name).await;
    granted(session, acquire(handle)).await
}

/// Exit codes, as `--help` has them.
const FAILURE: Option<i32> = Some(1);

#[tokio::test]
async fn one_directory_keeps_the_state_of_one_daemon() {
    let mut first = Daemon::start(&[]).await;
    let mut session = first.session().await;
    take(&mut session, "a").await;
    let dir = tempfile::tempdir().unwrap();
    let flags = vec!["--journal".to_owned(), first.journal().to_str().unwrap().to_owned()];
    let second = Daemon { dir, flags, child: None };
    assert_eq!(exit(second.command().spawn().unwrap()).await.code(), FAILURE);
    assert!(second.log().contains("another daemon keeps its state there"), "{}", second.log());
    // The first one's successor gets it at once, whether that one was killed or replaced.
    first.kill_and_run().await;
    first.replace().await;
    first.resume(&session, 2).await.unwrap();
    assert_eq!(exit(second.command().spawn().unwrap()).await.code(), FAILURE);
}

// Rule R68
#[tokio::test]
async fn state_from_before_a_daemon_without_a_journal_is_not_restored() {
    let mut daemon = Daemon::start(&[]).await;
    let mut before = daemon.session().await;
    let first = take(&mut before, "a").await;
    daemon.flags = vec!["--no-journal".into()];
    daemon.kill_and_run().await;
    let mut between = daemon.session().await;
    daemon.logs("which this one doesn't restore", 1).await;
    let second = take(&mut between, "a").await;
    assert!(second.token > first.token);
    daemon.flags.clear();
    daemon.kill_and_run().await;
    let refused = daemon.resume(&before, 2).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::NotFound);
    let mut after = daemon.session().await;
    assert!(take(&mut after, "a").await.token > second.token);
}

/// An old copy of the journal can't be told from a current one: tokens rise nevertheless.
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
    let token = take(&mut between, "a").await.token;
    daemon.end(libc::SIGKILL);
    fs::remove_dir_all(daemon.journal()).unwrap();
    fs::rename(&old, daemon.journal()).unwrap();
    daemon.run().await;
    let mut resumed = daemon.resume(&session, 1).await.unwrap();
    assert!(take(&mut resumed, "a").await.token > token);
}

/// No client loses its session because of permissions that can be corrected. (Root can write
/// anywhere, so as root this tests nothing.)
#[tokio::test]
async fn no_daemon_starts_in_a_directory_that_it_cannot_write_to() {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    take(&mut session, "a").await;
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

/// A daemon that was killed while a session held "a", and its journal's files.
async fn killed_with_a_hold() -> (Daemon, Session, Vec<PathBuf>) {
    let mut daemon = Daemon::start(&[]).await;
    let mut session = daemon.session().await;
    take(&mut session, "a").await;
    daemon.end(libc::SIGKILL);
    let files = fs::read_dir(daemon.journal()).unwrap().map(|file| file.unwrap().path());
    let files = files.collect();
    (daemon, session, files)
}

/// A huge file isn't read into memory (there is none that large); the records in it are restored.
#[tokio::test]
async fn a_huge_file_is_read_as_far_as_it_was_written_and_kept_aside() {
    let (mut daemon, session, files) = killed_with_a_hold().await;
    for file in &files {
        File::options().write(true).open(file).unwrap().set_len(8 << 40).unwrap();
    }
    daemon.run().await;
    let mut other = daemon.session().await;
    let handle = other.lock("a").await;
    assert!(is_held(&mut other, handle).await);
    daemon.resume(&session, 2).await.unwrap();
    let log = daemon.log();
    assert!(log.contains("it has 8796093022208 bytes, and no journal of its state"), "{log}");
    for file in &files {
        let aside = format!("{}.aside-1", file.display());
        assert!(log.contains(&aside) && fs::exists(&aside).unwrap(), "{aside}: {log}");
    }
    daemon.kill_and_run().await;
    daemon.resume(&session, 2).await.unwrap();
}

/// Other kinds of files in place of a journal's: the log names the file, the daemon doesn't block on
/// it, and what may be held isn't granted.
#[tokio::test]
async fn with_other_things_in_place_of_a_journals_files_nothing_is_granted() {
    type Odd = fn(&Path);
    let kinds: [(&str, Odd); 4] = [
        ("directory", |at| fs::create_dir(at).unwrap()),
        ("symbolic link", |at| symlink("/dev/zero", at).unwrap()),
        ("not a regular file", |at| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                at,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RWXU,
                0,
            )
            .unwrap();
        }),
        ("", |at| drop(UnixListener::bind(at).unwrap())),
    ];
    for (told, make) in kinds {
        let (mut daemon, session, files) = killed_with_a_hold().await;
        let kept = daemon.dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        for file in &files {
            fs::rename(file, kept.join(file.file_name().unwrap())).unwrap();
            make(file);
        }
        daemon.run().await;
        let refused = Session::open(channel(daemon.endpoint()).await, open()).await;
        let refused = refused.err().expect("something may be held").text;
        let named = files.iter().any(|file| refused.contains(file.to_str().unwrap()));
        assert!(named && refused.contains("it can't be read"), "{told}: {refused}");
        assert!(refused.contains(told), "{told}: {refused}");
        daemon.end(libc::SIGKILL);
        for file in &files {
            let _ = fs::remove_file(file).or_else(|_| fs::remove_dir(file));
            fs::rename(kept.join(file.file_name().unwrap()), file).unwrap();
        }
        daemon.run().await;
        let mut other = daemon.session().await;
        let handle = other.lock("a").await;
        assert!(is_held(&mut other, handle).await, "{told}");
        daemon.resume(&session, 2).await.unwrap();
    }
}
