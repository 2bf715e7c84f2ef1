//! Replacing a running daemon: blocked calls go on, holds are kept, no client is refused, and if
//! either daemon is killed meanwhile, there is one daemon afterwards or none.
#![cfg(target_os = "linux")]

#[path = "replace/killed.rs"]
mod killed;
#[path = "support/program.rs"]
mod program;
mod support;

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    process::Stdio,
    time::Duration,
};

use killed::Pretender;
use program::{Daemon, exit};
use support::{Session, WATCHDOG, acquire, channel, granted, is_held, release, within};
use syncd_proto::v1::server_message::Message;

/// A session that holds "a".
struct Held {
    session: Session,
    handle: u32,
    token: u64,
    received: u64,
}

impl Held {
    async fn at(daemon: &Daemon) -> Self {
        let mut session = daemon.session().await;
        let handle = session.lock("a").await;
        let token = granted(&mut session, acquire(handle)).await.token;
        Self { session, handle, token, received: 2 }
    }

    /// Resumes at the current daemon, releases the lock and acquires it again.
    async fn go_on(&mut self, daemon: &Daemon) {
        let mut other = daemon.session().await;
        let theirs = other.lock("a").await;
        assert!(is_held(&mut other, theirs).await);
        self.session = daemon.resume(&self.session, self.received).await.unwrap();
        release(&mut self.session, self.handle, self.token).await;
        let token = granted(&mut self.session, acquire(self.handle)).await.token;
        assert!(token > self.token, "{token} after {}", self.token);
        self.token = token;
        self.received += 2;
    }
}

fn pid_in(daemon: &Daemon) -> u32 {
    fs::read_to_string(daemon.dir.path().join("s.sock.pid")).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn holds_are_kept_and_a_blocked_call_goes_on() {
    let mut daemon = Daemon::start(&["--grace", "100ms"]).await;
    let mut held = Held::at(&daemon).await;
    let mut waiter = daemon.session().await;
    let wanted = waiter.lock("a").await;
    let wait = waiter.send(acquire(wanted)).await;
    waiter.lock("b").await;
    let file = daemon.dir.path().join("s.sock");
    let socket = fs::metadata(&file).unwrap().ino();
    // With other flags.
    daemon.flags = vec!["--grace".into(), "5s".into(), "--log".into(), "debug".into()];
    assert_eq!(daemon.replace().await.code(), Some(0));
    assert_eq!(pid_in(&daemon), daemon.child.as_ref().unwrap().id());
    let told = held.session.next().await;
    assert_eq!(told.seq, 0);
    match told.message.unwrap() {
        Message::SessionEnd(end) => assert!(end.shutting_down),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::metadata(&file).unwrap().ino(), socket, "the socket is the one that was");
    let mut waiter = daemon.resume(&waiter, 2).await.unwrap();
    held.session = daemon.resume(&held.session, held.received).await.unwrap();
    release(&mut held.session, held.handle, held.token).await;
    let told = waiter.next().await;
    assert_eq!(told.id, wait);
    match told.message.unwrap() {
        Message::Granted(next) => assert!(next.token > held.token && next.abandoned.is_none()),
        other => panic!("{other:?}"),
    }
    // The new daemon has all of the place, which it checks each second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    channel(daemon.endpoint()).await;
    assert!(!daemon.log().contains("no longer the daemon's own"));
    daemon.end(libc::SIGTERM);
    assert!(!daemon.dir.path().join("s.sock").exists());
}

#[tokio::test]
async fn new_clients_are_served_during_repeated_replacement() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    let endpoint = daemon.endpoint();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    // Bare connections, none of which is refused, to whichever daemon listens.
    let knocking = tokio::task::spawn_blocking(move || {
        let mut knocks = 0;
        while stopped
            .try_recv()
            .is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty)
        {
            UnixStream::connect(endpoint.as_path()).unwrap();
            knocks += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        knocks
    });
    for _ in 0..20 {
        assert_eq!(daemon.replace().await.code(), Some(0), "{}", daemon.log());
        held.go_on(&daemon).await;
    }
    drop(stop);
    assert!(within(knocking).await.unwrap() > 20);
}

#[tokio::test]
async fn with_several_threads_and_during_snapshots() {
    let mut daemon = Daemon::start(&["--workers", "3"]).await;
    let mut session = daemon.session().await;
    let handle = session.lock("busy").await;
    let (mut received, mut token) = (1, 0);
    for _ in 0..8 {
        for _ in 0..1000 {
            let grant = granted(&mut session, acquire(handle)).await;
            assert!(grant.token > token);
            token = grant.token;
            release(&mut session, handle, token).await;
            received += 2;
        }
        assert_eq!(daemon.replace().await.code(), Some(0), "{}", daemon.log());
        session = daemon.resume(&session, received).await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_that_may_not_replace_another_is_told_why() {
    let daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let own = elsewhere.path().join("journal");
    let refused = |args: &[&str]| {
        let output = daemon.command().args(args).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = refused(&["--replace", "--journal", own.to_str().unwrap()]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains(daemon.journal().to_str().unwrap()), "{said}");
    let (code, said) = refused(&["--replace", "--no-journal"]);
    assert_eq!(code, Some(2), "{said}");
    for (greeting, why) in [
        ("SYNCD-REPLACE 1 0 0 1 9.9", "can't be replaced by this one"),
        (&Pretender::greeting(&daemon).replace(" 1 test", " 0 test"), "format 1"),
    ] {
        let said = Pretender::come(&daemon, greeting).hear();
        assert!(said.starts_with("NO ") && said.contains(why), "{said}");
    }
    release(&mut held.session, held.handle, held.token).await;
}

#[tokio::test]
async fn a_daemon_without_a_journal_or_of_a_service_is_not_replaced() {
    for (flags, variable, why) in [
        (&["--no-journal"][..], None, "keeps no journal"),
        (&[], Some(("NOTIFY_SOCKET", "/nowhere/notify")), "systemctl reload"),
    ] {
        let mut daemon = Daemon::start(&[]).await;
        daemon.end(libc::SIGTERM);
        let mut command = daemon.command();
        command.args(flags).envs(variable);
        daemon.child = Some(command.spawn().unwrap());
        daemon.listens().await;
        let output = daemon.command().arg("--replace").stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains(why), "{said}");
        daemon.session().await.lock("a").await;
    }
}

#[tokio::test]
async fn without_a_daemon_to_replace_it_starts() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        daemon.end(signal);
        daemon.flags = vec!["--replace".into()];
        daemon.run().await;
        held.go_on(&daemon).await;
    }
    assert!(daemon.log().contains("there is no daemon to replace"));
}

#[tokio::test]
async fn two_at_once_replace_it_one_after_the_other() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    for _ in 0..5 {
        let mut both: Vec<_> =
            (0..2).map(|_| daemon.command().arg("--replace").spawn().unwrap()).collect();
        let before = daemon.child.take().unwrap();
        assert_eq!(exit(before).await.code(), Some(0), "{}", daemon.log());
        // One of them replaced the other.
        let (gone, status) = within(async {
            loop {
                for (at, child) in both.iter_mut().enumerate() {
                    if let Some(status) = child.try_wait().unwrap() {
                        return (at, status);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        both.remove(gone).wait().unwrap();
        daemon.child = both.pop();
        held.go_on(&daemon).await;
    }
}

#[tokio::test]
async fn a_daemon_with_a_damaged_journal_is_not_replaced() {
    let daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    let strange = daemon.journal().join("77.0");
    let mut of_a_later_version = fs::read(daemon.journal().join("1.0")).unwrap();
    of_a_later_version[8] = 200;
    fs::write(&strange, of_a_later_version).unwrap();
    fs::set_permissions(&strange, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let output = daemon.command().arg("--replace").stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("77.0") && said.contains("format 200"), "{said}");
    release(&mut held.session, held.handle, held.token).await;
}

#[tokio::test]
async fn sighup_replaces_it_by_its_own_program() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&["--grace", "7s"]).await;
    let notify = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(WATCHDOG)).unwrap();
    daemon.end(libc::SIGTERM);
    let mut command = daemon.command();
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    // As for a service: in a session of its own, without a terminal.
    // SAFETY: setsid may be called there.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::setsid();
            Ok(())
        });
    }
    daemon.child = Some(command.spawn().unwrap());
    let said = || {
        let mut message = [0; 256];
        let length = notify.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    assert_eq!(said().trim(), "READY=1");
    let mut held = Held::at(&daemon).await;
    let mut main = daemon.child.take().unwrap().id();
    let mut is_first = true;
    for _ in 0..3 {
        // SAFETY: a plain system call; the process is this test's, or its child's.
        assert_eq!(unsafe { libc::kill(main.cast_signed(), libc::SIGHUP) }, 0);
        let next = said();
        let next: u32 = next.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap();
        assert_ne!(next, main);
        if is_first {
            // Only the first one is a child of the test.
            let mut status = 0;
            // SAFETY: as above.
            let waited = unsafe { libc::waitpid(main.cast_signed(), &raw mut status, 0) };
            assert_eq!(waited, main.cast_signed());
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
            is_first = false;
        }
        main = next;
        held.go_on(&daemon).await;
        assert_eq!(pid_in(&daemon), main);
    }
    // SAFETY: as above.
    unsafe { libc::kill(main.cast_signed(), libc::SIGTERM) };
    assert_eq!(said().trim(), "STOPPING=1");
    within(async {
        while daemon.dir.path().join("s.sock").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_removed_journal_is_written_anew_before_a_replacement() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    for file in fs::read_dir(daemon.journal()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    // The daemon checks its files each second.
    let before = within(async {
        loop {
            let mut next = daemon.command().arg("--replace").spawn().unwrap();
            loop {
                if next.try_wait().unwrap().is_some_and(|status| status.code() == Some(5)) {
                    break;
                }
                if daemon.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                    return daemon.child.replace(next).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await;
    assert_eq!(exit(before).await.code(), Some(0), "{}", daemon.log());
    held.go_on(&daemon).await;
}
