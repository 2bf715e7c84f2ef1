//! A daemon in this process for one test, and a way to cut its clients' connections.
#![allow(dead_code)]

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use syncd_client::{Builder, Client, Endpoint, blocking};
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::{Notify, oneshot},
    task::JoinSet,
};

/// Catches hangs; nothing is measured by it.
pub const WATCHDOG: Duration = Duration::from_secs(60);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future).await.expect("it hangs")
}

/// A daemon on a socket of its own. It exits when dropped.
pub struct Daemon {
    pub endpoint: Endpoint,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    _dir: Option<tempfile::TempDir>,
}

impl Daemon {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Self::at(&endpoint_in(dir.path(), "syncd.sock"));
        daemon._dir = Some(dir);
        daemon
    }

    pub fn at(endpoint: &Endpoint) -> Self {
        Self::keeping(endpoint, syncd::Journaling::Beside)
    }

    /// A daemon with or without a journal for the next one.
    pub fn keeping(endpoint: &Endpoint, journal: syncd::Journaling) -> Self {
        let mut config = syncd::Config::new(endpoint.clone());
        config.journal = journal;
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let server = syncd::Server::bind(config).unwrap();
                ready.send(()).unwrap();
                server.run(async { drop(stopped.await) }).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Self { endpoint: endpoint.clone(), running: Some((stop, thread)), _dir: None }
    }

    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    pub fn builder(&self) -> Builder {
        Client::builder().endpoint(self.endpoint.clone()).auto_start(false)
    }

    pub async fn client(&self) -> Client {
        within(self.builder().connect()).await.unwrap()
    }

    pub fn blocking(&self) -> blocking::Client {
        self.builder().connect_blocking().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn endpoint_in(dir: &Path, name: &str) -> Endpoint {
    dir.join(name).to_str().unwrap().parse().unwrap()
}

/// A proxy between a daemon and its clients, in this process. The daemon sees the same peer
/// through it, so that a session can be resumed.
pub struct Link {
    pub endpoint: Endpoint,
    cut: Arc<Notify>,
    closed: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl Link {
    pub fn to(daemon: &Daemon) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint_in(dir.path(), "link.sock");
        let listener = UnixListener::bind(endpoint.as_path()).unwrap();
        let (cut, closed) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let link = Self { endpoint, cut: cut.clone(), closed: closed.clone(), _dir: dir };
        let target = daemon.endpoint.clone();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = cut.notified() => connections.shutdown().await,
                    Ok((mut near, _)) = listener.accept() => {
                        if closed.load(SeqCst) {
                            continue;
                        }
                        let mut far = UnixStream::connect(target.as_path()).await.unwrap();
                        connections.spawn(async move {
                            drop(copy_bidirectional(&mut near, &mut far).await);
                        });
                    }
                }
            }
        });
        link
    }

    /// Breaks all connections; accepts new ones.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Breaks all connections, and refuses new ones or accepts them again.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, SeqCst);
        self.cut();
    }

    pub async fn client(&self) -> Client {
        let builder = Client::builder().endpoint(self.endpoint.clone()).auto_start(false);
        within(builder.connect()).await.unwrap()
    }
}
