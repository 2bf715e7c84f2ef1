//! Either daemon ends during a replacement: one daemon remains, or none and the next restores all.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    time::Duration,
};

use super::{
    Held,
    program::{Daemon, exit},
    support::{self, Session, WATCHDOG, acquire, granted, open, release, within},
};

/// A new daemon that the test controls step by step.
pub struct Pretender(UnixStream);

impl Pretender {
    pub fn come(daemon: &Daemon, greeting: &str) -> Self {
        let mut stream = UnixStream::connect(daemon.endpoint().as_path()).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        writeln!(stream, "{greeting}").unwrap();
        Self(stream)
    }

    pub fn greeting(daemon: &Daemon) -> String {
        let journal = fs::metadata(daemon.journal()).unwrap();
        format!("SYNCD-REPLACE 2 {} {} 1 test", journal.dev(), journal.ino())
    }

    /// Says that it has loaded ahead, and waits for LOOK.
    pub fn look(&mut self) {
        assert_eq!(self.hear(), "AHEAD\n");
        self.0.write_all(b"LOADED\n").unwrap();
        assert_eq!(self.hear(), "LOOK\n");
    }

    pub fn hear(&mut self) -> String {
        let mut bytes = [0; 4096];
        let read = self.0.read(&mut bytes).unwrap();
        String::from_utf8(bytes[..read].to_vec()).unwrap()
    }
}

/// Waits until the daemon serves or has ended; true if it serves.
async fn goes_on(daemon: &mut Daemon) -> bool {
    within(async {
        loop {
            if daemon.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            let channel = support::try_channel(daemon.endpoint()).await;
            let Ok(channel) = channel else { continue };
            if Session::try_open(channel, open()).await.is_some() {
                return true;
            }
        }
    })
    .await
}

#[tokio::test]
async fn one_that_ends_before_it_has_the_place_changes_nothing() {
    let daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    for say in
        [None, Some("NO it can't\n"), Some("READY 1 2\n"), Some("what?\n"), Some("\0\0\x12\x04")]
    {
        let mut pretender = Pretender::come(&daemon, &Pretender::greeting(&daemon));
        pretender.look();
        if let Some(say) = say {
            pretender.0.write_all(say.as_bytes()).unwrap();
        }
        drop(pretender);
        // The very connection goes on.
        release(&mut held.session, held.handle, held.token).await;
        held.token = granted(&mut held.session, acquire(held.handle)).await.token;
        held.received += 2;
    }
    // One that ends while it loads ahead delays no client.
    for say in [None, Some("READY 1 1\n")] {
        let mut pretender = Pretender::come(&daemon, &Pretender::greeting(&daemon));
        assert_eq!(pretender.hear(), "AHEAD\n");
        release(&mut held.session, held.handle, held.token).await;
        held.token = granted(&mut held.session, acquire(held.handle)).await.token;
        held.received += 2;
        if let Some(say) = say {
            pretender.0.write_all(say.as_bytes()).unwrap();
            assert!(pretender.hear().starts_with("NO "));
        }
    }
    // One that is stopped: the old daemon doesn't wait for it for ever.
    let mut pretender = Pretender::come(&daemon, &Pretender::greeting(&daemon));
    pretender.look();
    release(&mut held.session, held.handle, held.token).await;
    assert!(pretender.hear().starts_with("NO "));
    daemon.logs("was not replaced, and goes on", 6).await;
}

#[tokio::test]
async fn one_that_ends_with_the_place_leaves_it_to_the_next() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    let mut pretender = Pretender::come(&daemon, &Pretender::greeting(&daemon));
    pretender.look();
    pretender.0.write_all(b"READY 1 1\n").unwrap();
    assert!(pretender.hear().starts_with("YOURS "));
    drop(pretender);
    let status = exit(daemon.child.take().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    assert!(daemon.log().contains("ended before it served"), "{}", daemon.log());
    daemon.run().await;
    held.go_on(&daemon).await;
}

/// The new daemon is killed at a random moment: there is one daemon, or none.
#[tokio::test]
async fn killed_at_any_moment_nothing_is_lost() {
    let mut daemon = Daemon::start(&[]).await;
    let mut held = Held::at(&daemon).await;
    let mut survived = 0;
    for round in 0..30_u64 {
        let mut next = daemon.command().arg("--replace").spawn().unwrap();
        tokio::time::sleep(Duration::from_micros(round * 397 % 12_000)).await;
        if round % 3 == 2 {
            daemon.end(libc::SIGKILL);
            // It restores the state as it is.
            daemon.child = Some(next);
            daemon.listens().await;
        } else {
            next.kill().unwrap();
            next.wait().unwrap();
            // The old one lives, unless it had handed the place over.
            let lives = goes_on(&mut daemon).await;
            survived += u32::from(lives);
            if !lives {
                daemon.child = None;
                daemon.run().await;
            }
        }
        held.go_on(&daemon).await;
    }
    println!("the old one went on {survived} times of 20");
}

/// Either daemon is killed at each step.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn whichever_may_die_at_each_step_nothing_is_lost() {
    let steps = [
        (true, &["paused", "shown", "given", "sealed"][..]),
        (false, &["ahead", "looked", "ready", "taken", "restored"]),
    ];
    for (is_old, names) in steps {
        for name in names {
            let failpoint = ("SYNCD_FAILPOINT", format!("replace.{name}"));
            let mut daemon = Daemon::start(&[]).await;
            daemon.end(libc::SIGTERM);
            let with = |is_told: bool| {
                let mut command = daemon.command();
                command.envs(is_told.then(|| failpoint.clone()));
                command
            };
            let old = with(is_old).spawn().unwrap();
            daemon.listens().await;
            let mut held = Held::at(&daemon).await;
            let mut new = with(!is_old).arg("--replace").spawn().unwrap();
            if is_old {
                // The new one starts by itself if it wasn't handed the place.
                assert!(!exit(old).await.success(), "{name}");
                daemon.child = Some(new);
                daemon.listens().await;
            } else {
                assert!(!new.wait().unwrap().success(), "{name}");
                daemon.child = Some(old);
                match (*name, goes_on(&mut daemon).await) {
                    // It may be handed the place just as it dies.
                    ("ahead" | "looked" | "ready", true) => {
                        // The very connection goes on.
                        release(&mut held.session, held.handle, held.token).await;
                        held.token = granted(&mut held.session, acquire(held.handle)).await.token;
                        held.received += 2;
                    }
                    ("ready" | "taken" | "restored", false) => daemon.run().await,
                    other => panic!("{other:?}"),
                }
            }
            held.go_on(&daemon).await;
        }
    }
}
