//! Holders and waiters that are killed or stopped, and a daemon that is stopped.

use std::{thread::sleep, time::Duration};

use rustix::process::Signal;

use super::{Held, NAMESPACE, Room, expect, outcome, signal};
use crate::{
    conformance::split_token,
    daemon::{WATCHDOG, eventually},
    process_driver::{ActorProcess, Face},
};

/// Killed at a random moment, while waiters come: each is granted once, in one order; the first
/// is told.
pub(super) fn holder_killed(trials: u64) -> Held {
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
pub(super) fn killed_with_a_child(trials: u64) -> Held {
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

pub(super) fn killed_stopped(trials: u64) -> Held {
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
pub(super) fn holder_paused(trials: u64) -> Held {
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
pub(super) fn waiter_killed(trials: u64) -> Held {
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

/// Stopped for longer than every time-out and grace: time-outs end by the client's clock (R33), and
/// afterwards every session is as it was.
pub(super) fn daemon_paused(trials: u64) -> Held {
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
        // By its own clock: the daemon can't say who holds it.
        outcome(waiter, "timed out").map_err(at)?;
        sleep(Duration::from_secs(2));
        signal(room.daemon.pid(), Signal::CONT);
        expect(holder, "valid door", "true").map_err(at)?;
        expect(holder, "release door", "ok").map_err(at)?;
        expect(waiter, "acquire door", "granted").map_err(at)?;
        expect(patient, "valid gate", "true").map_err(at)?;
        expect(patient, "release gate", "ok").map_err(at)?;
        expect(waiter, "release door", "ok").map_err(at)?;
    }
    Ok(trials)
}
