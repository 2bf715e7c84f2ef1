//! Faults in their full count: `cargo run --release -p syncd-tests --bin faults -- --all`, or
//! `-- F5 F8 --trials 100`. Prints a Markdown table; fails if anything didn't hold.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use syncd_tests::faults::{FAULTS, set_seed};

/// Makes faults of real daemons and clients on purpose, and tells whether what was promised held.
///
/// Build what it starts first, with the same profile: `cargo build --release -p syncd-tests
/// --features failpoints`. A table goes to stdout, how far it is to stderr; it fails if anything
/// didn't hold.
#[derive(Parser)]
#[command(after_help = after_help())]
struct Arguments {
    /// Which: F5, F6a ...; "F6" is both of them.
    faults: Vec<String>,
    /// Every one, as often as the page of acceptance asks.
    #[arg(long)]
    all: bool,
    /// How many trials of each, instead of the page's number.
    #[arg(long)]
    trials: Option<u64>,
    /// What chance begins with: who is killed, when, and what the clients ask for. A failure names
    /// it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn after_help() -> String {
    let rows = FAULTS.map(|fault| {
        let needs = fault.needs.missing().map_or("".into(), |why| format!(" (not here: {why})"));
        format!("  {:5} {:>9}  {}{needs}", fault.name, fault.trials, fault.what)
    });
    format!(
        "Faults, and how many trials:\n{}\n\nExamples:\n  faults -- F9              the daemon is \
         killed 300 times\n  faults -- F3 --seed 17 --trials 1   one history again",
        rows.join("\n")
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = |name: &str| {
        let is = |fault: &String| {
            name.strip_prefix(fault.as_str())
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        };
        arguments.all || arguments.faults.iter().any(is)
    };
    let chosen: Vec<_> = FAULTS.iter().filter(|fault| wanted(fault.name)).collect();
    if chosen.is_empty() {
        eprintln!("which? --all, or one of: {}", FAULTS.map(|fault| fault.name).join(" "));
        return ExitCode::from(2);
    }
    set_seed(arguments.seed);
    println!("| | fault | trials | held |\n|---|---|---|---|");
    let mut failed = false;
    for fault in chosen {
        if let Some(missing) = fault.needs.missing() {
            println!("| {} | {} | 0 | not tried: {missing} |", fault.name, fault.what);
            continue;
        }
        eprintln!("{}: {} ...", fault.name, fault.what);
        let begun = Instant::now();
        let trials = arguments.trials.unwrap_or(fault.trials);
        let held = (fault.run)(trials);
        eprintln!("{}: {:.1?}", fault.name, begun.elapsed());
        match held {
            Ok(held) => println!("| {} | {} | {held} | all |", fault.name, fault.what),
            Err(why) => {
                failed = true;
                println!("| {} | {} | {trials} | **no**: {why} |", fault.name, fault.what);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
