//! F1 in its full count: `cargo run --release -p syncd-tests --bin simulate -- --runs 20000`. Takes
//! `--runs`, `--calls` and `--seed`; prints the shrunk counterexample, if there is one. `--system`
//! runs the whole system instead of the core beside its model, and takes `--runs` and `--seed`.

use std::process::ExitCode;

use syncd_tests::{simulator, system};

fn main() -> ExitCode {
    let (mut runs, mut calls, mut seed, mut whole) = (20_000, 200, 1, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--system" {
            whole = true;
            continue;
        }
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (flag.as_str(), value) {
            ("--runs", Some(value)) => runs = value,
            ("--calls", Some(value)) => calls = value as usize,
            ("--seed", Some(value)) => seed = value,
            _ => {
                eprintln!("usage: simulate [--system] [--runs N] [--calls N] [--seed N]");
                return ExitCode::from(2);
            }
        }
    }
    let outcome = if whole {
        system::simulate(seed, runs)
            .map(|count| format!("{runs} runs of the whole system went well: {count:#?}"))
            .map_err(|counterexample| counterexample.to_string())
    } else {
        simulator::simulate(seed, runs, calls)
            .map(|outputs| {
                format!("{runs} lives of {calls} calls: {outputs} outputs, as the model says")
            })
            .map_err(|counterexample| counterexample.to_string())
    };
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}
