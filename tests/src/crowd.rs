//! Clients at work while somebody does something to their daemon: they must not notice. The witnesses
//! are a flag, a counter and tokens, none of which the daemon knows.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, SeqCst},
        },
    },
    thread,
};

use syncd_client::Builder;

/// What a lock guards, and whoever is in it at the wrong time.
#[derive(Debug, Default)]
struct Witness {
    inside: AtomicBool,
    token: AtomicU64,
    count: AtomicU64,
}

impl Witness {
    fn enter(&self, token: u64) {
        assert!(!self.inside.swap(true, AcqRel), "two hold the lock");
        let last = self.token.swap(token, SeqCst);
        assert!(token > last, "token {token} after {last}");
        let count = self.count.load(SeqCst);
        thread::yield_now();
        self.count.store(count + 1, SeqCst);
    }

    fn leave(&self) {
        self.inside.store(false, SeqCst);
    }
}

/// Threads and tasks that take turns, and give and take permits that are nobody's.
#[derive(Debug)]
pub struct Crowd {
    witness: Arc<Witness>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Crowd {
    const WORKERS: u64 = 6;
    const TURNS: u64 = 150;

    /// Begins.
    ///
    /// # Panics
    /// Never, but its workers do if two hold the lock, or a call fails.
    pub fn of(builder: impl Fn() -> Builder) -> Self {
        let witness = Arc::new(Witness::default());
        let work = |worker| {
            let (witness, builder) = (witness.clone(), builder());
            thread::spawn(move || match worker % 2 {
                0 => Self::give(&witness, builder),
                _ => {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_all().build().unwrap();
                    runtime.block_on(Self::take(&witness, builder));
                }
            })
        };
        let workers = (0..Self::WORKERS).map(work).collect();
        Self { witness, workers }
    }

    fn give(witness: &Witness, builder: Builder) {
        let client = builder.connect_blocking().unwrap();
        let lock = client.lock("l").unwrap();
        let items = client.semaphore("items", 0).unwrap();
        for _ in 0..Self::TURNS {
            let guard = lock.acquire().unwrap();
            witness.enter(guard.fencing_token().into());
            witness.leave();
            drop(guard);
            items.release().unwrap();
        }
        drop((lock, items));
        client.close();
    }

    async fn take(witness: &Witness, builder: Builder) {
        let client = builder.connect().await.unwrap();
        let lock = client.lock("l").await.unwrap();
        let items = client.semaphore("items", 0).await.unwrap();
        for _ in 0..Self::TURNS {
            let guard = lock.acquire().await.unwrap();
            witness.enter(guard.fencing_token().into());
            witness.leave();
            drop(guard);
            items.acquire_unowned().await.unwrap();
        }
        drop((lock, items));
        client.close().await;
    }

    /// All have had their turns.
    pub fn is_done(&self) -> bool {
        self.workers.iter().all(|worker| worker.is_finished())
    }

    /// All have had their turns, and nothing is left over.
    ///
    /// # Panics
    /// If not.
    pub fn check(self, kills: u64, builder: Builder) {
        self.workers.into_iter().for_each(|worker| worker.join().unwrap());
        println!("{kills} kills");
        assert!(kills > 3, "{kills} kills say nothing");
        assert_eq!(self.witness.count.load(SeqCst), Self::WORKERS * Self::TURNS);
        let client = builder.connect_blocking().unwrap();
        let left = client.semaphore("items", 0).unwrap().value().unwrap();
        assert_eq!(left, 0, "as many were taken as were given");
    }
}

/// The daemon that listens at a place, whoever started it.
pub fn daemon_at(socket: &Path) -> Option<libc::pid_t> {
    use std::os::{fd::AsRawFd as _, unix::net::UnixStream};
    let stream = UnixStream::connect(socket).ok()?;
    // SAFETY: it writes what it is given room for.
    unsafe {
        let mut peer: libc::ucred = std::mem::zeroed();
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        let to = (&raw mut peer).cast();
        let asked = libc::getsockopt(stream.as_raw_fd(), level, option, to, &raw mut length);
        (asked == 0).then_some(peer.pid)
    }
}

/// Sends one.
pub fn signal(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, signal) };
}
