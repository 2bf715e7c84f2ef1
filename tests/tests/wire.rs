//! What comes over the wire and should not. Attacks below the messages (floods, resets, slow
//! readers, too many connections) are the daemon's own tests, `server/tests/hostile.rs`.

use syncd_tests::fuzz::bad_input;

/// F18 in a bounded share; in full: `cargo run -p syncd-tests --bin faults -- F18`. Rule R62.
#[test]
fn bad_input_is_refused_by_name_and_touches_nobody_else() {
    let sent = bad_input(20_000).unwrap_or_else(|why| panic!("{why}"));
    assert!(sent >= 20_000);
}
