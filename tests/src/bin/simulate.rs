//! The simulations in their full count: `cargo run --release -p syncd-tests --bin simulate -- --all`.
//! A counterexample is shrunk, and printed with its seed.

use std::process::ExitCode;

use clap::Parser;
use syncd_tests::{simulator, system};

/// Plays the core, or the whole system, under one seed, and compares it with what it promises.
///
/// Each flag is a simulation; without one it is --lives. How far it is goes to stderr. The first
/// counterexample ends a simulation, with a failure, and is printed with its seed and as few calls
/// as show it: --seed SEED --runs 1 makes it again.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  simulate -- --all                        all of them, as often as the page of acceptance asks
  simulate -- --runs 20000                 F1: 20,000 lives of 200 calls
  simulate -- --system --seed 17 --runs 1  one run of the whole system again

--blind shows bugs to real daemons, too: build all programs first, cargo build --release -p
syncd-tests --features sabotage, then cargo run --release -p syncd-tests --features sabotage
--bin simulate -- --blind")]
struct Arguments {
    /// All of them; --blind if it is built with bugs.
    #[arg(long)]
    all: bool,
    /// F1: random lives of the core beside a naive model, restarts among the calls.
    #[arg(long)]
    lives: bool,
    /// F2: every interleaving of a small world.
    #[arg(long)]
    exhaustive: bool,
    /// F4: 20 bugs in the broker, made on purpose; which test sees which of them.
    #[arg(long)]
    blind: bool,
    /// F14: condition waits that are killed, timed out or cancelled.
    #[arg(long)]
    waits: bool,
    /// F15: circles of owners, and chains that are none.
    #[arg(long)]
    deadlocks: bool,
    /// Clients, links, daemon, restarts and time, instead of the core alone.
    #[arg(long)]
    system: bool,
    /// How many lives, waits, circles or runs, instead of the page's number.
    #[arg(long)]
    runs: Option<u64>,
    /// How many calls a life has.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Of the first life or run; the next ones follow it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

type Outcome = Result<String, String>;

/// A simulation: whether it is asked for, how often by the page, and what it does from a seed on.
type Simulation<'a> = (bool, u64, &'a dyn Fn(u64, u64) -> Outcome);

fn lives(seed: u64, runs: u64, calls: usize) -> Outcome {
    let mut outputs = 0;
    in_parts(seed, runs, |seed, runs| {
        outputs += simulator::simulate(seed, runs, calls).map_err(|found| found.to_string())?;
        Ok(())
    })?;
    Ok(format!("F1: {runs} lives of {calls} calls: {outputs} outputs, as the model says"))
}

fn whole_system(seed: u64, runs: u64) -> Outcome {
    let mut all = system::Count::default();
    in_parts(seed, runs, |seed, runs| {
        all.add(&system::simulate(seed, runs).map_err(|found| found.to_string())?);
        Ok(())
    })?;
    Ok(format!("the whole system: {runs} runs went well: {all:?}"))
}

fn small_world() -> Outcome {
    let mut texts = vec![];
    for poison in [false, true] {
        let explored = simulator::explore(poison, usize::MAX)?;
        texts.push(format!(
            "F2: a lock that {}: {explored:?}",
            ["is free then", "poisons"][usize::from(poison)]
        ));
    }
    Ok(texts.join("\n"))
}

#[cfg(feature = "sabotage")]
fn blind(all: bool) -> Outcome {
    syncd_tests::blind::look(all).map(|()| "F4: each bug is seen".into())
}

#[cfg(not(feature = "sabotage"))]
fn blind(_: bool) -> Outcome {
    Err("F4: it needs a build with --features sabotage".into())
}

/// A tenth at a time, so that one sees how far it is.
fn in_parts(
    seed: u64,
    runs: u64,
    mut part: impl FnMut(u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    let step = (runs / 10).max(1);
    for done in (0..runs).step_by(step as usize) {
        part(seed + done, step.min(runs - done))?;
        if runs >= 5000 {
            eprintln!("{} of {runs}", done + step.min(runs - done));
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let asked = Arguments::parse();
    let Arguments { all, exhaustive, waits, deadlocks, system, .. } = asked;
    let others = exhaustive || asked.blind || waits || deadlocks || system;
    let simulations: [Simulation<'_>; 6] = [
        (asked.lives || !others, 20_000, &|seed, runs| lives(seed, runs, asked.calls)),
        (exhaustive, 1, &|_, _| small_world()),
        (asked.blind || (all && cfg!(feature = "sabotage")), 1, &|_, _| blind(true)),
        (waits, 1_000_000, &|seed, waits| {
            simulator::storm(seed, waits)?;
            Ok(format!("F14: {waits} waits: no notify lost or doubled"))
        }),
        (deadlocks, 100_000, &|seed, trials| {
            simulator::deadlocks(seed, trials)?;
            Ok(format!("F15: {trials} circles found, and as many chains taken for none"))
        }),
        (system, 20_000, &whole_system),
    ];
    let mut went_well = true;
    for (at, (is_asked, page, simulation)) in simulations.into_iter().enumerate() {
        if !is_asked && (!all || at == 2) {
            continue;
        }
        let outcome = simulation(asked.seed, asked.runs.unwrap_or(page));
        went_well &= outcome.is_ok();
        let (Ok(text) | Err(text)) = outcome;
        println!("{text}");
    }
    if all && cfg!(not(feature = "sabotage")) {
        println!("F4: not tried: it needs a build with --features sabotage");
    }
    if went_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
