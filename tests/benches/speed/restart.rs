//! S10 and S11: what it costs that a killed daemon loses nothing, and how soon the next one
//! serves. And how long a caller waits while a daemon is replaced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use syncd_client::Client;

use crate::{
    Lab,
    daemon::{Daemon, raise_descriptors, runtime},
    table::{Goal, Unit},
    throughput::rates,
    wire::{Wire, acquire, lock},
    worker::answer,
};

const STEPS: u64 = 20_000;
const DEPTH: &str = "128";
const OBJECTS: u64 = 1_000_000;
/// Each on a connection of its own, for which there must be descriptors.
const SESSIONS: u64 = 3_000;
/// The most that wait while a daemon is replaced.
const MANY: u64 = 10_000;
/// So many of them take turns while the daemon is replaced.
const TAKERS: u64 = 100;
/// Before and after a daemon is replaced.
const QUIET: Duration = Duration::from_secs(2);

/// S10: S1 and S4 with the journal and without.
pub fn journal(lab: &mut Lab) {
    let kept = Daemon::start(lab.dir.path());
    let bare = Daemon::start_without_journal(lab.dir.path());
    let mut pairs = [&kept, &bare].map(|daemon| daemon.client("uncontended", &[]));
    let [on, off] = &mut pairs;
    let [on, off] = lab.rounds([&mut || on.ask(&[STEPS]), &mut || off.ask(&[STEPS])]);
    lab.row("S10", "uncontended acquire + release, journal on", Unit::Time, &on[0])
        .against("journal off", &off[0])
        .goal(Goal::RatioAtMost(1.05));
    let mut pipelined = [&kept, &bare].map(|daemon| [daemon.client("by-hand", &[DEPTH])]);
    let [on, off] = &mut pipelined;
    let [on, off] = lab.rounds([&mut || rates(on), &mut || rates(off)]);
    lab.row("S10", "pipelined pairs by hand, journal on", Unit::Rate, &on[0])
        .against("journal off", &off[0])
        .goal(Goal::RatioAtLeast(0.95));
}

/// S11: from the start of a daemon to its first answer, with all that was kept.
pub fn restart(lab: &mut Lab) {
    let mut daemon = Daemon::start(lab.dir.path());
    let mut creator = daemon.client("creator", &[]);
    creator.ask(&[OBJECTS, 0]);
    let mut crowd = daemon.client("crowd", &[]);
    crowd.ask(&[SESSIONS]);
    let times: Vec<f64> = (0..lab.rounds)
        .map(|_| {
            daemon.kill();
            let begun = Instant::now();
            daemon.start_again();
            first_answer(daemon.path());
            begun.elapsed().as_nanos() as f64
        })
        .collect();
    let work = "restart with 1,000,000 objects and 3,000 sessions, to the first answer";
    lab.row("S11", work, Unit::Time, &times).goal(Goal::AtMost(1e9));
}

/// How long who acquires and releases waits at most while the daemon is replaced, and so does who is
/// handed a lock then; each of the others waits in a queue by a client of its own.
pub fn replace(lab: &mut Lab) {
    let mut daemon = Daemon::start(lab.dir.path());
    // The daemon lets one user have a sixth of its descriptors.
    let sessions = MANY.min(raise_descriptors() / 6 - 50);
    let mut queuers = daemon.client("queuers", &[]);
    queuers.ask(&[sessions]);
    let path = daemon.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let watching = [Work::Own, Work::Queue].map(|work| {
        let (path, stop) = (path.clone(), stop.clone());
        let slowest = Arc::new(AtomicU64::new(0));
        let theirs = slowest.clone();
        let thread = thread::spawn(move || work.watch(&path, &theirs, &stop));
        (slowest, thread)
    });
    let rounds: Vec<[f64; 2]> = (0..lab.rounds)
        .map(|_| {
            thread::sleep(QUIET);
            watching.iter().for_each(|(slowest, _)| slowest.store(0, Relaxed));
            daemon.replace();
            // Until all are there again.
            thread::sleep(QUIET);
            watching.each_ref().map(|(slowest, _)| slowest.load(Relaxed) as f64)
        })
        .collect();
    stop.store(true, Relaxed);
    watching.into_iter().for_each(|(_, thread)| thread.join().expect("it only watches"));
    for (at, work) in
        ["slowest acquire + release", "slowest turn in a queue of 100"].iter().enumerate()
    {
        let times: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        let work =
            format!("{work} while the daemon is replaced, with {sessions} sessions that wait");
        let row = lab.row("replace", &work, Unit::Time, &times);
        if at == 0 {
            row.goal(Goal::AtMost(50e6));
        }
    }
}

/// What is watched.
#[derive(Clone, Copy)]
enum Work {
    /// A lock that nobody else wants.
    Own,
    /// A semaphore through which a hundred others wait: one permit more for each turn.
    Queue,
}

impl Work {
    fn watch(self, path: &str, slowest: &AtomicU64, stop: &AtomicBool) {
        let endpoint: syncd_proto::Endpoint = path.parse().expect("a short path");
        let connect = || {
            let builder = Client::builder().endpoint(endpoint.clone()).auto_start(false);
            builder.connect_blocking().expect("a daemon listens")
        };
        let client = connect();
        let own = client.lock("watched").expect("a lock");
        let (go, went) = (
            client.semaphore("go", 0).expect("permits"),
            client.semaphore("went", 0).expect("permits"),
        );
        while !stop.load(Relaxed) {
            let begun = Instant::now();
            match self {
                Work::Own => drop(own.acquire().expect("a grant")),
                Work::Queue => {
                    go.release().expect("a release");
                    went.acquire_unowned().expect("somebody went");
                }
            }
            slowest.fetch_max(begun.elapsed().as_nanos() as u64, Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Role: so many clients, each in a task that waits; a hundred of them take turns by a semaphore.
pub fn queuers(path: &str) {
    raise_descriptors();
    // It goes on while nobody asks.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime starts");
    let endpoint: syncd_proto::Endpoint = path.parse().expect("a short path");
    answer(|asked| {
        runtime.block_on(async {
            for number in 0..asked[0] {
                let builder = Client::builder().endpoint(endpoint.clone()).auto_start(false);
                let client = builder.connect().await.expect("the daemon listens");
                if number < TAKERS {
                    let go = client.semaphore("go", 0).await.expect("permits");
                    let went = client.semaphore("went", 0).await.expect("permits");
                    tokio::spawn(async move {
                        let _client = client;
                        loop {
                            go.acquire_unowned().await.expect("a permit");
                            went.release().await.expect("a release");
                        }
                    });
                } else {
                    let event = client.event("never").await.expect("an event");
                    tokio::spawn(async move {
                        let _client = client;
                        event.wait().await.expect("it is never set");
                    });
                }
            }
        });
        Vec::new()
    });
}

/// Role: so many sessions, each with a lock of its own.
pub fn crowd(path: &str) {
    raise_descriptors();
    let runtime = runtime();
    let mut crowd: Vec<Wire> = Vec::new();
    answer(|asked| {
        runtime.block_on(async {
            for number in 0..asked[0] {
                let mut wire = Wire::open(path).await;
                let handle = wire.create(&format!("own-{number}"), lock()).await;
                wire.push(acquire(handle, 1));
                wire.next().await;
                crowd.push(wire);
            }
        });
        Vec::new()
    });
}

/// A session and a lock, from whoever listens there by now.
fn first_answer(path: &str) {
    let endpoint: syncd_proto::Endpoint = path.parse().expect("a short path");
    let client = loop {
        let builder = Client::builder().endpoint(endpoint.clone()).auto_start(false);
        if let Ok(client) = builder.connect_blocking() {
            break client;
        }
    };
    drop(client.lock("first").expect("a lock").acquire().expect("it is free"));
}
