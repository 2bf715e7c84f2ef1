//! Random lives of a small namespace, played on the core and on the naive model side by side: each
//! message and the whole state must agree after every call. A failing life is shrunk to a short
//! one.

mod ask;
mod circles;
mod compare;
mod explore;
mod generate;
mod play;
mod restart;
mod storm;
mod table;
mod translate;

pub use circles::deadlocks;
pub use explore::{Explored, explore};
pub use generate::{Call, Verb, World};
pub use play::{Failure, Player};
pub(crate) use restart::Kept;
pub use storm::storm;

/// A life that went wrong, as short as it could be made.
#[derive(Debug)]
pub struct Counterexample {
    /// Makes it again.
    pub seed: u64,
    /// How the world was made.
    pub world: World,
    /// What was done; the last call shows the failure.
    pub calls: Vec<Call>,
    /// What is wrong.
    pub failure: Failure,
}

impl std::fmt::Display for Counterexample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.failure.why)?;
        writeln!(f, "{:?}", self.world)?;
        self.calls.iter().try_for_each(|call| writeln!(f, "  {call:?}"))
    }
}

/// Lives `runs` lives of `calls` calls each, beginning with that of `seed`, and says how many
/// outputs were compared.
///
/// # Errors
/// The first that goes wrong, shrunk.
pub fn simulate(seed: u64, runs: u64, calls: usize) -> Result<u64, Box<Counterexample>> {
    let mut compared = 0;
    for seed in seed..seed + runs {
        let (world, life) = generate::life(seed, calls);
        let played = play::play(&world, &life);
        match played {
            Ok(played) => compared += played.outputs,
            Err(failure) => return Err(Box::new(shrink(seed, world, life, failure))),
        }
    }
    Ok(compared)
}

/// A hash of everything that the core puts out in the life of a seed.
///
/// # Panics
/// If the life goes wrong.
pub fn trace(seed: u64, calls: usize) -> u64 {
    let (world, life) = generate::life(seed, calls);
    play::play(&world, &life).expect("a good life").trace
}

/// Leaves out what can be left out, in ever smaller pieces.
fn shrink(seed: u64, world: World, mut calls: Vec<Call>, mut failure: Failure) -> Counterexample {
    calls.truncate(failure.at + 1);
    let mut piece = calls.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < calls.len() {
            let mut fewer = calls.clone();
            fewer.drain(from..(from + piece).min(calls.len()));
            match play::play(&world, &fewer) {
                Err(found) => {
                    fewer.truncate(found.at + 1);
                    (calls, failure) = (fewer, found);
                }
                Ok(_) => from += piece,
            }
        }
        piece /= 2;
    }
    Counterexample { seed, world, calls, failure }
}
