//! F4: whether the tests are blind. Bugs are made in the broker on purpose, one at a time, and each
//! must be seen by a test that is there for a reason of its own. A test that fails without a bug says
//! nothing, so each is made without one, too. Never here: a test of one bug.

use std::{collections::BTreeMap, fmt, panic, process::Command, time::Instant};

use syncd_core::sabotage::{self, Bug};

use crate::{
    daemon::program,
    faults::{named, set_seed},
    panics::caught,
    simulator, system,
};

/// A test that may see a bug, and how much of it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Test {
    /// F1: random lives beside the model.
    Lives,
    /// The whole system under one seed.
    System,
    /// F14, simulated.
    Waits,
    /// F15, simulated.
    Deadlocks,
    /// F2.
    SmallWorld,
    /// A fault of real daemons, by its name, and its trials.
    Fault(&'static str, u64),
}

use Test::{Deadlocks, Fault, Lives, SmallWorld, System, Waits};

/// Who sees the core, quick ones first.
const OF_THE_CORE: [Test; 5] = [Lives, System, Waits, Deadlocks, SmallWorld];
/// Who sees the journal, restarts and the sessions of real daemons.
const OF_THE_DAEMON: [Test; 5] =
    [Fault("F10t", 1000), Fault("F12b", 6), Fault("F9", 10), Fault("F3", 8), Fault("F11a", 10)];
/// Calls in a life.
const CALLS: usize = 200;
/// More states than the small world has.
const CAP: usize = 1_000_000;
/// Lines of a trace that are shown.
const LINES: usize = 12;

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lives => write!(f, "F1"),
            System => write!(f, "whole system"),
            Waits => write!(f, "F14 simulated"),
            Deadlocks => write!(f, "F15 simulated"),
            SmallWorld => write!(f, "F2"),
            Fault(name, _) => write!(f, "{name}"),
        }
    }
}

/// What a test says of a broker that it finds wrong.
struct Finding {
    test: Test,
    seed: u64,
    /// How much had to happen.
    after: String,
    why: String,
    trace: Vec<String>,
}

impl Finding {
    /// Of a text that may begin with `seed N: `, whose first line is what is wrong.
    fn of(test: Test, text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        let first = lines.next().unwrap_or_default();
        let told = first.strip_prefix("seed ").and_then(|rest| rest.split_once(": "));
        let told = told.and_then(|(seed, why)| Some((seed.parse().ok()?, why.to_owned())));
        let (seed, why) = told.unwrap_or((1, first));
        let trace: Vec<String> = lines.collect();
        let trial = why.split_once("trial ").and_then(|(_, rest)| {
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
        });
        let after = match (test, trial) {
            (SmallWorld, _) => format!("{} calls", trace.len()),
            (_, Some(trial)) => format!("{} trials", trial + 1),
            _ => format!("{seed} trials"),
        };
        Self { test, seed, after, why, trace }
    }
}

impl Test {
    /// What it finds, in so many runs from the first seed on.
    fn look(self, runs: u64) -> Option<Finding> {
        let test = self;
        match self {
            Lives => simulator::simulate(1, runs, CALLS).err().map(|found| Finding {
                test,
                seed: found.seed,
                after: format!("{} calls", found.calls.len()),
                why: found.failure.why,
                trace: found.calls.iter().map(|call| format!("{call:?}")).collect(),
            }),
            System => system::simulate(1, runs).err().map(|found| Finding {
                test,
                seed: found.seed,
                after: format!("{} events", found.lines.len()),
                why: found.why,
                trace: found.lines,
            }),
            Waits => simulator::storm(1, runs).err().map(|text| Finding::of(test, &text)),
            Deadlocks => simulator::deadlocks(1, runs).err().map(|text| Finding::of(test, &text)),
            SmallWorld => {
                let explored = simulator::explore(false, CAP);
                explored.err().map(|text| Finding::of(test, &text))
            }
            Fault(name, _) => {
                let fault = named(name).expect("a known fault");
                set_seed(1);
                let held = caught(|| (fault.run)(runs));
                held.err().map(|text| Finding::of(test, &text))
            }
        }
    }

    /// So much of it is made, at most.
    fn runs(self) -> u64 {
        match self {
            Lives => 2000,
            System => 20_000,
            Waits => 50_000,
            Deadlocks => 5000,
            SmallWorld => 1,
            Fault(_, trials) => trials,
        }
    }

    /// As much of it, without a bug, as it took to see one.
    fn control(self, most: u64) -> u64 {
        match self {
            Lives | System => most,
            // Storms of up to 40.
            Waits => self.runs().min(most * 40),
            Deadlocks => self.runs().min(most),
            SmallWorld | Fault(..) => self.runs(),
        }
    }
}

/// Who may see it.
fn tests_for(bug: Bug) -> &'static [Test] {
    match bug {
        Bug::TornRecordAccepted
        | Bug::ToldBeforeRecord
        | Bug::LivingHolderLoses
        | Bug::AnySecretWillDo => &OF_THE_DAEMON,
        _ => &OF_THE_CORE,
    }
}

/// Makes each bug, and shows it to the tests until one sees it; or, `all`, to all that may see it.
/// A table goes to stdout, how far it is to stderr; the traces follow the table.
///
/// # Errors
/// Which of them nobody sees, or what is seen without any.
pub fn look(all: bool) -> Result<(), String> {
    can_be_made()?;
    // That a broker panics is one way of seeing it, and is told with its seed.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let looked = look_at_each(all);
    panic::set_hook(hook);
    looked
}

fn look_at_each(all: bool) -> Result<(), String> {
    let (mut unseen, mut traces) = (vec![], vec![]);
    let mut most = BTreeMap::new();
    println!("| bug | what is wrong | seen by | seed | after | what is seen |");
    println!("|---|---|---|---|---|---|");
    for &bug in Bug::ALL {
        let begun = Instant::now();
        let mut findings: Vec<Finding> = vec![];
        let mut blind = vec![];
        sabotage::choose(Some(bug));
        for test in tests_for(bug) {
            eprint!("{}: {test} ... ", bug.name());
            match test.look(test.runs()) {
                Some(found) => findings.push(found),
                None => blind.push(test.to_string()),
            }
            if !all && !findings.is_empty() {
                break;
            }
        }
        sabotage::choose(None);
        eprintln!("{:.1?}", begun.elapsed());
        let Some(first) = findings.first() else {
            println!("| {} | {} | **nobody** | | | |", bug.name(), bug.what());
            unseen.push(bug.name());
            continue;
        };
        for found in &findings {
            let known = most.entry(found.test).or_insert(0);
            *known = found.seed.max(*known);
        }
        let others: Vec<String> =
            findings[1..].iter().map(|found| found.test.to_string()).collect();
        let others =
            if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        let Finding { test, seed, after, why, .. } = first;
        println!(
            "| {} | {} | {test}{others} | {seed} | {after} | {} |",
            bug.name(),
            bug.what(),
            short(why)
        );
        traces.push((bug, findings.swap_remove(0)));
    }
    let mut alarms = vec![];
    let mut made = vec![];
    for (test, seed) in most {
        let runs = test.control(seed);
        eprintln!("without a bug: {test}, {runs} ...");
        made.push(format!("{test} {runs}"));
        alarms.extend(test.look(runs).map(|found| format!("{test}: {}", found.why)));
    }
    let alarm = if alarms.is_empty() { "nothing".into() } else { alarms.join("; ") };
    println!("| none | the same runs, without a bug | {} | | | {alarm} |", made.join(", "));
    println!("\n{} of {} are seen.", Bug::ALL.len() - unseen.len(), Bug::ALL.len());
    for (bug, Finding { why, trace, .. }) in traces {
        println!("\n{}: {why}", bug.name());
        let left_out = trace.len().saturating_sub(LINES);
        if left_out > 0 {
            println!("  ({left_out} lines before)");
        }
        trace[left_out..].iter().for_each(|line| println!("  {}", line.trim()));
    }
    match (unseen.is_empty(), alarms.is_empty()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("nobody sees {}", unseen.join(", "))),
        (_, false) => Err(format!("without a bug: {alarm}")),
    }
}

/// As a cell of a table.
fn short(why: &str) -> String {
    const MOST: usize = 160;
    let line: String = why.lines().next().unwrap_or_default().replace('|', "/");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

/// The daemon beside this program is built with them, too: one that doesn't know of a bug would be
/// taken for a broker that has none.
fn can_be_made() -> Result<(), String> {
    let mut daemon = Command::new(program("daemon"));
    let output = daemon.arg("--help").env("SYNCD_SABOTAGE", "no such bug").output();
    let output = output.map_err(|error| format!("{}: {error}", program("daemon").display()))?;
    if output.status.success() {
        return Err("the daemon beside this program has no bugs: build all programs with \
            --features sabotage, cargo build -p syncd-tests --features sabotage"
            .into());
    }
    Ok(())
}
