//! Faults of real processes, each as a function of its number of trials, so that `cargo test`
//! has a bounded share of what `cargo run -p syncd-tests --bin faults` does in full. Never
//! here: a client in this process, but for the storm of cancels.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use syncd_client::Client;

use crate::{
    conformance::split_token,
    daemon::{Daemon, WATCHDOG, eventually, program},
    process_driver::{ActorProcess, Face},
    script::Needs,
};

/// What is wrong, or how many trials held.
pub type Held = Result<u64, String>;

const NAMESPACE: &str = "faults";

/// Something that can go wrong around a lock.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Fault {
    /// As in the page of acceptance.
    pub name: &'static str,
    pub what: &'static str,
    /// In full.
    pub trials: u64,
    /// Within `cargo test`.
    pub few: u64,
    pub run: fn(u64) -> Held,
}

/// All of them.
pub const FAULTS: [Fault; 9] = [
    Fault { name: "F5", what: "a holder is killed", trials: 500, few: 20, run: holder_killed },
    Fault {
        name: "F6a",
        what: "killed with a forked child alive",
        trials: 100,
        few: 5,
        run: killed_with_a_child,
    },
    Fault { name: "F6b", what: "killed while stopped", trials: 100, few: 5, run: killed_stopped },
    Fault { name: "F7", what: "a holder is paused", trials: 30, few: 2, run: holder_paused },
    Fault { name: "F8", what: "a waiter is killed", trials: 500, few: 20, run: waiter_killed },
    Fault { name: "F13", what: "the daemon is paused", trials: 20, few: 1, run: daemon_paused },
    Fault {
        name: "F14",
        what: "condition waits",
        trials: 200_000,
        few: 2_000,
        run: condition_waits,
    },
    Fault { name: "F15", what: "deadlock", trials: 200, few: 10, run: deadlock },
    Fault { name: "F16", what: "10,000 cancels", trials: 10, few: 1, run: cancel_storm },
];

/// A daemon, and chance.
struct Room {
    daemon: Daemon,
    face: Face,
    rng: Rng,
}

impl Room {
    fn new(flags: &[&str]) -> Self {
        let (program, arguments) = (program("actor"), vec!["blocking".into()]);
        let face = Face { ability: Needs::Api, program, arguments };
        Room { daemon: Daemon::start(flags), face, rng: Rng::with_seed(1) }
    }

    /// A client process that knows an object.
    fn actor(&self, objects: &[&str]) -> ActorProcess {
        let mut actor = ActorProcess::start(&self.face, &self.daemon, NAMESPACE);
        for object in objects {
            actor.tell(&format!("object {object}")).expect("it lives");
        }
        actor
    }

    fn waiters(&self, object: &str) -> usize {
        self.daemon.describe(NAMESPACE, object).map_or(0, |detail| detail.waiters.len())
    }

    fn value(&self, object: &str) -> u32 {
        let detail = self.daemon.describe(NAMESPACE, object);
        detail.and_then(|detail| detail.object).map_or(u32::MAX, |object| object.value)
    }

    /// Asks for it, and sees it join the queue behind as many.
    fn queue(&self, actor: &mut ActorProcess, object: &str, behind: usize) -> Result<(), String> {
        actor.tell(&format!("0 acquire {object}"))?;
        eventually("a waiter's arrival", || (self.waiters(object) > behind).then_some(()));
        Ok(())
    }
}

/// Does as it is told, with that outcome, whose token is returned.
fn expect(actor: &mut ActorProcess, operation: &str, wanted: &str) -> Result<u64, String> {
    actor.tell(&format!("0 {operation}"))?;
    outcome(actor, wanted).map_err(|why| format!("{operation}: {why}"))
}

fn outcome(actor: &mut ActorProcess, wanted: &str) -> Result<u64, String> {
    let heard = actor.hear(0, WATCHDOG).ok_or("it says nothing")?;
    let (found, token) = split_token(&heard);
    if found == wanted { Ok(token.unwrap_or(0)) } else { Err(format!("{found}, not {wanted}")) }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    kill_process(pid, signal).expect("ours");
}

/// Killed at a random moment, while waiters come: each is granted once, in one order; the first
/// is told.
fn holder_killed(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let mut waiters: Vec<_> = (0..4).map(|_| room.actor(&[])).collect();
    for trial in 0..trials {
        let door = format!("door{trial}");
        let declare = format!("object {door} Lock");
        let mut holder = room.actor(&[&declare["object ".len()..]]);
        let mut last = expect(&mut holder, &format!("acquire {door}"), "granted")?;
        let mut pending: Vec<&mut ActorProcess> = vec![];
        let moment = room.rng.usize(..=waiters.len());
        for (i, waiter) in waiters.iter_mut().enumerate() {
            if i == moment {
                holder.kill();
            }
            waiter.tell(&declare)?;
            waiter.tell(&format!("0 acquire {door}"))?;
            pending.push(waiter);
        }
        holder.kill();
        let mut told = 0;
        while !pending.is_empty() {
            // Who is granted says so; nobody else can be.
            let (at, heard) = eventually("the next grant", || {
                let patience = Duration::from_millis(1);
                let heard = |(at, waiter): (usize, &mut &mut ActorProcess)| {
                    Some((at, waiter.hear(0, patience)?))
                };
                pending.iter_mut().enumerate().find_map(heard)
            });
            let (found, token) = split_token(&heard);
            let abandoned = format!("granted abandoned by pid:{} died", holder.pid());
            told += u32::from(found == abandoned);
            if found != "granted" && (found != abandoned || told > 1) {
                return Err(format!("trial {trial}: {heard}"));
            }
            let token = token.filter(|&token| token > last);
            last = token.ok_or(format!("trial {trial}: {heard} after token {last}"))?;
            expect(pending.remove(at), &format!("release {door}"), "ok")?;
        }
        if told != 1 {
            return Err(format!("trial {trial}: told {told} times"));
        }
    }
    Ok(trials)
}

/// The child keeps every socket open, and can neither use nor release what its parent holds.
fn killed_with_a_child(trials: u64) -> Held {
    let room = Room::new(&[]);
    let mut waiter = room.actor(&["door RLock"]);
    for trial in 0..trials {
        let at = |why: String| format!("trial {trial}: {why}");
        let face = Face { arguments: vec!["fork".into()], ..room.face.clone() };
        let mut parent = ActorProcess::start(&face, &room.daemon, NAMESPACE);
        outcome(&mut parent, "granted").map_err(at)?;
        for wanted in ["invalid", "not owner", "timed out held by", "dropped"] {
            let said = parent.hear(1, WATCHDOG).ok_or("the child says nothing")?;
            if !said.starts_with(wanted) {
                return Err(at(format!("the child: {said}, not {wanted}")));
            }
        }
        room.queue(&mut waiter, "door", 0)?;
        let pid = parent.pid();
        // Only the parent: the child lives until its stdin ends.
        signal(pid, Signal::KILL);
        outcome(&mut waiter, &format!("granted abandoned by pid:{pid} died")).map_err(at)?;
        expect(&mut waiter, "release door", "ok").map_err(at)?;
        if parent.is_finished() {
            return Err(at("the child went with its parent: nothing was shown".into()));
        }
    }
    Ok(trials)
}

fn killed_stopped(trials: u64) -> Held {
    let room = Room::new(&[]);
    let mut waiter = room.actor(&["door Lock"]);
    for trial in 0..trials {
        let at = |why: String| format!("trial {trial}: {why}");
        let mut holder = room.actor(&["door Lock"]);
        expect(&mut holder, "acquire door", "granted").map_err(at)?;
        room.queue(&mut waiter, "door", 0)?;
        signal(holder.pid(), Signal::STOP);
        signal(holder.pid(), Signal::KILL);
        let pid = holder.pid();
        outcome(&mut waiter, &format!("granted abandoned by pid:{pid} died")).map_err(at)?;
        expect(&mut waiter, "release door", "ok").map_err(at)?;
    }
    Ok(trials)
}

/// Stopped for longer than the grace, all at once: what a live process holds stays its own.
fn holder_paused(trials: u64) -> Held {
    let room = Room::new(&["--grace", "500ms"]);
    let pause = Duration::from_secs(if trials > 10 { 10 } else { 2 });
    let mut pairs = vec![];
    for trial in 0..trials {
        let door = format!("door{trial}");
        let object = format!("{door} Lock");
        let mut pair = [room.actor(&[&object]), room.actor(&[&object])];
        expect(&mut pair[0], &format!("acquire {door}"), "granted")?;
        signal(pair[0].pid(), Signal::STOP);
        room.queue(&mut pair[1], &door, 0)?;
        pairs.push((door, pair));
    }
    sleep(pause);
    for (door, [holder, waiter]) in &mut pairs {
        if let Some(heard) = waiter.hear(0, Duration::ZERO) {
            return Err(format!("taken from a paused holder: {heard}"));
        }
        signal(holder.pid(), Signal::CONT);
        expect(holder, &format!("valid {door}"), "true")?;
        expect(holder, &format!("release {door}"), "ok")?;
        outcome(waiter, "granted")?;
    }
    Ok(trials)
}

/// Some of a queue's waiters are killed while the holder lets go: the others keep their order,
/// and no permit is lost or gained.
fn waiter_killed(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let objects = ["slots Semaphore 2"];
    let mut holders = [room.actor(&objects), room.actor(&objects)];
    let mut trial = 0;
    while trial < trials {
        for holder in &mut holders {
            expect(holder, "acquire slots", "granted")?;
        }
        let mut waiters = vec![];
        for i in 0..room.rng.usize(3..8) {
            let mut waiter = room.actor(&objects);
            room.queue(&mut waiter, "slots", i)?;
            waiters.push(Some(waiter));
        }
        let victims: Vec<usize> = (0..waiters.len()).filter(|_| room.rng.bool()).collect();
        let early = room.rng.bool();
        let kill = |waiters: &mut Vec<Option<ActorProcess>>| {
            victims.iter().for_each(|&victim| drop(waiters[victim].take()));
        };
        if early {
            kill(&mut waiters);
        }
        for holder in &mut holders {
            expect(holder, "release slots", "ok")?;
        }
        if !early {
            kill(&mut waiters);
        }
        // A victim may have been granted before it died, and then the next is told of it.
        let mut last = 0;
        for waiter in waiters.iter_mut().flatten() {
            let heard = waiter.hear(0, WATCHDOG).ok_or(format!("trial {trial}: no grant"))?;
            let (found, token) = split_token(&heard);
            let token = token.filter(|&token| found.starts_with("granted") && token > last);
            last = token.ok_or(format!("trial {trial}: {heard} after token {last}"))?;
            expect(waiter, "release slots", "ok")?;
        }
        eventually("all permits back", || (room.value("slots") == 2).then_some(()));
        // Nothing that was abandoned is left to be told to the next trial.
        for holder in &mut holders {
            holder.tell("0 acquire slots")?;
            holder.hear(0, WATCHDOG).ok_or("no grant")?;
            expect(holder, "release slots", "ok")?;
        }
        trial += victims.len().max(1) as u64;
    }
    Ok(trial)
}

/// Stopped for longer than every time-out and grace: afterwards every session is as it was.
fn daemon_paused(trials: u64) -> Held {
    let room = Room::new(&["--grace", "500ms"]);
    for trial in 0..trials {
        let at = |why: String| format!("trial {trial}: {why}");
        let objects = ["door Lock", "full Condition on door", "gate Lock"];
        let mut actors: Vec<_> = (0..3).map(|_| room.actor(&objects)).collect();
        let [holder, waiter, patient] = &mut actors[..] else { unreachable!("three") };
        expect(holder, "acquire door", "granted").map_err(at)?;
        expect(patient, "acquire gate", "granted").map_err(at)?;
        waiter.tell("0 acquire door timeout 1s")?;
        eventually("a waiter", || (room.waiters("door") == 1).then_some(()));
        signal(room.daemon.pid(), Signal::STOP);
        sleep(Duration::from_secs(3));
        signal(room.daemon.pid(), Signal::CONT);
        outcome(waiter, &format!("timed out held by pid:{}", holder.pid())).map_err(at)?;
        expect(holder, "valid door", "true").map_err(at)?;
        expect(holder, "release door", "ok").map_err(at)?;
        expect(waiter, "acquire door", "granted").map_err(at)?;
        expect(patient, "valid gate", "true").map_err(at)?;
        expect(patient, "release gate", "ok").map_err(at)?;
        expect(waiter, "release door", "ok").map_err(at)?;
    }
    Ok(trials)
}

/// Storms of waits by processes, some of which are killed or time out before the notifies and
/// among them: the survivors that were notified wake, each once, holding the lock.
fn condition_waits(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let objects = ["door Lock", "full Condition on door"];
    let mut notifier = room.actor(&objects);
    let mut crowd: Vec<_> = (0..20).map(|_| room.actor(&objects)).collect();
    let mut waits = 0;
    while waits < trials {
        // Each of the crowd waits; one in twenty with a time-out.
        let mut timed = vec![];
        for (i, waiter) in crowd.iter_mut().enumerate() {
            // After a death the lock may tell of it.
            waiter.tell("0 acquire door")?;
            let heard = waiter.hear(0, WATCHDOG).ok_or("no grant")?;
            if !heard.starts_with("granted") {
                return Err(heard);
            }
            timed.push(room.rng.u8(..20) == 0);
            let timeout = if timed[i] { " timeout 1ms" } else { "" };
            waiter.tell(&format!("0 wait full{timeout}"))?;
        }
        waits += crowd.len() as u64;
        let untimed = timed.iter().filter(|timed| !**timed).count();
        eventually("the waits", || (room.waiters("full") >= untimed).then_some(()));
        let victim = (room.rng.u8(..20) == 0 || waits == crowd.len() as u64)
            .then(|| room.rng.usize(..crowd.len()));
        notifier.tell("0 acquire door")?;
        let heard = notifier.hear(0, WATCHDOG).ok_or("no grant")?;
        if !heard.starts_with("granted") {
            return Err(heard);
        }
        let early = room.rng.bool();
        if let Some(victim) = victim.filter(|_| early) {
            crowd[victim].kill();
        }
        notifier.tell("0 notify full all")?;
        notifier.hear(0, WATCHDOG).ok_or("no count")?;
        if let Some(victim) = victim {
            crowd[victim].kill();
        }
        notifier.tell("0 release door")?;
        notifier.hear(0, WATCHDOG).ok_or("no release")?;
        for (i, waiter) in crowd.iter_mut().enumerate().filter(|(i, _)| Some(*i) != victim) {
            let heard = waiter.hear(0, WATCHDOG).ok_or(format!("{i} isn't woken"))?;
            let (found, _) = split_token(&heard);
            if !found.starts_with("notified") && !(timed[i] && found.starts_with("unnotified")) {
                return Err(format!("{i}: {heard}"));
            }
            expect(waiter, "release door", "ok")?;
        }
        if let Some(victim) = victim {
            crowd[victim] = room.actor(&objects);
        }
    }
    Ok(waits)
}

/// Circles of 2 to 8 processes, of which the last asks to be refused; and chains.
fn deadlock(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let locks: Vec<String> = (0..9).map(|i| format!("lock{i} Lock")).collect();
    let locks: Vec<&str> = locks.iter().map(String::as_str).collect();
    let mut actors: Vec<_> = (0..8).map(|_| room.actor(&locks)).collect();
    for trial in 0..trials {
        let at = |why: String| format!("trial {trial}: {why}");
        let (length, closed) = (room.rng.usize(2..=8), room.rng.u8(..4) > 0);
        for (i, actor) in actors[..length].iter_mut().enumerate() {
            expect(actor, &format!("acquire lock{i}"), "granted").map_err(at)?;
        }
        for (i, actor) in actors[..length - 1].iter_mut().enumerate() {
            room.queue(actor, &format!("lock{}", i + 1), 0)?;
        }
        let pids = actors[..length].iter().map(ActorProcess::pid);
        let circle = pids.map(|pid| format!(" pid:{pid}")).collect::<Vec<_>>();
        let (last, first) = circle.split_last().expect("2 or more");
        let refused = format!("deadlock{last}{}", first.concat());
        let (wants, wanted) = if closed { ("lock0", &*refused) } else { ("lock8", "granted") };
        let closer = &mut actors[length - 1];
        expect(closer, &format!("acquire {wants} unless deadlock"), wanted).map_err(at)?;
        if !closed {
            expect(closer, "release lock8", "ok").map_err(at)?;
        }
        for i in (0..length).rev() {
            expect(&mut actors[i], &format!("release lock{i}"), "ok").map_err(at)?;
            if i > 0 {
                outcome(&mut actors[i - 1], "granted").map_err(at)?;
                expect(&mut actors[i - 1], &format!("release lock{i}"), "ok").map_err(at)?;
            }
        }
    }
    Ok(trials)
}

/// Acquires that are dropped while they wait, on one connection: the session lives.
fn cancel_storm(trials: u64) -> Held {
    const CANCELS: usize = 10_000;
    let room = Room::new(&[]);
    let mut holder = room.actor(&["door Lock"]);
    expect(&mut holder, "acquire door", "granted")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let endpoint = room.daemon.socket().to_string_lossy().parse().expect("a path");
    let builder = Client::builder().endpoint(endpoint).namespace(NAMESPACE).auto_start(false);
    let stormed = runtime.block_on(async {
        let client = builder.connect().await?;
        let session = client.session_id().await?;
        let door = client.lock("door").await?;
        for _ in 0..trials {
            for _ in 0..CANCELS {
                let waiting = std::pin::pin!(door.acquire());
                assert!(futures_util::poll!(waiting).is_pending(), "it is held");
            }
            let found = door.acquire_timeout(Duration::ZERO).await;
            assert!(matches!(&found, Err(error) if error.held_by().len() == 1), "{found:?}");
        }
        assert_eq!(client.session_id().await?, session, "the session lives");
        Ok::<_, Box<dyn std::error::Error>>(client)
    });
    let client = stormed.map_err(|error| error.to_string())?;
    eventually("an empty queue", || (room.waiters("door") == 0).then_some(()));
    expect(&mut holder, "release door", "ok")?;
    drop((runtime, client));
    Ok(trials)
}

/// As many processes as one likes take turns at a lock, and count in a file that refuses a
/// token lower than its last: with `deaths`, some are killed meanwhile.
///
/// # Errors
/// If the file saw a lower token, or a turn is missing.
pub fn fenced_file(processes: usize, turns: usize, deaths: usize) -> Held {
    let mut room = Room::new(&[]);
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = dir.path().join("fenced");
    fs::write(&file, "0 0").map_err(|error| error.to_string())?;
    let toiler = || {
        let mut command = Command::new(program("actor"));
        command.args(["toil", NAMESPACE]).arg(&file).arg(turns.to_string());
        command.env("SYNCD_SOCKET", room.daemon.socket()).stdin(Stdio::null());
        command.spawn().expect("a process")
    };
    let mut toilers: Vec<_> = (0..processes).map(|_| toiler()).collect();
    for _ in 0..deaths {
        sleep(Duration::from_millis(room.rng.u64(..20)));
        let victim = room.rng.usize(..toilers.len());
        let _ = toilers[victim].kill();
        let _ = toilers[victim].wait();
    }
    let mut done = 0;
    for mut toiler in toilers {
        done += u64::from(toiler.wait().map_err(|error| error.to_string())?.success());
    }
    let counted = read_fenced(&file)?.1;
    let least = done * turns as u64;
    if counted < least || (deaths == 0 && counted != (processes * turns) as u64) {
        return Err(format!("{counted} turns counted, {least} made"));
    }
    Ok(counted)
}

/// The last token and the count.
///
/// # Errors
/// If it isn't such a file.
pub fn read_fenced(file: &Path) -> Result<(u64, u64), String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let mut numbers = text.split(' ').map(|number| number.trim().parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(token), Some(count)) => Ok((token, count)),
        _ => Err(format!("torn: {text:?}")),
    }
}
