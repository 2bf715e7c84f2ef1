//! S10 and S11: what it costs that a killed daemon loses nothing, and how soon the next one
//! serves.

use std::time::Instant;

use syncd_client::blocking::Client;

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
