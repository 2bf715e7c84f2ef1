//! The test cases, and the runner that takes their names as arguments.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio, exit},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use syncd_client::{Cause, ConnectError, Endpoint, StartError, blocking::Client};

use super::edges;

pub const WATCHDOG: Duration = Duration::from_secs(60);

pub fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--socket") {
        return serve(&args[at + 1]);
    }
    let cases: &[(&str, fn())] = &[
        ("a_child_has_no_part_in_its_parents_session", a_child_has_no_part_in_its_parents_session),
        ("a_child_works_with_inherited_objects", a_child_works_with_inherited_objects),
        ("a_child_may_drop_all_that_it_inherited", a_child_may_drop_all_that_it_inherited),
        ("a_child_may_fork_while_threads_wait", a_child_may_fork_while_threads_wait),
        ("a_killed_holder_is_named_to_the_next", a_killed_holder_is_named_to_the_next),
        ("a_daemon_is_started_once_for_many", a_daemon_is_started_once_for_many),
        ("a_daemon_that_cannot_start_says_why", a_daemon_that_cannot_start_says_why),
        ("nothing_is_started_where_that_is_forbidden", nothing_is_started_where_that_is_forbidden),
        (
            "a_producer_that_only_releases_is_never_stuck_and_loses_nothing",
            edges::a_producer_that_only_releases_is_never_stuck_and_loses_nothing,
        ),
        (
            "a_producer_is_held_up_by_a_stopped_daemon_and_nothing_is_lost",
            edges::a_producer_is_held_up_by_a_stopped_daemon_and_nothing_is_lost,
        ),
        (
            "unsent_releases_are_sent_when_the_socket_has_room",
            edges::unsent_releases_are_sent_when_the_socket_has_room,
        ),
        (
            "releases_lost_with_their_session_are_reported_once",
            edges::releases_lost_with_their_session_are_reported_once,
        ),
        (
            "a_time_out_bounds_the_call_when_the_daemon_is_stopped_or_gone",
            edges::a_time_out_bounds_the_call_when_the_daemon_is_stopped_or_gone,
        ),
        (
            "without_a_descriptor_left_waiting_threads_still_finish",
            edges::without_a_descriptor_left_waiting_threads_still_finish,
        ),
        (
            "a_child_keeps_no_descriptor_of_its_parents_session",
            edges::a_child_keeps_no_descriptor_of_its_parents_session,
        ),
        (
            "a_child_that_has_closed_all_descriptors_keeps_the_files_that_it_opened_since",
            edges::a_child_that_has_closed_all_descriptors_keeps_the_files_that_it_opened_since,
        ),
        (
            "a_dead_token_starts_no_daemon_and_makes_no_directory",
            edges::a_dead_token_starts_no_daemon_and_makes_no_directory,
        ),
        (
            "a_daemon_that_leaves_as_one_comes_is_tried_again_and_another_is_started",
            edges::a_daemon_that_leaves_as_one_comes_is_tried_again_and_another_is_started,
        ),
        (
            "a_signal_handler_may_make_a_call_while_its_thread_connects",
            edges::a_signal_handler_may_make_a_call_while_its_thread_connects,
        ),
        (
            "a_call_to_a_stopped_daemon_can_be_given_up",
            edges::a_call_to_a_stopped_daemon_can_be_given_up,
        ),
    ];
    if args.iter().any(|arg| arg == "--list") {
        return cases.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let is_wanted = |name: &str| {
        let mut words = wanted.iter().map(|word| word.as_str());
        wanted.is_empty() || words.any(|w| if exact { w == name } else { name.contains(w) })
    };
    for (name, case) in cases.iter().filter(|(name, _)| is_wanted(name)) {
        case();
        println!("test {name} ... ok");
    }
}

/// The daemon. Doesn't write to standard output, which is a pipe that its starter watches.
fn serve(socket: &str) {
    if let Some(words) = env::var_os("SYNCD_TEST_FAIL") {
        eprintln!("{}", words.display());
        exit(3);
    }
    if let Some(log) = env::var_os("SYNCD_TEST_COUNT") {
        let path = PathBuf::from(log).join(std::process::id().to_string());
        fs::write(path, "").unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = syncd::Config::new(socket.parse().unwrap());
    config.idle_exit = Some(Duration::from_millis(500));
    if let Err(error) = runtime.block_on(syncd::serve(config, std::future::pending())) {
        eprintln!("{error}");
        exit(1);
    }
}

pub struct Daemon {
    pub child: Child,
    pub endpoint: Endpoint,
    _dir: tempfile::TempDir,
}

impl Daemon {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint_in(dir.path());
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--socket", &endpoint.to_string()]).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        eventually(|| std::os::unix::net::UnixStream::connect(endpoint.as_path()).is_ok());
        Self { child, endpoint, _dir: dir }
    }

    pub fn client(&self) -> Client {
        let builder = Client::builder().endpoint(self.endpoint.clone()).auto_start(false);
        builder.connect_blocking().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn endpoint_in(dir: &Path) -> Endpoint {
    dir.join("syncd.sock").to_str().unwrap().parse().unwrap()
}

pub fn eventually(mut happens: impl FnMut() -> bool) {
    let end = Instant::now() + WATCHDOG;
    while !happens() {
        assert!(Instant::now() < end, "it never happens");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `act` in a forked child, and returns the child.
pub fn fork(act: impl FnOnce()) -> Forked {
    // SAFETY: the child ends with _exit, and runs what a child of fork may in practice.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the alarm ends a child that hangs.
            unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => Forked(pid),
    }
}

pub struct Forked(libc::pid_t);

impl Forked {
    pub fn wait(self) {
        assert_eq!(self.status(), 0, "the child failed");
    }

    fn status(self) -> libc::c_int {
        let mut status = -1;
        // SAFETY: the process is our child, and `status` is a valid pointer.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        status
    }
}

fn a_child_has_no_part_in_its_parents_session() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let lock = client.lock("l").unwrap();
    let guard = lock.acquire().unwrap();
    let session = client.session_id().unwrap();
    fork(|| {
        assert!(!guard.is_valid());
        assert!(lock.try_acquire().unwrap().is_none());
        assert_ne!(client.session_id().unwrap(), session);
        assert_eq!(lock.locked_by().unwrap().unwrap().process.session, session);
    })
    .wait();
    assert!(guard.is_valid());
    assert_eq!(client.session_id().unwrap(), session);
    guard.release().unwrap();
    fork(|| drop(lock.acquire().unwrap())).wait();
    drop(lock.acquire().unwrap());
}

fn a_child_works_with_inherited_objects() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let lock = client.anonymous().rlock().unwrap();
    let condition = client.anonymous().condition(&lock).unwrap();
    let turn = client.anonymous().event().unwrap();
    let mut guard = lock.acquire().unwrap();
    let child = fork(|| {
        let guard = lock.acquire().unwrap();
        turn.set().unwrap();
        assert!(condition.notify_one(&guard).unwrap());
        // A grandchild, too.
        drop(guard);
        fork(|| assert!(turn.is_set().unwrap())).wait();
    });
    condition.wait_while(&mut guard, || !turn.is_set().unwrap()).unwrap();
    drop(guard);
    child.wait();
}

fn a_child_may_drop_all_that_it_inherited() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let lock = client.lock("l").unwrap();
    let guard = lock.acquire().unwrap();
    // Only the guard keeps the session.
    drop((lock, client));
    let mut guard = Some(guard);
    fork(|| drop(guard.take())).wait();
    let guard = guard.unwrap();
    assert!(guard.is_valid());
    let other = daemon.client().lock("l").unwrap();
    assert!(other.try_acquire().unwrap().is_none());
    drop(guard);
    drop(other.acquire().unwrap());
}

fn a_child_may_fork_while_threads_wait() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let (lock, busy) = (client.lock("l").unwrap(), client.lock("busy").unwrap());
    let go = client.event("go").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| go.wait().unwrap());
        }
        let busy_thread = scope.spawn(|| {
            while !stop.load(Relaxed) {
                drop(busy.acquire().unwrap());
            }
        });
        for _ in 0..50 {
            fork(|| drop(lock.acquire().unwrap())).wait();
        }
        stop.store(true, Relaxed);
        busy_thread.join().unwrap();
        go.set().unwrap();
    });
    drop(lock.acquire().unwrap());
}

fn a_killed_holder_is_named_to_the_next() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let (lock, held) = (client.lock("l").unwrap(), client.event("held").unwrap());
    let holder = fork(|| {
        std::mem::forget(lock.acquire().unwrap());
        held.set().unwrap();
        std::thread::sleep(WATCHDOG);
    });
    held.wait().unwrap();
    assert!(lock.try_acquire().unwrap().is_none());
    let pid = holder.0;
    // SAFETY: the process is our child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let guard = lock.acquire().unwrap();
    let left = guard.abandoned().unwrap();
    assert_eq!((left.process.pid, left.cause), (pid as u32, Cause::Died));
    holder.status();
}

fn a_daemon_is_started_once_for_many() {
    let dir = tempfile::tempdir().unwrap();
    let started = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(dir.path());
    let builder = || {
        let daemon = env::current_exe().unwrap();
        let count = format!("SYNCD_TEST_COUNT={}", started.path().display());
        let args = [count.as_str(), daemon.to_str().unwrap()];
        Client::builder().endpoint(endpoint.clone()).daemon("env", args)
    };
    let children: Vec<_> = (0..5)
        .map(|_| fork(|| drop(builder().connect_blocking().unwrap().lock("l").unwrap().acquire())))
        .collect();
    children.into_iter().for_each(Forked::wait);
    assert_eq!(fs::read_dir(started.path()).unwrap().count(), 1);
    // The daemon isn't our child, exits by itself when idle, and is started again when needed.
    let mut status = 0;
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }, -1);
    eventually(|| !endpoint.as_path().exists());
    drop(builder().connect_blocking().unwrap());
    eventually(|| !endpoint.as_path().exists());
}

fn a_daemon_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let builder = || Client::builder().endpoint(endpoint_in(dir.path()));
    let daemon = env::current_exe().unwrap();
    let args = ["SYNCD_TEST_FAIL=no room at the inn", daemon.to_str().unwrap()];
    let error = builder().daemon("env", args).connect_blocking().unwrap_err();
    assert!(matches!(error, ConnectError::Start(StartError::Exited { .. })), "{error}");
    assert!(error.to_string().contains("no room at the inn"), "{error}");
    let error = builder().daemon("/no/such/syncd", [""; 0]).connect_blocking().unwrap_err();
    assert!(matches!(error, ConnectError::Start(StartError::Spawn { .. })), "{error}");
}

fn nothing_is_started_where_that_is_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = env::current_exe().unwrap();
    let builder = Client::builder().endpoint(endpoint_in(dir.path())).daemon(daemon, [""; 0]);
    let error = builder.clone().auto_start(false).connect_blocking().unwrap_err();
    assert!(matches!(error, ConnectError::NoDaemon { .. }), "{error}");
    fork(|| {
        // SAFETY: the child has one thread.
        unsafe { env::set_var("SYNCD_NO_AUTOSTART", "1") };
        let error = builder.connect_blocking().unwrap_err();
        assert!(matches!(error, ConnectError::NoDaemon { .. }), "{error}");
    })
    .wait();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
