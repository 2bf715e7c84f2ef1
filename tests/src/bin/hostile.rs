//! An attacker: `hostile SOCKET ATTACK SEED`. What it does is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match syncd_tests::hostility::attacker(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(usage) => {
            eprintln!("hostile: {usage}");
            ExitCode::from(2)
        }
    }
}
