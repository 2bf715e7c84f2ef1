//! Many at once: waits for a notify, circles, cancels, turns at a file.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use syncd_client::Client;

use super::{Held, NAMESPACE, Room, expect, outcome};
use crate::{
    daemon::{WATCHDOG, eventually, program},
    process_driver::ActorProcess,
};

/// One who waits in a storm, and how far it is.
struct Waiter {
    process: ActorProcess,
    wait: &'static str,
    stage: Stage,
    /// How it woke.
    woke: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Enters,
    Waits,
    Leaves,
    Out,
    Dead,
}

impl Waiter {
    /// Waits without a time-out.
    fn is_patient(&self) -> bool {
        self.wait == "wait full"
    }
}

/// Lets everybody who has heard something go on, until all are at one of these stages.
fn go_on(crowd: &mut [Waiter], until: &[Stage]) -> Result<(), String> {
    eventually("the crowd's next stage", || {
        for waiter in &mut *crowd {
            let Some(heard) = waiter.process.hear(0, Duration::ZERO) else { continue };
            let (found, next) = match waiter.stage {
                // After a death the lock may tell of it.
                Stage::Enters if heard.starts_with("granted") => (waiter.wait, Stage::Waits),
                Stage::Waits if heard.contains("notified") => {
                    waiter.woke = Some(heard);
                    ("release door", Stage::Leaves)
                }
                Stage::Leaves if heard == "ok" => {
                    waiter.stage = Stage::Out;
                    continue;
                }
                // Its last words.
                Stage::Dead => continue,
                _ => return Some(Err(heard)),
            };
            waiter.stage = next;
            if let Err(why) = waiter.process.tell(&format!("0 {found}")) {
                return Some(Err(why));
            }
        }
        let there = |waiter: &Waiter| waiter.stage == Stage::Dead || until.contains(&waiter.stage);
        crowd.iter().all(there).then_some(Ok(()))
    })
}

/// Storms of waits by processes, some of which time out, some of which are killed before or
/// after the notify: every survivor wakes once, holding the lock, and unless its time was up,
/// notified.
pub(super) fn condition_waits(trials: u64) -> Held {
    let mut room = Room::new(&[]);
    let objects = ["door Lock", "full Condition on door"];
    let mut notifier = room.actor(&objects);
    let enter = |process| Waiter { process, wait: "", stage: Stage::Out, woke: None };
    let mut crowd: Vec<_> = (0..20).map(|_| enter(room.actor(&objects))).collect();
    let mut waits = 0;
    while waits < trials {
        for waiter in &mut crowd {
            let timed = room.rng.u8(..20) == 0;
            waiter.wait = if timed { "wait full timeout 1ms" } else { "wait full" };
            (waiter.stage, waiter.woke) = (Stage::Enters, None);
            waiter.process.tell("0 acquire door")?;
        }
        waits += crowd.len() as u64;
        go_on(&mut crowd, &[Stage::Waits, Stage::Out])?;
        let patient = crowd.iter().filter(|waiter| waiter.is_patient()).count();
        eventually("the waits", || (room.waiters("full") >= patient).then_some(()));
        notifier.tell("0 acquire door")?;
        let heard = eventually("the notifier's turn", || {
            // Whoever has run out of time lets go first.
            let went_on = go_on(&mut crowd, &[Stage::Waits, Stage::Leaves, Stage::Out]);
            went_on.err().or_else(|| notifier.hear(0, Duration::from_millis(1)))
        });
        if !heard.starts_with("granted") {
            return Err(heard);
        }
        let victim = (room.rng.u8(..20) == 0 || waits == crowd.len() as u64)
            .then(|| room.rng.usize(..crowd.len()));
        let early = room.rng.bool();
        let kill = |crowd: &mut Vec<Waiter>| {
            if let Some(waiter) = victim.map(|victim| &mut crowd[victim]) {
                waiter.process.kill();
                waiter.stage = Stage::Dead;
            }
        };
        if early {
            kill(&mut crowd);
        }
        notifier.tell("0 notify full all")?;
        notifier.hear(0, WATCHDOG).ok_or("no count")?;
        kill(&mut crowd);
        expect(&mut notifier, "release door", "ok")?;
        go_on(&mut crowd, &[Stage::Out])?;
        for waiter in crowd.iter().filter(|waiter| waiter.stage == Stage::Out) {
            let woke = waiter.woke.as_deref().unwrap_or("not at all");
            if waiter.is_patient() && !woke.starts_with("notified") {
                return Err(format!("{} woke {woke}", waiter.process.pid()));
            }
        }
        if let Some(victim) = victim {
            crowd[victim] = enter(room.actor(&objects));
        }
    }
    Ok(waits)
}

/// Circles of 2 to 8 processes, of which the last asks to be refused; and chains.
pub(super) fn deadlock(trials: u64) -> Held {
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
pub(super) fn cancel_storm(trials: u64) -> Held {
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
