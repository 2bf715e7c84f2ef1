//! What crosses the crates of syncd: the conformance suite and its drivers, a naive model of the
//! core and the simulator that compares the two, faults of real processes.

#[cfg(feature = "sabotage")]
pub mod blind;
pub mod conformance;
pub mod core_driver;
pub mod crowd;
pub mod daemon;
pub mod faults;
pub mod fuzz;
pub mod history;
pub mod hostility;
pub mod model;
mod panics;
pub mod phoenix;
pub mod process_driver;
pub mod script;
pub mod simulator;
mod steps;
pub mod system;
