//! The simulator in a bounded share: core and model agree. The full count of F1:
//! `cargo run --release -p syncd-tests --bin simulate -- --runs 20000`.

use syncd_tests::simulator::{simulate, trace};

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
