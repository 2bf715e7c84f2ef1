//! `syncctl run` when something around it is missing, frozen, killed or interrupted: the exit code
//! says what happened, and no command goes on without its lock.
#![cfg(unix)]

mod support;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, Stdio},
    ptr,
    thread::sleep,
    time::Duration,
};

use support::{House, code, eventually, is_alive, kill, shell_code, socket};

const PROGRAM: &str = env!("CARGO_BIN_EXE_syncctl");

/// A standard error whose reader is closed.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn an_empty_name_is_wrong_usage_and_nothing_is_run() {
    let house = House::new();
    let witness = house.dir.path().join("witness");
    for arguments in [&["run", ""][..], &["run", "--semaphore", "2", ""]] {
        let mut command = house.command(arguments);
        command.args(["--", "touch"]).arg(&witness);
        assert_eq!(code(&command.output().unwrap()), Some(2), "{arguments:?}");
    }
    for arguments in [&["show", ""][..], &["release", "--force", ""]] {
        assert_eq!(code(&house.syncctl(arguments)), Some(2), "{arguments:?}");
    }
    assert!(!witness.exists());
}

#[test]
fn a_closed_standard_error_changes_no_exit_code() {
    let house = House::new();
    let (mut holder, _) = house.start("a", "echo up; sleep 60");
    for flag in ["--no-wait", "--timeout=10ms"] {
        let mut command = house.command(&["run", "-v", "a", flag, "--", "true"]);
        command.stderr(broken_pipe());
        assert_eq!(code(&command.output().unwrap()), Some(75), "{flag}");
    }
    let closed = "exec \"$0\" --socket \"$1\" run a -n -- true 2>&- >&-";
    let mut command = Command::new("sh");
    command.args(["-c", closed, PROGRAM]).arg(socket(house.dir.path()));
    assert_eq!(code(&command.output().unwrap()), Some(75));
    kill(holder.id(), libc::SIGTERM);
    holder.wait().unwrap();
}

#[test]
fn a_lost_lock_stops_the_command_and_its_children_with_stderr_closed() {
    let house = House::new();
    let mut command = house.command(&["run", "a", "--", "sh", "-c"]);
    command.arg("trap '' TERM; sleep 60 & echo $!; wait; sleep 60").stderr(broken_pipe());
    let mut child = command.spawn().unwrap();
    let mut grandchild = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut grandchild).unwrap();
    assert!(house.syncctl(&["release", "--force", "a"]).status.success());
    assert_eq!(shell_code(child.wait().unwrap()), Some(74));
    eventually("the grandchild is dead", || !is_alive(grandchild.trim()));
}

#[test]
fn a_killed_syncctl_ends_its_commands_children() {
    let house = House::new();
    let (mut child, grandchild) = house.start("a", "sleep 60 & echo $!; wait; true");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the grandchild is dead", || !is_alive(&grandchild));
}

#[test]
fn a_syncctl_killed_with_its_process_group_ends_its_commands_children() {
    let house = House::new();
    let mut command =
        house.command(&["run", "a", "--", "sh", "-c", "sleep 60 & echo $!; wait; true"]);
    let mut child = command.process_group(0).spawn().unwrap();
    let mut grandchild = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut grandchild).unwrap();
    // SAFETY: a plain system call on a group of this test.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
    child.wait().unwrap();
    eventually("the grandchild is dead", || !is_alive(grandchild.trim()));
}

#[test]
fn background_processes_of_the_command_go_on() {
    let house = House::new();
    let (mut child, left) = house.start("a", "sleep 60 >&- 2>&- & echo $!");
    assert!(child.wait().unwrap().success());
    assert!(is_alive(&left));
    kill(left.parse().unwrap(), libc::SIGKILL);
}

#[test]
fn without_descriptors_it_says_so_and_runs_nothing() {
    let house = House::new();
    for limit in 4..12 {
        let mut command = Command::new("/bin/sh");
        // Descriptors that the test inherited count as well.
        let close = "for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>&-\"; done";
        let script =
            format!("{close}; ulimit -n {limit}; exec \"$0\" --socket \"$1\" run a -- true");
        command.args(["-c", &script, PROGRAM]).arg(socket(house.dir.path()));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{limit}: {said}");
        let code = output.status.code();
        assert!(
            code == Some(0) || said.contains("Too many open files"),
            "{limit}: {code:?} {said}"
        );
    }
}

#[test]
fn a_lock_lost_just_before_the_end_is_reported() {
    let house = House::new();
    let force = "exec \"$0\" --socket \"$1\" release --force a";
    let mut command = house.command(&["run", "a", "--", "sh", "-c", force, PROGRAM]);
    let output = command.arg(socket(house.dir.path())).output().unwrap();
    assert_eq!(code(&output), Some(74), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_nested_lock_has_its_own_abandonment() {
    let house = House::new();
    let (mut holder, _) = house.start("outer", "echo up; sleep 60");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let script = "printf '%s ' \"${SYNCD_ABANDONED+left} $SYNCD_LOCK\"; \
                  \"$0\" --socket \"$1\" run inner -- sh -c 'echo \"${SYNCD_ABANDONED-none} $SYNCD_LOCK\"'";
    let mut command = house.command(&["run", "outer", "--", "sh", "-c", script, PROGRAM]);
    let output = command.arg(socket(house.dir.path())).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "left outer none inner\n");
}

#[test]
fn it_ends_by_the_signal_that_ended_its_command() {
    let house = House::new();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let (mut child, command) = house.start("a", "echo $$; exec sleep 60");
        kill(command.parse().unwrap(), number);
        assert_eq!(child.wait().unwrap().signal(), Some(number));
        assert_eq!(house.json(&["ls", "--busy"]), serde_json::json!([]));
    }
    let (mut child, _) = house.start("a", "echo up; exec sleep 60");
    kill(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM), "passed on");
}

#[test]
fn releasing_to_a_stopped_daemon_can_be_interrupted() {
    let house = House::new();
    let (mut child, command) = house.start("a", "echo $$; exec sleep 60");
    kill(house.daemon.id(), libc::SIGSTOP);
    kill(command.parse().unwrap(), libc::SIGTERM);
    eventually("it is gone", || {
        kill(child.id(), libc::SIGINT);
        sleep(Duration::from_millis(20));
        child.try_wait().unwrap().is_some()
    });
    let status = child.wait().unwrap();
    kill(house.daemon.id(), libc::SIGCONT);
    assert_eq!(status.signal(), Some(libc::SIGINT));
    let next = house.syncctl(&["run", "a", "--", "sh", "-c", "echo ${SYNCD_ABANDONED-given back}"]);
    assert_eq!(String::from_utf8_lossy(&next.stdout), "given back\n");
}

#[test]
fn a_command_is_run_with_sigchld_ignored() {
    let house = House::new();
    let mut command = house.command(&["run", "a", "--", "sh", "-c", "exit 7"]);
    // SAFETY: a plain system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        });
    }
    assert_eq!(code(&command.output().unwrap()), Some(7));
}

/// A shell loop; each round prints a line at its start.
const LOOP: &str =
    "for round in 1 2 3; do echo round; \"$0\" --socket \"$1\" run a -- sleep 60; done";

#[test]
fn one_signal_to_the_group_ends_a_loop_around_it() {
    let house = House::new();
    let mut shell = Command::new("bash");
    shell.args(["-c", LOOP, PROGRAM]).arg(socket(house.dir.path())).process_group(0);
    let mut shell = shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it is held", || house.json(&["ls", "--busy"])[0]["holders"] == 1);
    // SAFETY: a plain system call on a group of this test.
    unsafe { libc::kill(-(shell.id() as libc::pid_t), libc::SIGINT) };
    let mut said = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(shell.wait().unwrap().signal(), Some(libc::SIGINT));
    assert_eq!(said, "round\n");
}

#[cfg(target_os = "linux")]
#[test]
fn one_ctrl_c_at_a_terminal_ends_a_loop_around_it() {
    let house = House::new();
    let (mut terminal, line) = open_terminal();
    let mut shell = Command::new("bash");
    shell.args(["-c", LOOP, PROGRAM]).arg(socket(house.dir.path()));
    shell.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(line);
    // SAFETY: plain system calls between fork and exec.
    unsafe {
        shell.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    let mut child = shell.spawn().unwrap();
    // The command's copies of the terminal's other end would keep it open.
    drop(shell);
    let sleeps = || {
        let holder = &house.json(&["ls", "--busy"])[0]["holder"]["pid"];
        let group = holder.as_u64().and_then(command_of);
        // SAFETY: a plain system call.
        group.is_some_and(|group| unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) } == group)
    };
    eventually("the command has the terminal", sleeps);
    terminal.write_all(b"\x03").unwrap();
    let mut said = Vec::new();
    // It ends with an error once no process has the terminal open.
    let _ = terminal.read_to_end(&mut said);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
    let said = String::from_utf8_lossy(&said);
    assert_eq!(said.matches("round").count(), 1, "{said}");
}

/// The child of `pid` that leads a process group of its own and its parent's session.
#[cfg(target_os = "linux")]
fn command_of(pid: u64) -> Option<libc::pid_t> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let children = children.split_whitespace().filter_map(|pid| pid.parse::<libc::pid_t>().ok());
    // SAFETY: plain system calls.
    let mut children = children
        .filter(|&child| unsafe { libc::getpgid(child) == child && libc::getsid(child) != child });
    children.next()
}

#[cfg(target_os = "linux")]
fn open_terminal() -> (File, File) {
    let (mut terminal, mut line) = (-1, -1);
    // SAFETY: it writes two new descriptors, owned by this function.
    unsafe {
        let (name, termios, size) = (ptr::null_mut(), ptr::null(), ptr::null());
        assert_eq!(libc::openpty(&mut terminal, &mut line, name, termios, size), 0);
        for descriptor in [terminal, line] {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (OwnedFd::from_raw_fd(terminal).into(), OwnedFd::from_raw_fd(line).into())
    }
}

#[test]
fn watch_goes_on_with_the_next_daemon_and_says_what_may_be_missed() {
    let mut house = House::new();
    let mut watch = house.command(&["--json", "watch"]).spawn().unwrap();
    let stdout = watch.stdout.take().unwrap();
    let (line, lines) = std::sync::mpsc::channel::<serde_json::Value>();
    std::thread::spawn(move || {
        for text in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = line.send(serde_json::from_str(&text).unwrap());
        }
    });
    // Makes events until one is seen.
    let sees = |house: &House, kind: &str| {
        eventually(kind, || {
            assert!(house.syncctl(&["run", "l", "--", "true"]).status.success());
            lines.try_iter().any(|line| line["kind"] == kind)
        });
    };
    sees(&house, "granted");
    house.daemon.kill().unwrap();
    house.daemon.wait().unwrap();
    let mut next = house.command(&["daemon", "--log", "error"]);
    house.daemon = next.stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually("the next daemon", || house.syncctl(&["status"]).status.success());
    sees(&house, "daemon_away");
    sees(&house, "granted");
    watch.kill().unwrap();
    let said = String::from_utf8(watch.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("may have been missed"), "{said}");
}
