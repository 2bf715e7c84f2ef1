//! Daemons that are killed while a crowd is at work, and start again; and whatever else can happen
//! meanwhile.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::process::Signal;
use syncd::journal::Directory;

use super::{
    Held, Room,
    crowd::{Crowd, OBJECTS},
    expect, outcome, seed, signal,
};
use crate::{daemon::WATCHDOG, process_driver::ActorProcess};

/// Processes at a time.
const CROWD: usize = 8;
/// Longer than a client that is stopped, or has to wait for a processor, may be away from a daemon
/// that lives.
const GRACE: &str = "2s";
const LONGER_THAN_GRACE: Duration = Duration::from_millis(2500);
/// Trials upon one daemon's state: the next one begins anew.
const TRIALS: u64 = 10;

/// A crowd, and a few who make no call while daemons come and go.
struct Scene {
    room: Room,
    crowd: Crowd,
    /// Holds what nobody else asks for, but for one who waits.
    idle: ActorProcess,
    waiter: ActorProcess,
    /// Keeps the objects of the crowd, and tries to get what others have.
    keeper: ActorProcess,
    /// There is so much that snapshots are made beside the work.
    is_large: bool,
}

impl Scene {
    fn new(seed: u64) -> Result<Self, String> {
        let room = Room { rng: Rng::with_seed(seed), ..Room::new(&["--grace", GRACE]) };
        let mut objects: Vec<&str> = OBJECTS.map(|(_, object, _)| object).into();
        objects.extend(["items Semaphore 0", "quiet Lock"]);
        let [mut keeper, mut idle, mut waiter] = [(); 3].map(|()| room.actor(&objects));
        for (name, ..) in OBJECTS {
            expect(&mut keeper, &format!("acquire {name}"), "granted")?;
            expect(&mut keeper, &format!("release {name}"), "ok")?;
        }
        expect(&mut keeper, "acquire items timeout 0", "timed out")?;
        expect(&mut keeper, "acquire quiet", "granted")?;
        expect(&mut keeper, "release quiet", "ok")?;
        expect(&mut idle, "acquire quiet", "granted")?;
        room.queue(&mut waiter, "quiet", 0)?;
        let crowd = Crowd::start(&room.daemon, seed * 1000, CROWD);
        crowd.go_on();
        Ok(Self { room, crowd, idle, waiter, keeper, is_large: false })
    }

    /// Has more than a snapshot within a step may have.
    fn enlarge(&mut self) -> Result<(), String> {
        const OBJECTS: usize = 1000;
        for number in 0..OBJECTS {
            self.keeper.tell(&format!("object much{number} Lock"))?;
            self.keeper.tell(&format!("0 acquire much{number}"))?;
        }
        for _ in 0..OBJECTS {
            outcome(&mut self.keeper, "granted")?;
        }
        self.is_large = true;
        Ok(())
    }

    fn up_to(&mut self, milliseconds: u64) {
        let time = self.room.rng.u64(..=milliseconds * 1000);
        sleep(Duration::from_micros(time));
    }

    /// The daemon has gone, and comes back after a while.
    fn come_back(&mut self) -> Result<(), String> {
        if self.room.rng.bool() {
            self.up_to(30);
        }
        self.room.daemon.start_again();
        self.check()
    }

    /// The daemon is killed, and a holder can't come back to the next one for longer than the grace:
    /// it lives, so it keeps what it holds.
    fn outstay(&mut self) -> Result<(), String> {
        signal(self.idle.pid(), Signal::STOP);
        self.room.daemon.kill();
        self.room.daemon.start_again();
        sleep(LONGER_THAN_GRACE);
        let held = format!("timed out held by pid:{}", self.idle.pid());
        let kept = expect(&mut self.keeper, "acquire quiet timeout 0", &held);
        signal(self.idle.pid(), Signal::CONT);
        kept.map(drop)
    }

    /// One of the things that can happen to a crowd and its daemon.
    fn harm(&mut self) {
        let victim = self.room.rng.usize(..self.crowd.size());
        match self.room.rng.u8(..8) {
            0..3 => {
                self.room.daemon.kill();
                self.up_to(20);
                self.room.daemon.start_again();
            }
            3 | 4 => self.crowd.kill(victim, &self.room.daemon),
            5 => {
                // A daemon that is killed finds one who is stopped.
                self.crowd.signal(victim, Signal::STOP);
                self.up_to(50);
                if self.room.rng.bool() {
                    self.room.daemon.kill();
                    self.room.daemon.start_again();
                }
                self.up_to(50);
                self.crowd.signal(victim, Signal::CONT);
            }
            6 => {
                let daemon = self.room.daemon.pid();
                signal(daemon, Signal::STOP);
                self.up_to(50);
                if self.room.rng.bool() {
                    self.crowd.kill(victim, &self.room.daemon);
                }
                self.up_to(50);
                signal(daemon, Signal::CONT);
            }
            _ => {
                self.room.daemon.kill();
                self.crowd.kill(victim, &self.room.daemon);
                self.up_to(20);
                self.room.daemon.start_again();
            }
        }
    }

    /// All is as it was for those who have made no call, and those who work go on.
    fn check(&mut self) -> Result<(), String> {
        let held = format!("timed out held by pid:{}", self.idle.pid());
        expect(&mut self.keeper, "acquire quiet timeout 0", &held)?;
        if let Some(heard) = self.waiter.hear(0, Duration::ZERO) {
            return Err(format!("a blocked call has ended: {heard}"));
        }
        if self.room.rng.u8(..3) == 0 {
            expect(&mut self.idle, "release quiet", "ok")?;
            outcome(&mut self.waiter, "granted")?;
            std::mem::swap(&mut self.idle, &mut self.waiter);
            self.room.queue(&mut self.waiter, "quiet", 0)?;
        }
        self.crowd.go_on();
        Ok(())
    }

    fn finish(self) -> Result<u64, String> {
        let keepers = [self.keeper.pid(), self.idle.pid(), self.waiter.pid()];
        self.crowd.finish(&self.room.daemon, &keepers)
    }
}

/// So many trials, a scene for every few of them.
fn scenes(
    trials: u64,
    mut trial: impl FnMut(&mut Scene, u64) -> Result<(), String>,
) -> Result<u64, String> {
    let mut calls = 0;
    for first in (0..trials).step_by(TRIALS as usize) {
        let seed = seed() + first;
        let of_seed = |why: String| format!("seed {seed}: {why}");
        let mut scene = Scene::new(seed).map_err(of_seed)?;
        for number in first..trials.min(first + TRIALS) {
            let number = super::seed() - 1 + number;
            trial(&mut scene, number).map_err(|why| of_seed(format!("trial {number}: {why}")))?;
        }
        calls += scene.finish().map_err(of_seed)?;
        super::tell_progress(trials.min(first + TRIALS), trials);
    }
    Ok(calls)
}

/// Daemon and clients are killed and stopped, calls are withdrawn and time out: each scene is a
/// history.
pub(super) fn mixed_faults(trials: u64) -> Held {
    let mut calls = 0;
    for trial in 0..trials {
        let seed = seed() + trial;
        let of_seed = |why: String| format!("seed {seed}: {why}");
        let mut scene = Scene::new(seed).map_err(of_seed)?;
        for _ in 0..scene.room.rng.u8(4..10) {
            scene.up_to(120);
            scene.harm();
        }
        scene.check().map_err(of_seed)?;
        calls += scene.finish().map_err(of_seed)?;
        super::tell_progress(trial + 1, trials);
    }
    eprintln!("F3: {calls} calls were recorded and checked");
    Ok(trials)
}

/// By SIGKILL, at any moment; once in a scene while a holder is stopped.
pub(super) fn daemon_killed(trials: u64) -> Held {
    let calls = scenes(trials, |scene, number| {
        scene.up_to(100);
        if number % TRIALS == TRIALS - 1 {
            scene.outstay()?;
            return scene.check();
        }
        scene.room.daemon.kill();
        scene.come_back()
    })?;
    eprintln!("F9: {calls} calls were recorded and checked");
    Ok(trials)
}

/// Where a daemon is killed, by the steps of the page. A number behind a place: it comes by so
/// often, at most, before it is killed.
const STEPS: [&[(&str, u64)]; 7] = [
    &[("journal.append.before", 200)],
    &[("journal.append.middle", 200)],
    &[("journal.append.after", 200)],
    &[("connection.written", 200)],
    &[
        ("journal.switch.middle", 1),
        ("journal.switch.before_complete", 1),
        ("journal.switch.complete", 1),
    ],
    &[(REPLAY, u64::MAX), ("restart.rejoin", 8)],
    &[("restart.resume", 8)],
];
/// Of a state that is large.
const BESIDE: [(&str, u64); 2] =
    [("journal.compaction.copied", 1), ("journal.compaction.before_complete", 1)];
/// Once for each record.
const REPLAY: &str = "restart.replay";

/// At each step of persisting, by itself.
pub(super) fn killed_at_each_step(trials: u64) -> Held {
    let mut hits = [0; STEPS.len()];
    let calls = scenes(trials, |scene, trial| {
        let step = (trial % STEPS.len() as u64) as usize;
        let is_compaction = step == 4;
        if is_compaction && trial % 2 == 1 && !scene.is_large {
            scene.enlarge()?;
        }
        let places = if is_compaction && scene.is_large { &BESIDE[..] } else { STEPS[step] };
        let (place, most) = places[scene.room.rng.usize(..places.len())];
        scene.room.daemon.kill();
        let most =
            if place == REPLAY { most.min(records(&scene.room.daemon.journal())?) } else { most };
        let time = scene.room.rng.u64(1..=most.max(1));
        let at = |why: String| format!("{place}:{time}: {why}");
        scene.room.daemon.start_doomed(&format!("{place}:{time}"));
        let end = Instant::now() + WATCHDOG;
        while !scene.room.daemon.was_killed() {
            if Instant::now() > end {
                return Err(at("it never came by there: is it built with the failpoints?".into()));
            }
            sleep(Duration::from_millis(1));
        }
        // What was torn isn't there, and all else is.
        records(&scene.room.daemon.journal()).map_err(at)?;
        hits[step] += 1;
        scene.come_back().map_err(at)
    })?;
    eprintln!("F10: {hits:?} trials by steps; {calls} calls were recorded and checked");
    Ok(trials)
}

/// How many records a journal without damage has behind its snapshot.
fn records(journal: &Path) -> Result<u64, String> {
    let loaded = Directory::open(journal).and_then(|directory| directory.load());
    let found = loaded.map_err(|error| error.to_string())?.found;
    match found.iter().find(|found| !found.is_whole || !found.damage.is_empty()) {
        Some(found) => Err(format!("a damaged journal: {:?}", found.damage)),
        None if found.is_empty() => Err("no journal".into()),
        None => Ok(found.iter().map(|found| found.records().count() as u64).sum()),
    }
}
