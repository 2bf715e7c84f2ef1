//! The old daemon's part: checks the new daemon, pauses, gives the place away.

use std::{
    env, io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use rustix::process::geteuid;
use syncd_proto::socket::{Listener, Socket};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    heir::Heir,
    talk::{FIRST, GREETING, LINE, Talk},
};
use crate::{
    broker::{Broker, Holdings},
    instance::Instance,
    journal::{Directory, FORMAT, failpoint},
};

/// How long the new daemon may take to load the journals, while this one is paused.
const LOOK: Duration = Duration::from_secs(5);
/// How long the new daemon waits for a snapshot to be finished.
const SNAPSHOT: Duration = Duration::from_secs(30);
/// How long the new daemon may take to load the journals, while this one goes on.
const AHEAD: Duration = Duration::from_secs(60);
/// How long a greeting may take.
const GREET: Duration = Duration::from_secs(10);

/// Waits for the first byte, and returns whether the peer is a new daemon.
pub(crate) async fn is_successor(broker: &Broker, socket: &Socket) -> bool {
    let closed = broker.closed.notified();
    if broker.is_closing() {
        return false;
    }
    tokio::select! {
        first = socket.peek() => matches!(first, Ok(Some(FIRST))),
        () = closed => false,
        () = sleep(GREET) => false,
    }
}

/// Reads a new daemon's greeting, and refuses it or adds it to the queue.
pub(crate) async fn answer(broker: Arc<Broker>, mut socket: Socket) {
    let pid = socket.peer().pid.unwrap_or_default();
    let heard = timeout(GREET, hear_line(&mut socket)).await;
    let Ok(Ok(greeting)) = heard else { return };
    let looked_ahead = async {
        check(&broker, &socket, &greeting)?;
        // So that little is left to load during the pause: what was loaded ahead isn't loaded again,
        // unless another snapshot comes between.
        let _ = timeout(SNAPSHOT, broker.renew_snapshots()).await;
        let ahead = async {
            socket.write_all(b"AHEAD\n").await?;
            hear_line(&mut socket).await
        };
        match timeout(AHEAD, ahead).await {
            Ok(Ok(line)) if line == "LOADED" => {}
            Ok(Ok(line)) => return Err(format!("the new daemon sent {line:?} instead of LOADED")),
            Ok(Err(_)) => return Err("the new daemon is gone".to_owned()),
            Err(_) => return Err(format!("the new daemon took more than {AHEAD:?} to load")),
        }
        let compactions = broker.compactions.clone();
        match timeout(SNAPSHOT, compactions.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err("it is busy with a snapshot: try again".to_owned()),
        }
    };
    match looked_ahead.await {
        Ok(snapshots) => {
            let talk = UnixStream::from(socket.into_direct());
            if let Ok(talk) = Talk::over(talk) {
                broker.successors.add(Successor { talk, pid, _snapshots: snapshots });
            }
        }
        Err(why) => {
            warn!(pid, "a daemon that would replace this one was refused: {why}");
            let _ = socket.write_all(format!("NO {why}\n").as_bytes()).await;
        }
    }
}

async fn hear_line(socket: &mut Socket) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match socket.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into()),
            _ if line.len() >= LINE => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
}

/// Checks that a new daemon may replace this one; the error says why not.
fn check(broker: &Broker, socket: &Socket, greeting: &str) -> Result<(), String> {
    let us = geteuid().as_raw();
    let peer = socket.peer();
    if peer.uid != Some(us) {
        return Err(format!("it runs as user {us}, and only a daemon of that user may replace it"));
    }
    let theirs = greeting.strip_prefix(GREETING).and_then(|rest| {
        let mut words = rest.strip_prefix(' ')?.split(' ').map(str::parse::<u64>);
        Some((words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?))
    });
    let Some((device, inode, format)) = theirs else {
        let ours = env!("CARGO_PKG_VERSION");
        return Err(format!("its version, {ours}, can't be replaced by this one: stop it instead"));
    };
    let Some(journal) = &broker.settings.journal else {
        return Err(
            "it keeps no journal (--no-journal), so that its state would be lost: stop it \
                    instead"
                .into(),
        );
    };
    let path = journal.path().display();
    match Directory::identity(journal.path()) {
        Ok(ours) if ours == (device, inode) => {}
        Ok(_) => {
            return Err(format!("its journal is in {path}: name that with --journal"));
        }
        Err(error) => return Err(format!("its journal, {path}: {error}: try again")),
    }
    if format < u64::from(FORMAT) {
        return Err(format!(
            "its journal has format {FORMAT}, and this version reads formats up to {format}"
        ));
    }
    let has_manager = env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
    let is_managed = broker.settings.is_activated || has_manager;
    if is_managed && peer.pid.is_none_or(|pid| !is_own_child(pid)) {
        return Err(
            "it is a service, whose manager must know its process: replace it by the manager \
                    (systemctl reload syncd)"
                .into(),
        );
    }
    Ok(())
}

fn is_own_child(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
    parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

/// A new daemon that may replace this one.
pub(crate) struct Successor {
    talk: Talk,
    pid: u32,
    /// Keeps snapshots from being made.
    _snapshots: OwnedSemaphorePermit,
}

impl Successor {
    /// Pauses this daemon, lets the new one load the journals, and gives it the place. Blocks the
    /// runtime's thread.
    ///
    /// # Errors
    /// Why the new daemon doesn't get the place; then this daemon goes on.
    pub fn lead_in(
        mut self,
        broker: &Broker,
        listener: &Listener,
        instance: Option<&mut Instance>,
    ) -> Result<Heir, String> {
        let pid = self.pid;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "the new daemon is gone".to_owned()
            }
            io::ErrorKind::TimedOut => format!("the new daemon took more than {LOOK:?} to load"),
            _ => error.to_string(),
        };
        let pause = broker.pause();
        failpoint("replace.paused");
        let led = pause.kept().and_then(|kept| {
            self.show(kept, instance.as_deref(), listener).map_err(failed).and_then(|led| led)
        });
        led.inspect_err(|why| {
            // The new daemon may only be late.
            let _ = self.talk.say(&format!("NO {why}"));
        })?;
        failpoint("replace.given");
        pause.seal();
        failpoint("replace.sealed");
        if let Some(instance) = instance {
            instance.bequeath();
        }
        info!(successor = pid, "a new daemon replaces this one");
        Ok(Heir::new(self.talk, pid, self._snapshots))
    }

    /// The conversation up to YOURS, whose descriptors come last: if it fails, the new daemon has
    /// nothing.
    fn show(
        &mut self,
        Holdings { namespaces, sessions }: Holdings,
        instance: Option<&Instance>,
        listener: &Listener,
    ) -> io::Result<Result<(), String>> {
        self.talk.say("LOOK")?;
        failpoint("replace.shown");
        let said = self.talk.hear(LOOK)?.0;
        if said != format!("READY {namespaces} {sessions}") {
            let why = said.strip_prefix("NO ").map(str::to_owned);
            let kept = format!("{namespaces} namespaces and {sessions} sessions");
            let why = why.unwrap_or_else(|| format!("it found {said:?} instead of {kept}"));
            return Ok(Err(why));
        }
        let us = std::process::id();
        match instance {
            Some(instance) => {
                let (device, inode) = instance.socket_identity();
                let [directory, lock] = instance.descriptors();
                let words = format!("YOURS {us} {device} {inode}");
                self.talk.give(&words, &[listener.as_fd(), directory, lock])?;
            }
            None => self.talk.give(&format!("YOURS {us}"), &[listener.as_fd()])?,
        }
        Ok(Ok(()))
    }
}
