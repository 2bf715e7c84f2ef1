//! A daemon that is killed and comes back, as its clients see it: not at all. The daemon is the
//! tests' own, whose state is in the memory of the test; the witnesses are flags, counters, files
//! under flock(2) and tokens, none of which the daemon knows.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use syncd_client::{
    AcquireError, Client, Endpoint, SessionError,
    proto::v1::{EventSpec, create::Spec},
    raw::{self, Object},
};
use syncd_tests::{
    crowd::{Crowd, daemon_at, signal},
    daemon::{eventually, program},
    phoenix::Phoenix,
};

/// Kills the daemon until all is done, and has it back after a while that differs.
fn kill_until(phoenix: &mut Phoenix, done: impl Fn() -> bool) -> u64 {
    let mut kills = 0;
    while !done() {
        thread::sleep(Duration::from_millis(3 + kills * 7 % 20));
        phoenix.die();
        thread::sleep(Duration::from_millis([0, 1, 5, 30][kills as usize % 4]));
        phoenix.rise();
        kills += 1;
    }
    kills
}

#[test]
fn threads_and_tasks_take_turns_whatever_becomes_of_the_daemon() {
    let mut phoenix = Phoenix::start();
    let crowd = Crowd::of(|| phoenix.builder());
    let kills = kill_until(&mut phoenix, || crowd.is_done());
    crowd.check(kills, phoenix.builder());
}

/// Real daemons, killed or told to leave, started again by whoever misses them.
#[test]
fn a_real_daemon_that_is_killed_is_started_by_its_clients_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let endpoint: Endpoint = socket.to_str().unwrap().parse().unwrap();
    let builder =
        || Client::builder().endpoint(endpoint.clone()).daemon(program("daemon"), [""; 0]);
    // It is there before a crowd comes, each of which would start it.
    let watcher = builder().connect_blocking().unwrap();
    let lock = watcher.lock("watched").unwrap();
    let crowd = Crowd::of(builder);
    let mut kills = 0;
    let mut times = Vec::new();
    while !crowd.is_done() {
        thread::sleep(Duration::from_millis(20 + kills * 7 % 40));
        let Some(pid) = daemon_at(&socket) else { continue };
        signal(pid, if kills % 4 == 3 { libc::SIGTERM } else { libc::SIGKILL });
        let since = Instant::now();
        drop(lock.acquire().unwrap());
        times.push(since.elapsed());
        kills += 1;
    }
    times.sort();
    let middle = times.get(times.len() / 2);
    println!(
        "from the kill to the next grant: {middle:?} in the middle, {:?} at most",
        times.last()
    );
    crowd.check(kills, builder());
    let last = daemon_at(&socket).unwrap();
    drop((lock, watcher));
    signal(last, libc::SIGTERM);
    eventually("its end", || daemon_at(&socket).is_none().then_some(()));
}

/// A daemon that is replaced while they work, by hand and by SIGHUP in turn.
#[test]
fn a_daemon_that_is_replaced_is_never_missed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let endpoint: Endpoint = socket.to_str().unwrap().parse().unwrap();
    let builder = || Client::builder().endpoint(endpoint.clone()).auto_start(false);
    let log = dir.path().join("log");
    let mut starts = 0;
    let mut start = |replace: &[&str]| {
        starts += 1;
        let mut command = Command::new(program("daemon"));
        command.arg("--socket").arg(&socket).args(replace).stdin(Stdio::null());
        command.arg("--log-file").arg(&log).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut daemons = vec![start(&[])];
    let crowd = eventually("a daemon", || daemon_at(&socket).map(|_| Crowd::of(builder)));
    let lock = builder().connect_blocking().unwrap().lock("watched").unwrap();
    let mut times = Vec::new();
    while times.len() < 20 || !crowd.is_done() {
        thread::sleep(Duration::from_millis(20));
        let before = daemon_at(&socket).unwrap();
        daemons.push(start(&["--replace"]));
        eventually("the next one", || {
            let since = Instant::now();
            drop(lock.acquire().unwrap());
            times.push(since.elapsed());
            (daemon_at(&socket)? != before).then_some(())
        });
    }
    times.sort();
    println!("a lock was had within {:?} at most, {} replaced", times.last(), daemons.len() - 1);
    let replaced = daemons.len() as u64 - 1;
    let mut last = daemons.pop().unwrap();
    for mut daemon in daemons {
        let status = eventually("its end", || daemon.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", fs::read_to_string(&log).unwrap());
    }
    crowd.check(replaced, builder());
    drop(lock);
    signal(last.id().cast_signed(), libc::SIGTERM);
    assert!(last.wait().unwrap().success());
}

#[test]
fn whoever_misses_it_first_starts_it_and_nobody_else_does() {
    const KILLS: usize = 10;
    let mut phoenix = Phoenix::start();
    let starts = phoenix.file("starts");
    let script = format!("echo >> {}; exec sleep 1", starts.display());
    let builder = || {
        let builder = Client::builder().endpoint(phoenix.endpoint());
        builder.daemon("sh", ["-c", &*script]).connect_blocking().unwrap()
    };
    let holder = builder();
    let waiters: Vec<_> = (0..5).map(|_| builder()).collect();
    let started = || fs::read_to_string(&starts).map_or(0, |starts| starts.lines().count());
    for kill in 1..=KILLS {
        let name = format!("l{kill}");
        let guard = holder.lock(&name).unwrap().acquire().unwrap();
        let waiting: Vec<_> = waiters
            .iter()
            .map(|waiter| {
                let lock = waiter.lock(&name).unwrap();
                thread::spawn(move || drop(lock.acquire().unwrap()))
            })
            .collect();
        phoenix.die();
        let since = Instant::now();
        eventually("a start", || (started() >= kill).then_some(()));
        println!("missed and started after {:?}", since.elapsed());
        phoenix.rise();
        drop(guard);
        waiting.into_iter().for_each(|waiter| waiter.join().unwrap());
        println!("granted after {:?}", since.elapsed());
        assert_eq!(started(), kill);
    }
}

#[test]
fn a_time_out_is_as_long_as_it_says_though_there_is_no_daemon() {
    let mut phoenix = Phoenix::start();
    let client = phoenix.builder().connect_blocking().unwrap();
    let other = phoenix.builder().connect_blocking().unwrap();
    let (lock, theirs) = (client.lock("l").unwrap(), other.lock("l").unwrap());
    let guard = theirs.acquire().unwrap();
    phoenix.die();
    let late = lock.acquire_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(late, AcquireError::TimedOut { .. }), "{late}");
    phoenix.rise();
    // What was given up is nobody's; what is held is still held.
    assert!(lock.try_acquire().unwrap().is_none());
    assert!(guard.is_valid());
    guard.release().unwrap();
    drop(lock.acquire().unwrap());
}

#[test]
fn what_is_released_while_it_is_away_is_free_when_it_is_back() {
    let mut phoenix = Phoenix::start();
    let other = phoenix.builder().connect_blocking().unwrap();
    let (theirs, items) = (other.lock("l").unwrap(), other.semaphore("items", 0).unwrap());
    for _ in 0..5 {
        let client = phoenix.builder().connect_blocking().unwrap();
        let (lock, mine) = (client.lock("l").unwrap(), client.semaphore("items", 0).unwrap());
        let guard = lock.acquire().unwrap();
        phoenix.die();
        drop(guard);
        (0..100).for_each(|_| mine.release().unwrap());
        phoenix.rise();
        // Nobody waits at that client, and it makes no call.
        drop(theirs.acquire().unwrap());
        (0..100).for_each(|_| items.acquire_unowned().unwrap());
    }
    assert_eq!(items.value().unwrap(), 0);
}

#[test]
fn a_client_that_goes_while_it_is_away_keeps_nothing() {
    let mut phoenix = Phoenix::start();
    let other = phoenix.builder().connect_blocking().unwrap();
    let client = phoenix.builder().connect_blocking().unwrap();
    let guard = client.lock("l").unwrap().acquire().unwrap();
    phoenix.die();
    drop((guard, client));
    phoenix.rise();
    drop(other.lock("l").unwrap().acquire().unwrap());
}

#[test]
fn a_client_that_gives_up_leaves_nothing_behind() {
    let mut phoenix = Phoenix::start();
    let builder = phoenix.builder().restart_timeout(Duration::ZERO);
    // The grace is the least that it waits.
    let client = builder.connect_blocking().unwrap();
    let guard = client.lock("l").unwrap().acquire().unwrap();
    phoenix.die();
    let why = client.lost().unwrap();
    assert!(!guard.is_valid(), "{why}");
    phoenix.rise();
    drop(client.lock("l").unwrap().acquire().unwrap());
}

extern "C" fn ignore(_: libc::c_int) {}

/// As Ctrl-C does in Python.
#[test]
fn a_signal_that_comes_while_there_is_no_daemon_may_end_the_wait() {
    let mut phoenix = Phoenix::start();
    let client = raw::client(phoenix.builder()).unwrap();
    let event = Object::create(client.object("e"), Spec::Event(EventSpec {}), None);
    let event = event.wait(&mut || false).unwrap().event();
    phoenix.die();
    let (id, ids) = mpsc::channel();
    let waiting = thread::spawn(move || {
        // SAFETY: it only asks.
        id.send(unsafe { libc::pthread_self() }).unwrap();
        Object::set(&event).wait(&mut || true)
    });
    let thread = ids.recv().unwrap();
    // SAFETY: the handler does nothing, and the thread has not been joined.
    unsafe {
        libc::signal(libc::SIGUSR2, ignore as *const () as libc::sighandler_t);
        while !waiting.is_finished() {
            libc::pthread_kill(thread, libc::SIGUSR2);
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(matches!(waiting.join().unwrap(), Err(SessionError::Interrupted)));
}

fn flock(file: &Path) -> String {
    // Who can't have the file's lock at once was let in beside another one.
    format!("flock -n {0} sh -c 'echo in; sleep 0.05; echo x >> {0}.count'", file.display())
}

#[test]
fn commands_run_on_and_in_turns() {
    const COMMANDS: usize = 12;
    let mut phoenix = Phoenix::start();
    let file = phoenix.file("witness");
    let commands: Vec<_> = (0..COMMANDS)
        .map(|_| {
            let mut command = Command::new(program("ctl"));
            command.arg("--socket").arg(phoenix.endpoint().as_path());
            command.args(["run", "l", "--", "sh", "-c", &flock(&file)]);
            command.env("SYNCD_NO_AUTOSTART", "1").stdin(Stdio::null()).stdout(Stdio::piped());
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let waiting: Vec<_> = commands
        .into_iter()
        .map(|command| thread::spawn(move || command.wait_with_output().unwrap()))
        .collect();
    // A new one finds a daemon only while there is one.
    thread::sleep(Duration::from_millis(300));
    let kills = kill_until(&mut phoenix, || waiting.iter().all(|waiting| waiting.is_finished()));
    println!("{kills} kills");
    for waiting in waiting {
        let output = waiting.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"in\n");
    }
    let count = fs::read_to_string(phoenix.file("witness.count")).unwrap();
    assert_eq!(count.lines().count(), COMMANDS);
}
