//! The whole system under one seed, in a bounded share. The full count, or one run again:
//! `cargo run --release -p syncd-tests --bin simulate -- --system --runs 20000 --seed 1`.

use syncd_tests::system::{Bug, hunt, simulate, trace};

/// Rules R1, R3, R5, R6, R7, R24, R26, R28, R30, R31, R32, R34, R36, R37, R38, R39, R45, R46,
/// R47, R48, R49, R50, R51, R52, R64, over links that are late, cut and resumed.
#[test]
fn no_promise_is_broken_whatever_is_late_cut_or_killed() {
    let count = simulate(1, 20_000).unwrap_or_else(|counterexample| panic!("{counterexample}"));
    println!("{count:?}");
    let enough = [
        (count.granted, 20_000),
        (count.undone, 1_000),
        (count.resumed, 5_000),
        (count.restarted, 5_000),
        (count.died, 2_000),
        (count.abandoned, 2_000),
        (count.taken, 500),
        (count.notified, 300),
        (count.passed, 500),
        (count.unowned, 2_000),
    ];
    for (at, (was, least)) in enough.into_iter().enumerate() {
        assert!(was >= least, "the {at}th of {count:?}: the runs are too empty to say anything");
    }
}

/// A run can be made again by its seed.
#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..100 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

/// What sees nothing proves nothing: each fault that is made on purpose shows in some run.
#[test]
fn every_bug_is_seen() {
    let unseen = |bug: &&Bug| match hunt(**bug, 1..4_000) {
        Some((seed, why)) => {
            println!("{bug:?}: seed {seed}: {why}");
            false
        }
        None => true,
    };
    let unseen: Vec<&Bug> = Bug::ALL.iter().filter(unseen).collect();
    assert!(unseen.is_empty(), "nobody sees {unseen:?}");
}
