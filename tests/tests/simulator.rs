//! The simulator in a bounded share: core and model agree. The full count of F1:
//! `cargo run --release -p syncd-tests --bin simulate -- --runs 20000`.

use syncd_tests::simulator::{deadlocks, explore, simulate, storm, trace};

/// Rules R2, R3, R4, R5, R9, R28, R29, R30, R31, R32, R60, R62, R63, among those of all kinds.
#[test]
fn the_core_does_what_the_naive_model_says() {
    let compared =
        simulate(1, 2_000, 200).unwrap_or_else(|counterexample| panic!("{counterexample}"));
    assert!(compared > 100_000, "{compared} outputs compared: the lives are empty");
}

/// Rule R61.
#[test]
fn the_same_calls_have_the_same_outputs() {
    for seed in 0..100 {
        assert_eq!(trace(seed, 200), trace(seed, 200), "seed {seed}");
    }
}

/// F2, but for the restart. Rules R30, R37, R42, R45, R47, R48.
#[test]
fn all_interleavings_of_a_small_world_are_right() {
    for poison in [false, true] {
        let explored = explore(poison, 1_000_000).unwrap_or_else(|why| panic!("{why}"));
        println!("{explored:?}");
        assert!(explored.states > 1_000, "{explored:?}: too small to say anything");
    }
}

/// F15, simulated. Rules R57, R58, R59.
#[test]
fn every_circle_is_found_with_all_its_edges_and_no_chain_is_taken_for_one() {
    deadlocks(1, 5_000).unwrap_or_else(|why| panic!("{why}"));
}

/// F14, simulated. Rules R46, R47, R48, R49.
#[test]
fn no_notify_is_lost_or_doubled_in_a_storm() {
    storm(1, 50_000).unwrap_or_else(|why| panic!("{why}"));
}
