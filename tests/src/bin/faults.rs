//! Faults in their full count: `cargo run --release -p syncd-tests --bin faults -- --all`, or
//! `-- F5 F8 --trials 100`. Prints a Markdown table; fails if anything didn't hold.

use std::process::ExitCode;

use clap::Parser;
use syncd_tests::faults::FAULTS;

#[derive(Parser)]
struct Arguments {
    /// Which: F5, F6a ...; "F6" is both of them.
    faults: Vec<String>,
    /// Every one.
    #[arg(long)]
    all: bool,
    /// How many trials of each, instead of the page's number.
    #[arg(long)]
    trials: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = |name: &str| {
        arguments.all || arguments.faults.iter().any(|fault| name.starts_with(fault.as_str()))
    };
    let chosen: Vec<_> = FAULTS.iter().filter(|fault| wanted(fault.name)).collect();
    if chosen.is_empty() {
        eprintln!("which? --all, or one of: {}", FAULTS.map(|fault| fault.name).join(" "));
        return ExitCode::from(2);
    }
    println!("| | fault | trials | held |\n|---|---|---|---|");
    let mut failed = false;
    for fault in chosen {
        let trials = arguments.trials.unwrap_or(fault.trials);
        match (fault.run)(trials) {
            Ok(held) => println!("| {} | {} | {held} | all |", fault.name, fault.what),
            Err(why) => {
                failed = true;
                println!("| {} | {} | {trials} | **no**: {why} |", fault.name, fault.what);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
