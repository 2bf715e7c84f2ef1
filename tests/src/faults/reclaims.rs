//! Who may go on with what a session held, and who may not: the dead, those who come too late or
//! aren't who they say they are. The owners whose sessions are resumed by hand are in this process,
//! since only the process that opened a session may have it again.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use syncd_proto::{
    PROTOCOL,
    v1::{self, Cause, ErrorCode, client_message::Request, server_message::Message},
};
use tokio::runtime::Runtime;
use tonic::Status;

use super::{Held, NAMESPACE, Room, expect, outcome, tell_progress};
use crate::{
    daemon::{eventually, program},
    hostility::peer::{Peer, acquire, channel},
    process_driver::{ActorProcess, Face},
};

/// Long enough for the slowest machine to come back in.
const LONG: &[&str] = &["--grace", "60s"];
const SHORT: &[&str] = &["--grace", "100ms"];

/// The holder dies before the daemon, or after it: what it held is abandoned, and told once.
pub(super) fn both_killed(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let mut waiter = room.actor(&["door Lock"]);
    for trial in 0..trials {
        let mut holder = room.actor(&["door Lock"]);
        let found = dies_with_daemon(&mut room, &mut holder, &mut waiter, |_| Ok(()));
        found.map_err(|why| format!("trial {trial}: {why}"))?;
        tell_progress(trial + 1, trials);
    }
    Ok(trials)
}

/// Before the next daemon starts, the dead holder's number is another process's.
pub(super) fn number_taken_over(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let mut waiter = room.actor(&["door Lock"]);
    for trial in 0..trials {
        let at = |why: String| format!("trial {trial}: {why}");
        let mut holder = room.actor(&["door Lock"]);
        let mut heir = None;
        dies_with_daemon(&mut room, &mut holder, &mut waiter, |room| {
            heir = Some(namesake(room, holder_pid(room)?)?);
            Ok(())
        })
        .map_err(at)?;
        let heir = heir.as_mut().expect("made before the daemon came back");
        // What it has is its own, and what it hasn't it doesn't get.
        heir.tell("go")?;
        heir.tell("object door Lock")?;
        expect(&mut waiter, "acquire door", "granted").map_err(at)?;
        let held = format!("timed out held by pid:{}", waiter.pid());
        expect(heir, "acquire door timeout 0", &held).map_err(at)?;
        expect(&mut waiter, "release door", "ok").map_err(at)?;
        expect(heir, "acquire door", "granted").map_err(at)?;
        expect(heir, "release door", "ok").map_err(at)?;
        tell_progress(trial + 1, trials);
    }
    Ok(trials)
}

fn holder_pid(room: &Room) -> Result<u32, String> {
    room.last_killed.ok_or_else(|| "nobody was killed".into())
}

fn dies_with_daemon(
    room: &mut Room,
    holder: &mut ActorProcess,
    waiter: &mut ActorProcess,
    meanwhile: impl FnOnce(&mut Room) -> Result<(), String>,
) -> Result<(), String> {
    expect(holder, "acquire door", "granted")?;
    let waits = room.rng.bool();
    if waits {
        room.queue(waiter, "door", 0)?;
    }
    let holder_first = room.rng.bool();
    if holder_first {
        holder.kill();
    }
    room.daemon.kill();
    holder.kill();
    room.last_killed = Some(holder.pid());
    meanwhile(room)?;
    room.daemon.start_again();
    if !waits {
        waiter.tell("0 acquire door")?;
    }
    outcome(waiter, &format!("granted abandoned by pid:{} died", holder.pid()))?;
    expect(waiter, "release door", "ok")?;
    expect(waiter, "acquire door", "granted")?;
    expect(waiter, "release door", "ok").map(drop)
}

/// Another process of that number, which becomes an actor when it is told anything.
fn namesake(room: &Room, pid: u32) -> Result<ActorProcess, String> {
    const ATTEMPTS: usize = 1000;
    let actor = program("actor").to_string_lossy().into_owned();
    let script = "read go && exec \"$0\" \"$@\"".into();
    let arguments = vec!["-c".into(), script, actor, "blocking".into()];
    let face = Face { program: "/bin/sh".into(), arguments, ..room.face.clone() };
    // When a process began is told in hundredths of a second, in which numbers don't go round.
    thread::sleep(Duration::from_millis(20));
    for _ in 0..ATTEMPTS {
        // The next process has the number after this one, unless another one comes first.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .map_err(|error| format!("numbers can't be chosen: {error}"))?;
        let process = ActorProcess::start(&face, &room.daemon, NAMESPACE);
        if process.pid() == pid {
            return Ok(process);
        }
    }
    Err(format!("somebody else has number {pid}"))
}

/// An owner by hand, who holds the lock.
struct Owner {
    peer: Peer,
    opened: v1::Opened,
    handle: u32,
    token: u64,
}

/// A daemon and its owners, in turn with and without a restart between.
struct Place {
    room: Room,
    runtime: Runtime,
    restarts: bool,
}

fn place(flags: &[&str]) -> Result<Place, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    Ok(Place { room: Room::new(flags), runtime, restarts: false })
}

fn open() -> v1::Open {
    v1::Open { protocol: PROTOCOL, namespace: NAMESPACE.into(), ..Default::default() }
}

fn release(handle: u32, token: u64) -> Request {
    Request::Release(v1::Release { handle, owner: 1, token, quiet: false })
}

fn told(status: &Status) -> String {
    status.to_string()
}

impl Place {
    /// So often, every other time with a restart.
    fn each(
        &mut self,
        trials: u64,
        mut trial: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Held {
        for number in 0..trials {
            self.restarts = number % 2 == 1;
            trial(self).map_err(|why| {
                format!(
                    "trial {number}, {} restart: {why}",
                    ["without", "with"][number as usize % 2]
                )
            })?;
        }
        Ok(trials)
    }

    /// The first message of a stream that begins so.
    fn enter(&mut self, open: v1::Open) -> Result<(Peer, Message), String> {
        let socket = self.room.daemon.socket();
        let entered =
            self.runtime.block_on(async { Peer::enter(channel(&socket).await?, open).await });
        entered.map_err(|status| told(&status))
    }

    fn ask(&mut self, peer: &mut Peer, request: Request) -> Result<Message, String> {
        self.runtime.block_on(peer.ask(request)).map_err(|status| told(&status))
    }

    /// Opens a session, and acquires the lock as soon as it can be had.
    fn owner(&mut self) -> Result<(Owner, v1::Granted), String> {
        let (mut peer, message) = self.enter(open())?;
        let Message::Opened(opened) = message else { return Err(format!("{message:?}")) };
        let handle = self.runtime.block_on(peer.lock("door")).map_err(|status| told(&status))?;
        match self.ask(&mut peer, acquire(handle, 1, None))? {
            Message::Granted(granted) => {
                let token = granted.token;
                Ok((Owner { peer, opened, handle, token }, granted))
            }
            other => Err(format!("not granted: {other:?}")),
        }
    }

    fn restart(&mut self) {
        if self.restarts {
            self.room.daemon.kill();
            self.room.daemon.start_again();
        }
    }

    /// Must be refused as one who has no such session.
    fn refused(&mut self, key: Vec<u8>) -> Result<(), String> {
        let (_, message) = self.enter(v1::Open { resume_key: key, attempt: 9, ..open() })?;
        match message {
            Message::Error(error) if error.code() == ErrorCode::NotFound => Ok(()),
            other => Err(format!("not refused: {other:?}")),
        }
    }

    /// Resumes, and has what it held.
    fn is_owner(&mut self, owner: Owner) -> Result<(), String> {
        let Owner { peer, opened, handle, token } = owner;
        let (resume_key, resume_seq) = (opened.resume_key, peer.received());
        drop(peer);
        let (mut peer, message) =
            self.enter(v1::Open { resume_key, resume_seq, attempt: 10, ..open() })?;
        let Message::Opened(opened) = message else {
            return Err(format!("the owner itself is refused: {message:?}"));
        };
        peer.go_on_after(opened.last_id);
        match self.ask(&mut peer, release(handle, token))? {
            Message::Done(_) => {}
            other => return Err(format!("the owner has lost it: {other:?}")),
        }
        self.ask(&mut peer, Request::Goodbye(v1::Goodbye {})).map(drop)
    }

    /// Lets the connection break, and waits until the session's grace is over.
    fn lapse(&mut self, owner: Owner) -> v1::Opened {
        let Owner { peer, opened, .. } = owner;
        drop(peer);
        // The runtime has to be at work for the socket to be closed.
        eventually("the end of the grace", || {
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            let sessions = self.room.daemon.sessions(NAMESPACE);
            sessions.iter().all(|session| session.id != opened.session).then_some(())
        });
        opened
    }
}

fn is_left(granted: &v1::Granted) -> Result<(), String> {
    match &granted.abandoned {
        Some(left) if left.cause() == Cause::Disconnected => Ok(()),
        other => Err(format!("told of {other:?}")),
    }
}

/// After the grace, with the right secret.
pub(super) fn late(trials: u64) -> Held {
    let mut place = place(SHORT)?;
    // Somebody stays, or all would be forgotten with the last one.
    let mut keeper = place.room.actor(&["door Lock"]);
    expect(&mut keeper, "acquire door", "granted")?;
    expect(&mut keeper, "release door", "ok")?;
    place.each(trials, |place| {
        let (owner, _) = place.owner()?;
        let opened = place.lapse(owner);
        place.restart();
        place.refused(opened.resume_key)?;
        let (next, granted) = place.owner()?;
        is_left(&granted)?;
        place.is_owner(next)
    })
}

/// With a secret that isn't the session's, in one of several ways.
pub(super) fn forged(trials: u64) -> Held {
    let mut place = place(LONG)?;
    let (_other, message) = place.enter(open())?;
    let Message::Opened(other) = message else { return Err(format!("{message:?}")) };
    place.each(trials, |place| {
        let (owner, _) = place.owner()?;
        place.restart();
        let mut key = owner.opened.resume_key.clone();
        let rng = &mut place.room.rng;
        match rng.u8(..5) {
            0 => key[rng.usize(8..24)] ^= 1 << rng.u8(..8),
            1 => key.truncate(rng.usize(8..24)),
            2 => key.push(0),
            // The secret of another session, and another session's number.
            3 => key[8..].copy_from_slice(&other.resume_key[8..]),
            _ => key[..8].copy_from_slice(&other.resume_key[..8]),
        }
        place.refused(key)?;
        place.is_owner(owner)
    })
}

/// With the right secret, stolen.
pub(super) fn other_process(trials: u64) -> Held {
    let mut place = place(LONG)?;
    place.each(trials, |place| {
        let (owner, _) = place.owner()?;
        place.restart();
        let mut thief = Command::new(program("actor"));
        steal(place, &mut thief, &owner)?;
        place.is_owner(owner)
    })
}

/// The same, by another user, in a namespace that both share.
pub(super) fn other_user(trials: u64) -> Held {
    const NOBODY: u32 = 65_534;
    let shared = [LONG, &["--mode", "666", "--share", NAMESPACE]].concat();
    let mut place = place(&shared)?;
    let socket = place.room.daemon.socket();
    let directory = socket.parent().expect("a directory");
    let readable = |mode| Permissions::from_mode(mode);
    // Where the program lies, another user may not come.
    let copy = directory.join("actor");
    let ready = fs::set_permissions(directory, readable(0o755))
        .and_then(|()| fs::copy(program("actor"), &copy));
    ready.map_err(|error| error.to_string())?;
    place.each(trials, |place| {
        let (owner, _) = place.owner()?;
        place.restart();
        let mut thief = Command::new(&copy);
        thief.uid(NOBODY).gid(NOBODY).current_dir("/");
        steal(place, &mut thief, &owner)?;
        place.is_owner(owner)
    })
}

/// A process shows the owner's key, and must be refused.
fn steal(place: &Place, thief: &mut Command, owner: &Owner) -> Result<(), String> {
    let key: String = owner.opened.resume_key.iter().map(|byte| format!("{byte:02x}")).collect();
    thief.args(["reclaim", NAMESPACE, &key]).env("SYNCD_SOCKET", place.room.daemon.socket());
    let output = thief.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match &*String::from_utf8_lossy(&output.stdout) {
        "refused NotFound\n" => Ok(()),
        other => Err(format!("the thief: {other:?}, {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Its session was lost, and another one has had the lock meanwhile.
pub(super) fn after_another(trials: u64) -> Held {
    let mut place = place(SHORT)?;
    place.each(trials, |place| {
        let (owner, _) = place.owner()?;
        let stale = owner.token;
        drop(owner.peer);
        let (next, granted) = place.owner()?;
        is_left(&granted)?;
        place.restart();
        place.refused(owner.opened.resume_key)?;
        // Nor can another session of its give it away.
        let (mut peer, _) = place.enter(open())?;
        let handle = place.runtime.block_on(peer.lock("door")).map_err(|status| told(&status))?;
        match place.ask(&mut peer, release(handle, stale))? {
            Message::Error(error) if error.code() == ErrorCode::Stale => {}
            other => return Err(format!("a stale release: {other:?}")),
        }
        place.is_owner(next)
    })
}
