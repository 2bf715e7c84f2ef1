//! Edge cases: a daemon that is stopped, killed or exiting, descriptors that are used up or closed,
//! processes that only release.

use std::{
    env, fs,
    os::{fd::IntoRawFd as _, unix::net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use syncd_client::{
    AcquireError, Client, ConnectError, CreateError, Event, SessionError, Token,
    proto::v1::{EventSpec, create::Spec},
    raw::{self, Object},
};

use super::unix::{Daemon, WATCHDOG, endpoint_in, eventually, fork};

impl Daemon {
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is our child and hasn't been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        eventually(|| fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
    }

    fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }
}

/// Rule R64: every release that was made counts.
pub fn a_producer_that_only_releases_is_never_stuck_and_loses_nothing() {
    const ITEMS: u32 = 100_000;
    let daemon = Daemon::start();
    let items = daemon.client().semaphore("items", 0).unwrap();
    fork(|| {
        let client = daemon.client();
        let items = client.semaphore("items", 0).unwrap();
        (0..ITEMS).for_each(|_| items.release().unwrap());
        drop((items, client));
    })
    .wait();
    eventually(|| items.value().unwrap() == ITEMS);
}

pub fn a_producer_is_held_up_by_a_stopped_daemon_and_nothing_is_lost() {
    const ITEMS: u32 = 40_000;
    let daemon = Daemon::start();
    let client = daemon.client();
    let items = client.semaphore("items", 0).unwrap();
    daemon.stop();
    let made = Arc::new(AtomicU32::new(0));
    let producer = {
        let (items, made) = (items.clone(), made.clone());
        thread::spawn(move || {
            for _ in 0..ITEMS {
                items.release().unwrap();
                made.fetch_add(1, SeqCst);
            }
        })
    };
    let mut seen = 0;
    eventually(|| {
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut seen, made.load(SeqCst));
        seen > 0 && seen == before
    });
    assert!(seen < ITEMS, "{seen} releases are kept for a daemon that takes none");
    assert!(!client.flush(Duration::ZERO).unwrap());
    daemon.go_on();
    producer.join().unwrap();
    assert!(client.flush(WATCHDOG).unwrap());
    eventually(|| items.value().unwrap() == ITEMS);
}

/// The leader would send them, but no thread waits, and the process makes no other call.
pub fn unsent_releases_are_sent_when_the_socket_has_room() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let (full, last) = (client.semaphore("full", 0).unwrap(), client.semaphore("last", 0).unwrap());
    let theirs = daemon.client().semaphore("last", 0).unwrap();
    daemon.stop();
    while client.flush(Duration::ZERO).unwrap() {
        full.release().unwrap();
    }
    last.release().unwrap();
    daemon.go_on();
    theirs.acquire_unowned().unwrap();
}

pub fn releases_lost_with_their_session_are_reported_once() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let items = client.semaphore("items", 0).unwrap();
    daemon.stop();
    (0..3).for_each(|_| items.release().unwrap());
    daemon.signal(libc::SIGKILL);
    let Err(SessionError::Lost(why)) = items.value() else { panic!("nobody is told") };
    assert_eq!(why.undelivered_releases(), 3, "{why}");
    assert!(why.to_string().contains("3 releases"), "{why}");
    let next = items.value().unwrap_err();
    assert!(matches!(next, SessionError::Connect(_)), "{next}");
}

/// Rule R33: the client's own clock ends the call, too.
pub fn a_time_out_bounds_the_call_when_the_daemon_is_stopped_or_gone() {
    let soon = Duration::from_millis(50);
    let daemon = Daemon::start();
    let client = daemon.client();
    let (lock, event) = (client.lock("l").unwrap(), client.event("e").unwrap());
    let barrier = client.barrier("b", 2).unwrap();
    let other = daemon.client().lock("l").unwrap();
    daemon.stop();
    fork(|| {
        // This call opens its session.
        let late = lock.acquire_timeout(soon).unwrap_err();
        assert!(matches!(late, AcquireError::TimedOut { .. }), "{late}");
    })
    .wait();
    let late = lock.acquire_timeout(soon).unwrap_err();
    assert!(matches!(late, AcquireError::TimedOut { .. }), "{late}");
    assert!(lock.try_acquire().unwrap().is_none());
    assert!(event.wait_timeout(soon).unwrap().timed_out());
    assert!(barrier.wait_timeout(soon).is_err());
    daemon.go_on();
    // The daemon holds nothing for the calls that gave up.
    drop(other.acquire().unwrap());
    eventually(|| barrier.state().unwrap().broken);
    daemon.signal(libc::SIGKILL);
    let late = lock.acquire_timeout(soon).unwrap_err();
    assert!(matches!(late, AcquireError::TimedOut { .. }), "{late}");
}

pub fn without_a_descriptor_left_waiting_threads_still_finish() {
    const THREADS: usize = 40;
    let daemon = Daemon::start();
    fork(|| {
        let client = daemon.client();
        let lock = client.lock("l").unwrap();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let next = fs::File::open("/dev/null").unwrap().into_raw_fd();
        // SAFETY: the limits are this child's, which has one thread.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            // Enough for a few of the threads.
            limit.rlim_cur = next as libc::rlim_t + 3;
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        }
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let guard = lock.acquire().unwrap();
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        inside.fetch_sub(1, SeqCst);
                        drop(guard);
                    }
                });
            }
        });
    })
    .wait();
}

/// The sockets among this process's descriptors.
fn sockets() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

pub fn a_child_keeps_no_descriptor_of_its_parents_session() {
    let before = sockets();
    let daemon = Daemon::start();
    let client = daemon.client();
    let lock = client.lock("l").unwrap();
    let guard = lock.acquire().unwrap();
    assert_eq!(sockets(), before + 1);
    fork(|| assert_eq!(sockets(), before)).wait();
    assert!(guard.is_valid());
}

pub fn a_child_that_has_closed_all_descriptors_keeps_the_files_that_it_opened_since() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let lock = client.lock("l").unwrap();
    let event = client.event("e").unwrap();
    // The parent keeps its socket.
    let mut guard = Some(lock.acquire().unwrap());
    fork(|| {
        for fd in 3..256 {
            // SAFETY: nothing in this child uses the descriptors.
            let _ = unsafe { libc::close(fd) };
        }
        let files: Vec<_> =
            (0..100).map(|_| fs::File::open("/dev/null").unwrap().into_raw_fd()).collect();
        event.set().unwrap();
        assert!(lock.try_acquire().unwrap().is_none());
        drop(guard.take());
        for fd in files {
            // SAFETY: a plain system call.
            assert!(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0, "{fd} was closed");
        }
    })
    .wait();
    assert!(guard.unwrap().is_valid());
}

pub fn a_dead_token_starts_no_daemon_and_makes_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("gone");
    let token: Token = format!("syncd::key:{}", place.join("s.sock").display()).parse().unwrap();
    let error = Client::of(&token).connect_blocking().unwrap_err();
    assert!(matches!(error, ConnectError::NoDaemon { .. }), "{error}");
    let builder = Client::builder().endpoint(token.endpoint().clone());
    let client = raw::client(builder.daemon(env::current_exe().unwrap(), [""; 0])).unwrap();
    let error = Object::attach(&client, &token).wait(&mut || false).unwrap_err();
    let CreateError::Session(SessionError::Connect(error)) = error else { panic!("{error}") };
    assert!(matches!(*error, ConnectError::NoDaemon { .. }), "{error}");
    assert!(!place.exists());
}

/// As a daemon does that exits when idle.
pub fn a_daemon_that_leaves_as_one_comes_is_tried_again_and_another_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(dir.path());
    let leaving = UnixListener::bind(endpoint.as_path()).unwrap();
    let path = endpoint.as_path().to_owned();
    let leaver = thread::spawn(move || {
        drop(leaving.accept().unwrap());
        drop(leaving.accept().unwrap());
        fs::remove_file(path).unwrap();
    });
    let builder = Client::builder().endpoint(endpoint.clone());
    let client = builder.daemon(env::current_exe().unwrap(), [""; 0]).connect_blocking().unwrap();
    drop(client.lock("l").unwrap().acquire().unwrap());
    leaver.join().unwrap();
    drop(client);
    eventually(|| !endpoint.as_path().exists());
}

extern "C" fn ignore(_: libc::c_int) {}

/// The daemon is slow to answer, and signals arrive meanwhile.
pub fn a_signal_handler_may_make_a_call_while_its_thread_connects() {
    let daemon = Daemon::start();
    daemon.stop();
    let builder = Client::builder().endpoint(daemon.endpoint.clone()).auto_start(false);
    let client = raw::client(builder).unwrap();
    let make = |name: &str| Object::create(client.object(name), Spec::Event(EventSpec {}), None);
    let (handled, handling) = mpsc::channel();
    thread::scope(|scope| {
        let (id, ids) = mpsc::channel();
        let connecting = scope.spawn(move || {
            // SAFETY: a plain system call.
            id.send(unsafe { libc::pthread_self() }).unwrap();
            let mut handler = || {
                daemon.go_on();
                let event: Event = make("inner").wait(&mut || false).unwrap().event();
                Object::set(&event).wait(&mut || false).unwrap();
                let _ = handled.send(());
                false
            };
            make("outer").wait(&mut handler).unwrap();
        });
        let thread = ids.recv().unwrap();
        // SAFETY: the handler does nothing, and the thread hasn't been joined.
        unsafe {
            libc::signal(libc::SIGUSR2, ignore as *const () as libc::sighandler_t);
            while handling.try_recv().is_err() && !connecting.is_finished() {
                libc::pthread_kill(thread, libc::SIGUSR2);
                thread::sleep(Duration::from_millis(5));
            }
        }
        connecting.join().unwrap();
    });
}

/// By a time-out, or by a signal handler.
pub fn a_call_to_a_stopped_daemon_can_be_given_up() {
    let daemon = Daemon::start();
    let client = raw::client(Client::builder().endpoint(daemon.endpoint.clone())).unwrap();
    let event = Object::create(client.object("e"), Spec::Event(EventSpec {}), None);
    let event = event.wait(&mut || false).unwrap().event();
    daemon.stop();
    let (id, ids) = mpsc::channel();
    let waiting = thread::spawn(move || {
        // SAFETY: a plain system call.
        id.send(unsafe { libc::pthread_self() }).unwrap();
        Object::set(&event).wait(&mut || true)
    });
    let thread = ids.recv().unwrap();
    // SAFETY: as above.
    unsafe {
        libc::signal(libc::SIGUSR2, ignore as *const () as libc::sighandler_t);
        while !waiting.is_finished() {
            libc::pthread_kill(thread, libc::SIGUSR2);
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(matches!(waiting.join().unwrap(), Err(SessionError::Interrupted)));
    daemon.go_on();
}
