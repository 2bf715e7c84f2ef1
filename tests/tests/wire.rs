//! What comes over the wire and should not. Attacks below the messages (floods, resets, slow
//! readers, too many connections) are the daemon's own tests, `server/tests/hostile.rs`.

use syncd_tests::{
    conformance::split_token,
    daemon::{Daemon, WATCHDOG, program},
    fuzz::bad_input,
    process_driver::{ActorProcess, Face},
    script::Needs,
};

/// F18 in a bounded share; in full: `cargo run -p syncd-tests --bin faults -- F18`. Rule R62.
#[test]
fn bad_input_is_refused_by_name_and_touches_nobody_else() {
    let sent = bad_input(20_000).unwrap_or_else(|why| panic!("{why}"));
    assert!(sent >= 20_000);
}

/// Rule R11.
#[test]
fn the_same_name_in_two_namespaces_is_two_objects() {
    let daemon = Daemon::start(&[]);
    let (program, arguments) = (program("actor"), vec!["wire".into()]);
    let face = Face { ability: Needs::Wire, program, arguments };
    let mut actors = vec![];
    for namespace in ["one", "other"] {
        let mut actor = ActorProcess::start(&face, &daemon, namespace);
        actor.tell("object door Lock").unwrap();
        actor.tell("0 acquire door").unwrap();
        let heard = actor.hear(0, WATCHDOG).unwrap();
        assert_eq!(split_token(&heard).0, "granted", "{namespace}");
        assert_eq!(daemon.sessions(namespace).len(), 1);
        actors.push(actor);
    }
}
