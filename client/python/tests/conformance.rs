//! Plays `tests/conformance/*.script` on the Python package and its daemon. This file lists the
//! cases that Python's API can't express, and why.

mod site;

use std::path::Path;

use site::{here, interpreter, python, site};
use syncd_tests::{
    conformance::{play_all, suite},
    daemon::Daemon,
    process_driver::{Face, ProcessDriver},
    script::Needs,
};

const NO_DEADLOCK: &str = "a circle waits, as in multiprocessing: no acquire asks to fail instead";
const NO_FORGET: &str = "a permit is taken unowned or owned, and stays what it is";
const NO_GOODBYE: &str = "a process's session ends with the process";
const NO_OPTIONS: &str = "no constructor has `keep` or `poison`";
const NO_STALE: &str = "as multiprocessing's, a release has no token: one too many is a bare one";
const NO_ANSWER: &str = "a Semaphore's release is sent and not answered";

/// The cases that Python's API can't express, by title.
const BEYOND: [(&str, &str); 22] = [
    ("a chain is no circle", NO_DEADLOCK),
    ("a circle of three names every edge", NO_DEADLOCK),
    ("a semaphore is no edge", NO_DEADLOCK),
    ("a wait for a notify is no edge", NO_DEADLOCK),
    ("one owner who waits for itself is a circle of one", NO_DEADLOCK),
    ("owners of one session can be a circle", NO_DEADLOCK),
    ("the way back into the lock is an edge", NO_DEADLOCK),
    ("two owners in a circle are found, and the newest is refused", NO_DEADLOCK),
    ("a session that leaves abandons what it holds", NO_GOODBYE),
    ("a session that leaves with nothing in hand is missed by nobody", NO_GOODBYE),
    ("a named object goes with its last reference", NO_GOODBYE),
    ("a kept object stays with its state", NO_OPTIONS),
    ("a consistent lock after a death is as any other", NO_OPTIONS),
    ("a lock let go unmarked is refused to all, in the queue too", NO_OPTIONS),
    ("a poisoned lock is healed by anybody while it is free", NO_OPTIONS),
    ("the next owner's death is one more abandonment, not poison", NO_OPTIONS),
    ("a release by force takes from all who hold", NO_STALE),
    ("a release by token ends that hold alone", NO_STALE),
    ("anybody may release a lock, and its holder learns of it", NO_STALE),
    ("a forgotten permit is nobody's", NO_FORGET),
    ("a hold that is gone can't be forgotten", NO_FORGET),
    ("the largest semaphore can't be released beyond its value", NO_ANSWER),
];

#[test]
fn the_python_package_conforms() {
    let mut cases = suite(&here().join("../../tests/conformance"));
    for (title, why) in BEYOND {
        let before = cases.len();
        cases.retain(|case| case.title != title);
        assert_eq!(cases.len() + 1, before, "no such case, or two: {title:?} ({why})");
    }
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let arguments = vec!["-IB".into(), path(&here().join("tests/actor.py")), path(site())];
    let face = Face { ability: Needs::Api, program: interpreter(), arguments };
    let played = play_all(&cases, || ProcessDriver::of(face.clone(), "", daemon));
    assert!(played > 50, "only {played} cases were played");
}

/// The default namespace is the package's only one.
fn daemon() -> Daemon {
    let mut command = python(Path::new(""));
    command.env_remove("SYNCD_SOCKET").args(["-m", "syncd"]);
    Daemon::start_by(command)
}
