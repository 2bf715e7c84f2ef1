//! S1 and S3: how long one caller waits for a free lock, and for its turn.

use syncd_client::blocking::{Client, Semaphore};

use crate::{
    Lab,
    daemon::Daemon,
    raw::Pair,
    table::{Goal, Unit},
    worker::{Worker, answer, p50},
};

const STEPS: u64 = 20_000;
const SLOW_STEPS: u64 = 2_000;

/// S1: acquire and release of a lock that nobody else wants.
pub fn uncontended(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let mut ours = daemon.client("uncontended", &[]);
    let mut echo = Pair::echo(lab.dir.path());
    let (mut manager, mut native) = rivals("lock");
    let [ours, echo, manager, native] = lab.rounds([
        &mut || ours.ask(&[STEPS]),
        &mut || echo.p50(STEPS),
        &mut || ask(&mut manager, SLOW_STEPS),
        &mut || ask(&mut native, STEPS),
    ]);
    let work = "uncontended acquire + release, blocking client";
    lab.row("S1", work, Unit::Time, &ours[0])
        .against("raw echo", &echo[0])
        .goal(Goal::RatioAtMost(2.6));
    for (name, figures) in [("Manager().Lock", manager), ("multiprocessing.Lock", native)] {
        if let [figures] = &figures[..] {
            lab.row("S1", work, Unit::Time, &ours[0]).against(name, figures);
        }
    }
}

/// S3: from one process's release of a semaphore to the other's acquire.
pub fn handoff(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let _pong = daemon.client("pong", &[]);
    let mut ping = daemon.client("ping", &[]);
    let mut relay = Pair::relay(lab.dir.path());
    let (mut manager, mut native) = rivals("semaphores");
    let [ours, relay, manager, native] = lab.rounds([
        &mut || ping.ask(&[STEPS]),
        &mut || relay.handoff(STEPS),
        &mut || ask(&mut manager, SLOW_STEPS),
        &mut || ask(&mut native, STEPS),
    ]);
    let work = "hand-off in ping-pong over two semaphores";
    let mut row = |name, figures: &[Vec<f64>], goal: Option<Goal>| {
        if let [figures] = figures {
            lab.row("S3", work, Unit::Time, &ours[0]).against(name, figures).goal = goal;
        }
    };
    row("raw relay", &relay, Some(Goal::RatioAtMost(2.4)));
    row("Manager().Semaphore", &manager, Some(Goal::RatioAtMost(0.2)));
    row("multiprocessing.Semaphore", &native, None);
}

/// Manager's and multiprocessing's own, or nobody without a python3.
fn rivals(work: &str) -> (Option<Worker>, Option<Worker>) {
    (Worker::python("manager", work), Worker::python("multiprocessing", work))
}

fn ask(rival: &mut Option<Worker>, steps: u64) -> Vec<f64> {
    rival.as_mut().map_or(Vec::new(), |rival| rival.ask(&[steps]))
}

/// The blocking client of a daemon.
pub fn client(path: &str) -> Client {
    let endpoint = path.parse().expect("a short path");
    Client::builder().endpoint(endpoint).auto_start(false).connect_blocking().expect("it serves")
}

/// Role: the median time of an uncontended acquire and release.
pub fn uncontended_client(path: &str) {
    let lock = client(path).lock("lock").expect("a lock");
    answer(|n| vec![p50(n[0], || drop(lock.acquire().expect("nobody else wants it")))]);
}

/// The semaphores of A and B, in the order of the caller.
fn semaphores(path: &str, names: [&str; 2]) -> [Semaphore; 2] {
    let client = client(path);
    names.map(|name| client.semaphore(name, 0).expect("a semaphore"))
}

/// Role: lets the other go on and waits for its own turn; the median of half that time.
pub fn ping(path: &str) {
    let [ours, theirs] = semaphores(path, ["a", "b"]);
    answer(|n| {
        let cycle = p50(n[0], || {
            theirs.release().expect("room for one");
            ours.acquire_unowned().expect("the other lets go");
        });
        vec![cycle / 2.0]
    });
}

/// Role: the other of [`ping`].
pub fn pong(path: &str) {
    let [ours, theirs] = semaphores(path, ["b", "a"]);
    std::thread::spawn(move || while ours.acquire_unowned().is_ok() && theirs.release().is_ok() {});
    answer(|_| Vec::new());
}
