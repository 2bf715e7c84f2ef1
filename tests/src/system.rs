//! The whole system under one seed: real client protocols, links that are late, cut and lose
//! what was under way, and the daemon's core with its outboxes, in one thread without sockets or
//! a clock. A witness that knows only what clients called, what passed the daemon's door and
//! what clients were told checks that no promise is broken.
//!
//! A run is a [`Plan`], drawn from its seed, and a world that lives it: `world` has the parts and
//! the scheduler, `process`, `owner` and `calls` the clients, `link` the connections, `harm` what goes wrong, `daemon`
//! and `broker` the daemon; `settle` heals the world, has everybody leave and looks at what is
//! left; `witness` checks; `sabotage` makes faults that the witness must see.

mod broker;
mod calls;
mod daemon;
mod harm;
mod link;
mod owner;
mod plan;
mod process;
mod sabotage;
mod settle;
mod trace;
mod witness;
mod world;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Instant,
};

pub use plan::{Chaos, Kind, Plan};
pub use sabotage::Bug;
pub use witness::Count;
use world::World;

use crate::panics::caught;

/// `Err` says what is wrong.
type Checked = Result<(), String>;

/// A run that went wrong, as small as it could be made.
#[derive(Debug)]
pub struct Counterexample {
    /// Makes the run again that was shrunk to this.
    pub seed: u64,
    /// What it is made of.
    pub plan: Plan,
    /// What is wrong.
    pub why: String,
    /// What happened, to the end.
    pub lines: Vec<String>,
}

impl std::fmt::Display for Counterexample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        writeln!(f, "{:?}", self.plan)?;
        write!(f, "seed {}: {}", self.seed, self.why)
    }
}

/// What became of a run.
struct Lived {
    result: Checked,
    count: Count,
    hash: u64,
    lines: Vec<String>,
}

fn live(plan: &Plan, bug: Option<Bug>, reading: bool) -> Lived {
    // Where the protocol's clock begins makes no difference to what happens.
    let mut world = World::new(plan, bug, Instant::now(), reading);
    let result = caught(|| {
        world.furnish()?;
        world.live()?;
        world.settle()
    });
    Lived {
        result,
        count: world.witness.count,
        hash: world.trace.hash(),
        lines: world.trace.into_lines(),
    }
}

/// Makes `runs` runs, beginning with that of `seed`, on as many threads as there are processors.
///
/// # Errors
/// One that went wrong, shrunk.
pub fn simulate(seed: u64, runs: u64) -> Result<Count, Box<Counterexample>> {
    let (next, failed) = (AtomicU64::new(seed), AtomicBool::new(false));
    let work = || {
        let mut count = Count::default();
        loop {
            let seed_ = next.fetch_add(1, Relaxed);
            if seed_ >= seed + runs || failed.load(Relaxed) {
                return Ok(count);
            }
            let lived = live(&Plan::draw(seed_), None, false);
            if lived.result.is_err() {
                failed.store(true, Relaxed);
                return Err(seed_);
            }
            count.add(&lived.count);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<Result<Count, u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    });
    let mut all = Count::default();
    for count in done {
        all.add(&count.map_err(|seed| Box::new(shrink(seed, None)))?);
    }
    Ok(all)
}

/// A hash of everything that happens in the run of a seed.
pub fn trace(seed: u64) -> u64 {
    live(&Plan::draw(seed), None, false).hash
}

/// The first of the seeds in which the bug is seen, and what was seen of it.
pub fn hunt(bug: Bug, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| {
        let lived = live(&Plan::draw(seed), Some(bug), false);
        lived.result.err().map(|why| (seed, why))
    })
}

/// Leaves out of a failing run what can be left out.
pub fn shrink(seed: u64, bug: Option<Bug>) -> Counterexample {
    let mut plan = Plan::draw(seed);
    let mut tries = 0;
    'smaller: loop {
        for smaller in plan.smaller() {
            tries += 1;
            if tries < 3000 && live(&smaller, bug, false).result.is_err() {
                plan = smaller;
                continue 'smaller;
            }
        }
        break;
    }
    let lived = live(&plan, bug, true);
    let why = lived.result.err().unwrap_or_else(|| "it went well the next time".to_owned());
    Counterexample { seed, plan, why, lines: lived.lines }
}
