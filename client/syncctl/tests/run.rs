//! `syncctl run` with real processes: exit codes and ends. Rare conditions are in `edges.rs`.
#![cfg(unix)]

mod support;

use std::io::{BufRead as _, BufReader};

use serde_json::Value;
use support::{House, code, end_daemon, eventually, is_alive, kill, shell_code, syncctl};

#[test]
fn the_exit_code_is_the_commands_own_or_says_what_kept_it() {
    let house = House::new();
    let run = |args: &[&str]| code(&house.syncctl(&[&["run"], args].concat()));
    assert_eq!(run(&["a", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(run(&["a", "--", "sh", "-c", "kill -TERM $$"]), Some(128 + 15));
    assert_eq!(run(&["a", "--", "/no/such/command"]), Some(127));
    assert_eq!(run(&["a", "--", "/dev/null"]), Some(126));

    let (mut holder, _) = house.start("a", "echo up; sleep 60");
    assert_eq!(run(&["a", "--no-wait", "--", "true"]), Some(75));
    assert_eq!(run(&["a", "--timeout", "10ms", "-E", "9", "--", "true"]), Some(9));
    assert_eq!(run(&["--semaphore", "2", "a", "--", "true"]), Some(76));
    kill(holder.id(), libc::SIGTERM);
    assert_eq!(shell_code(holder.wait().unwrap()), Some(128 + 15));
    assert_eq!(run(&["a", "--", "true"]), Some(0));
}

#[test]
fn a_time_out_names_the_holder() {
    let house = House::new();
    let (mut holder, _) = house.start("a", "echo up; sleep 60");
    let refused = house.syncctl(&["run", "a", "--no-wait", "--", "true"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains(&format!("held by pid {}", holder.id())), "{text}");
    kill(holder.id(), libc::SIGTERM);
    holder.wait().unwrap();
}

#[test]
fn the_command_finds_its_lock_and_a_rising_token_in_its_environment() {
    let house = House::new();
    let print = "echo \"$SYNCD_LOCK $SYNCD_TOKEN${SYNCD_ABANDONED+ left}\"";
    let token = || {
        let output = house.syncctl(&["run", "a b", "--", "sh", "-c", print]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().strip_prefix("a b ").unwrap().parse::<u64>().unwrap()
    };
    assert!(token() < token());
}

#[test]
fn a_semaphore_admits_as_many_as_it_has_permits() {
    let house = House::new();
    let holders: Vec<_> = (0..2)
        .map(|_| {
            let mut command = house.command(&["run", "--semaphore", "2", "s", "--", "sh", "-c"]);
            let mut child = command.arg("echo up; sleep 60").spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            child
        })
        .collect();
    let third = house.syncctl(&["run", "--semaphore", "2", "s", "-n", "--", "true"]);
    assert_eq!(code(&third), Some(75));
    for mut holder in holders {
        kill(holder.id(), libc::SIGINT);
        holder.wait().unwrap();
    }
}

#[test]
fn signals_reach_the_command_which_decides() {
    let house = House::new();
    let script = "trap 'exit 5' USR1; echo up; while :; do sleep 0.01; done";
    let (mut child, _) = house.start("a", script);
    kill(child.id(), libc::SIGUSR1);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_lost_lock_stops_the_command_and_its_children_even_stubborn_ones() {
    let house = House::new();
    let script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60";
    for lose in [&["release", "--force", "a"][..], &["kick"]] {
        let (mut child, grandchild) = house.start("a", script);
        let session = child.id().to_string();
        let args = if lose.len() == 1 { vec![lose[0], &session] } else { lose.to_vec() };
        assert!(house.syncctl(&args).status.success());
        assert_eq!(child.wait().unwrap().code(), Some(74));
        eventually("the grandchild is dead", || !is_alive(&grandchild));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_syncctl_ends_its_command_and_the_next_owner_is_told() {
    let house = House::new();
    let (mut child, command) = house.start("a", "echo $$; exec sleep 60");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the command is dead", || !is_alive(&command));
    let next = house.syncctl(&["run", "a", "--", "sh", "-c", "echo $SYNCD_ABANDONED"]);
    let (told, warned) = (String::from_utf8(next.stdout), String::from_utf8(next.stderr));
    assert!(told.unwrap().starts_with(&format!("{} ", child.id())));
    assert!(warned.unwrap().contains("abandoned"));
    let after = house.syncctl(&["run", "a", "--", "sh", "-c", "echo $SYNCD_ABANDONED"]);
    assert_eq!((after.stdout, after.stderr), (b"\n".to_vec(), Vec::new()));
}

#[test]
fn holds_are_listed_while_they_last() {
    let house = House::new();
    let (mut child, _) = house.start("a", "echo up; sleep 60");
    assert_eq!(house.json(&["ls", "--busy"])[0]["holder"]["pid"], child.id());
    kill(child.id(), libc::SIGHUP);
    child.wait().unwrap();
    assert_eq!(house.json(&["ls", "--busy"]), Value::Array(Vec::new()));
}

#[test]
fn a_run_starts_a_daemon_and_an_inspection_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sub/syncd.sock");
    let status = syncctl(&socket).arg("status").output().unwrap();
    assert_eq!(code(&status), Some(69));
    assert!(String::from_utf8(status.stderr).unwrap().contains("no daemon at"));
    assert!(!socket.exists());

    let forbidden = syncctl(&socket)
        .env("SYNCD_NO_AUTOSTART", "1")
        .args(["run", "a", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(code(&forbidden), Some(69));

    let run = syncctl(&socket).args(["run", "a", "--", "true"]).output().unwrap();
    assert_eq!(code(&run), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    end_daemon(&socket);
    assert!(!socket.exists());
}
