//! The namespace of a command: shared or private, by flag or environment.
#![cfg(unix)]

mod support;

use std::process::Output;

use serde_json::Value;
use support::{House, code};

fn house() -> House {
    House::with(&["--share", "jobs"])
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// Runs a command under a lock, and returns who saw it where.
fn namespaces(house: &House) -> Vec<String> {
    let status = house.json(&["status"]);
    let all = status["namespaces"].as_array().unwrap().iter();
    all.map(|one| one["namespace"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_shared_namespace_is_used_or_the_command_refused() {
    let house = house();
    let run = |namespace: &str| {
        house.syncctl(&["--namespace", namespace, "run", "a", "--", "echo", "ran"])
    };
    assert_eq!(text(&run("shared/jobs")), "ran\n");
    let refused = run("shared/job");
    assert_eq!(code(&refused), Some(69), "{}", text(&refused));
    assert!(text(&refused).contains("'shared/job' isn't shared"), "{}", text(&refused));
    assert!(!text(&refused).contains("ran"));
    let looked = house.syncctl(&["--namespace", "shared/job", "ls"]);
    assert_eq!(code(&looked), Some(1));
    assert!(text(&looked).contains("isn't shared"), "{}", text(&looked));
}

#[test]
fn a_misspelt_shared_namespace_is_pointed_out() {
    let house = house();
    let run = |namespace: &str| {
        let ran = house.syncctl(&["--namespace", namespace, "run", "a", "--", "echo", "ran"]);
        assert_eq!((code(&ran), &*ran.stdout), (Some(0), &b"ran\n"[..]), "{namespace}");
        String::from_utf8(ran.stderr).unwrap()
    };
    let told = run("job");
    assert!(told.contains("\"job\" is private") && told.contains("shared/jobs"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    for meant in ["jobs", "shared/jobs", "", "nightly"] {
        assert_eq!(run(meant), "", "{meant}");
    }
}

#[test]
fn a_control_character_in_a_name_is_refused() {
    let house = house();
    for name in ["a\nb", "a\u{1b}[2J"] {
        let refused = house.syncctl(&["--namespace", name, "run", "a", "--", "echo", "ran"]);
        assert!(!refused.status.success() && !text(&refused).contains("ran"));
        assert!(text(&refused).contains("control character"), "{}", text(&refused));
    }
}

#[test]
fn the_environment_names_the_default_namespace() {
    let house = house();
    let holder = |arguments: &[&str]| {
        let mut command = house.command(arguments);
        command.env("SYNCD_NAMESPACE", "mine").args(["run", "a", "--", "sh", "-c"]);
        command.arg("\"$0\" --socket \"$1\" --namespace '' --json status");
        command.arg(env!("CARGO_BIN_EXE_syncctl")).arg(support::socket(house.dir.path()));
        let status: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        status["namespaces"][0]["namespace"].as_str().unwrap().to_owned()
    };
    assert!(holder(&[]).ends_with("/mine"));
    assert!(holder(&["--namespace", "other"]).ends_with("/other"), "a flag wins");
    assert_eq!(holder(&["--namespace", "shared/jobs"]), "shared/jobs");
    assert_eq!(namespaces(&house), [""; 0], "all gone");
}
