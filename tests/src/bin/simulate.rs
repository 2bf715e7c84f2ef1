//! F1 in its full count: `cargo run --release -p syncd-tests --bin simulate -- --runs 20000`.
//! Takes `--runs`, `--calls` and `--seed`; prints the shrunk counterexample, if there is one.

use std::process::ExitCode;

use syncd_tests::simulator::simulate;

fn main() -> ExitCode {
    let (mut runs, mut calls, mut seed) = (20_000, 200, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (flag.as_str(), value) {
            ("--runs", Some(value)) => runs = value,
            ("--calls", Some(value)) => calls = value as usize,
            ("--seed", Some(value)) => seed = value,
            _ => {
                eprintln!("usage: simulate [--runs N] [--calls N] [--seed N]");
                return ExitCode::from(2);
            }
        }
    }
    match simulate(seed, runs, calls) {
        Ok(outputs) => {
            println!("{runs} lives of {calls} calls: {outputs} outputs, as the model says");
            ExitCode::SUCCESS
        }
        Err(counterexample) => {
            println!("{counterexample}");
            ExitCode::FAILURE
        }
    }
}
