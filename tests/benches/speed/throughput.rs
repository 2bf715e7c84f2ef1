//! S4 and S5: how much goes through the daemon when there is always more to do: by one
//! connection, and by 64 processes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use syncd_client::{Client, Lock};

use crate::{
    Lab,
    daemon::{Daemon, runtime},
    latency,
    raw::Crowd,
    stack,
    table::{Goal, Unit},
    wire::{Wire, acquire, granted, lock, release},
    worker::{Worker, answer},
};

const PROCESSES: u32 = 64;
const DEPTH: u32 = 128;
const DEPTH_OF_MANY: u32 = 16;
/// From asking to measuring: all have got going.
const LEAD: Duration = Duration::from_millis(200);
const SPAN: Duration = Duration::from_millis(800);

/// A span of time, the same in all processes, and what was done in it.
pub struct Window {
    start: Instant,
    end: Instant,
    count: AtomicU64,
}

impl Window {
    /// From a worker's question: its start in microseconds of the Unix epoch, and its length.
    pub fn asked(asked: &[u64]) -> Window {
        let &[start, micros] = asked else { panic!("when, and for how long?") };
        let start = SystemTime::UNIX_EPOCH + Duration::from_micros(start);
        let ahead = start.duration_since(SystemTime::now()).unwrap_or_default();
        let start = Instant::now() + ahead;
        let end = start + Duration::from_micros(micros);
        Window { start, end, count: AtomicU64::new(0) }
    }

    /// Counts so many; false at the end.
    pub fn count(&self, done: u64) -> bool {
        let now = Instant::now();
        if now >= self.start && now < self.end {
            self.count.fetch_add(done, Relaxed);
        }
        now < self.end
    }

    /// How many a second.
    pub fn rate(&self) -> f64 {
        self.count.load(Relaxed) as f64 / (self.end - self.start).as_secs_f64()
    }
}

/// The rate of each, over the same span of time.
pub fn rates(workers: &mut [Worker]) -> Vec<f64> {
    let start = SystemTime::now() + LEAD;
    let start = start.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros();
    for worker in &mut *workers {
        worker.tell(&[start as u64, SPAN.as_micros() as u64]);
    }
    workers.iter_mut().map(|worker| worker.answer()[0]).collect()
}

/// S4: one connection.
pub fn pipelined(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let stack = stack::Stack::start(lab.dir.path());
    let depth = DEPTH.to_string();
    let mut ours = [daemon.client("tasks", &["own", &depth])];
    let mut by_hand = [daemon.client("by-hand", &[&depth])];
    let mut bare = [stack.client("by-hand", &[&depth])];
    let [ours, by_hand, bare] =
        lab.rounds([&mut || rates(&mut ours), &mut || rates(&mut by_hand), &mut || {
            rates(&mut bare)
        }]);
    let work = "pipelined acquire + release pairs on one connection, async client";
    lab.row("S4", work, Unit::Rate, &ours[0]).goal(Goal::AtLeast(500_000.0));
    let work = "the same, messages written by hand";
    lab.row("S4", work, Unit::Rate, &by_hand[0]).against("bare gRPC stack", &bare[0]);
}

/// S5: 64 processes, on locks of their own and on one lock, one request at a time and 16.
pub fn fan_in(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let mut alone = [daemon.client("tasks", &["alone", &DEPTH.to_string()])];
    let mut crowd = Crowd::echo(lab.dir.path(), PROCESSES);
    for (locks, common) in [("locks of their own", false), ("one lock", true)] {
        for (how, one_at_a_time) in [("one at a time", true), ("16 at once", false)] {
            let role = match (one_at_a_time, common) {
                (true, _) => "closed-loop",
                (false, true) => "tasks-on-one",
                (false, false) => "tasks",
            };
            let depth = DEPTH_OF_MANY.to_string();
            let mut clients: Vec<_> = (0..PROCESSES)
                .map(|number| {
                    let name = if common { "common".into() } else { format!("{role}-{number}") };
                    daemon.client(role, &[&name, &depth])
                })
                .collect();
            let [fan, one, raw] =
                lab.rounds([&mut || fan(&mut clients), &mut || rates(&mut alone), &mut || {
                    fan(&mut crowd.clients)
                }]);
            let work = format!("64 processes on {locks}, {how}, all together");
            lab.row("S5", &work, Unit::Rate, &fan[0])
                .against("S4", &one[0])
                .goal(Goal::RatioAtLeast(0.6));
            if one_at_a_time {
                lab.row("S5", &work, Unit::Rate, &fan[0])
                    .against("raw echo, 64 processes", &raw[0]);
            }
            if common {
                let work = format!("64 processes on {locks}, {how}, largest share by smallest");
                lab.row("S5", &work, Unit::Share, &fan[1]).goal(Goal::AtMost(1.1));
            }
        }
    }
}

/// The sum of the rates, and the largest by the smallest.
fn fan(workers: &mut [Worker]) -> Vec<f64> {
    let rates = rates(workers);
    let largest = rates.iter().copied().fold(0.0, f64::max);
    let smallest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    vec![rates.iter().sum(), largest / smallest]
}

/// Role: one pair after the other, with the blocking client.
pub fn closed_loop(path: &str, name: &str) {
    let lock = latency::client(path).lock(name).expect("a lock");
    answer(|asked| {
        let window = Window::asked(asked);
        while window.count(1) {
            drop(lock.acquire().expect("the daemon serves"));
        }
        vec![window.rate()]
    });
}

/// Role: so many tasks at once, each with a lock of its own, or all with the same one.
pub fn tasks(path: &str, name: &str, depth: &str, common: bool) {
    let runtime = runtime();
    let depth: u32 = depth.parse().expect("a number of tasks");
    let locks: Vec<Lock> = runtime.block_on(async {
        let endpoint = path.parse().expect("a short path");
        let client = Client::builder().endpoint(endpoint).auto_start(false);
        let client = client.connect().await.expect("the daemon serves");
        let mut locks = Vec::new();
        for task in 0..depth {
            let name = if common { name.into() } else { format!("{name}-{task}") };
            locks.push(client.lock(&name).await.expect("a lock"));
        }
        locks
    });
    answer(|asked| {
        let window = Arc::new(Window::asked(asked));
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for lock in locks.clone() {
                let window = window.clone();
                tasks.spawn(async move {
                    while window.count(1) {
                        drop(lock.acquire().await.expect("the daemon serves"));
                    }
                });
            }
            tasks.join_all().await;
        });
        vec![window.rate()]
    });
}

/// Role: so many pairs at once by as many owners of one session, in as few frames as can be.
pub fn by_hand(path: &str, depth: &str) {
    let runtime = runtime();
    let depth: u64 = depth.parse().expect("a number of pairs");
    let mut wire = runtime.block_on(Wire::open(path));
    let mut handles = Vec::new();
    for number in 0..depth {
        handles.push(runtime.block_on(wire.create(&format!("by-hand-{number}"), lock())));
    }
    answer(|asked| {
        let window = Window::asked(asked);
        runtime.block_on(async {
            while window.count(depth) {
                handles.iter().for_each(|&handle| wire.push(acquire(handle, 1)));
                for &handle in &handles {
                    let token = granted(wire.next().await);
                    wire.push(release(handle, 1, token));
                }
            }
        });
        vec![window.rate()]
    });
}
