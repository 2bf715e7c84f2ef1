//! The new daemon's part: asks for the place, loads the journals, takes over.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use syncd_proto::{
    Endpoint,
    socket::{Direct, Listener},
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tracing::{debug, info};

use super::{
    Coming, News,
    talk::{GREETING, HERE, NEWS, Talk},
};
pub(crate) use super::{heir::Heir, leaving::Successor};
use crate::{
    ServeError,
    broker::{Broker, Holdings},
    instance::Instance,
    journal::{Directory, FORMAT, failpoint},
    restart::Legacy,
};

/// How long the old daemon may take until LOOK: it may be making a snapshot.
const TURN: Duration = Duration::from_secs(60);
/// How long the old daemon may take until YOURS.
const GIVE: Duration = Duration::from_secs(30);
/// The most news that is queued for the old daemon, in case it is stopped.
const UNTOLD: usize = 4096;
/// How long to ask for a place that is neither given nor free, for example while a daemon exits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon that gave its place away, and waits for this one to serve.
pub(crate) struct Predecessor {
    talk: Talk,
    /// The journals, loaded.
    legacy: Legacy,
    pub journal: Arc<Directory>,
    pub is_parent: bool,
}

impl Predecessor {
    /// Restores the journals, and tells the old daemon that this one serves.
    ///
    /// # Errors
    /// [`ServeError::Journal`] if another daemon has locked the directory since the old one unlocked
    /// it.
    pub async fn succeed(self, broker: &Arc<Broker>) -> Result<(), ServeError> {
        let Self { mut talk, legacy, journal, .. } = self;
        let failed = |error| ServeError::Journal { path: journal.path().to_owned(), error };
        journal.lock().await.map_err(failed)?;
        let (to, news) = mpsc::channel(UNTOLD);
        let _ = broker.news.set(to);
        legacy.restore(broker);
        failpoint("replace.restored");
        let said = talk.say("SERVING").and_then(|()| talk.into_inner());
        match said.and_then(tokio::net::UnixStream::from_std) {
            Ok(predecessor) => broker.spawn(pass_on(news, predecessor)),
            Err(error) => debug!(%error, "the old daemon is gone already"),
        }
        Ok(())
    }
}

/// Passes news on to the old daemon, while it is there.
async fn pass_on(mut news: mpsc::Receiver<News>, mut predecessor: tokio::net::UnixStream) {
    while let Some(news) = news.recv().await {
        let line = match news {
            News::For(session, address) => format!("{NEWS}{session} {address}\n"),
            News::Here => format!("{HERE}\n"),
        };
        if predecessor.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

enum Asked {
    Given(Box<Coming>),
    /// No daemon listens.
    Nobody,
    /// The daemon refused, or can't be asked.
    Refused(String),
    /// The connection failed.
    Broken(io::Error),
}

/// Takes over the place of a running daemon; if there is none, takes the place with `take`.
pub(crate) fn come(
    endpoint: &Endpoint,
    journal: &Path,
    take: impl Fn() -> Result<(Instance, Listener), ServeError>,
) -> Result<Coming, ServeError> {
    let begun = Instant::now();
    loop {
        let why = match ask(endpoint, journal) {
            Asked::Given(coming) => return Ok(*coming),
            Asked::Refused(why) => {
                return Err(ServeError::NotReplaced { endpoint: endpoint.clone(), why });
            }
            Asked::Broken(error) => format!("the connection to it failed: {error}"),
            Asked::Nobody => match take() {
                // A daemon is exiting, or another one has just started.
                Err(ServeError::AlreadyRunning { .. }) if begun.elapsed() < PATIENCE => {
                    "it has the lock, but doesn't listen".to_owned()
                }
                taken => {
                    let (instance, listener) = taken?;
                    info!(%endpoint, "there is no daemon to replace: starting");
                    let instance = Some(instance);
                    return Ok(Coming { listener, instance, predecessor: None });
                }
            },
        };
        debug!(%endpoint, "{why}");
        if begun.elapsed() >= PATIENCE {
            return Err(ServeError::NotReplaced { endpoint: endpoint.clone(), why });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn ask(endpoint: &Endpoint, journal: &Path) -> Asked {
    let stream = match Direct::connect(endpoint) {
        Ok(stream) => UnixStream::from(stream),
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Asked::Nobody,
                // The queue of connections is full.
                io::ErrorKind::WouldBlock => Asked::Broken(error),
                _ => Asked::Refused(error.to_string()),
            };
        }
    };
    match converse(endpoint, journal, stream) {
        Ok(asked) => asked,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Asked::Refused(
            "its version can't be replaced: stop it (SIGTERM) and start this one; clients go on"
                .into(),
        ),
        Err(error) => Asked::Broken(error),
    }
}

fn converse(endpoint: &Endpoint, path: &Path, stream: UnixStream) -> io::Result<Asked> {
    let mut talk = Talk::over(stream)?;
    let (device, inode) = Directory::identity(path).unwrap_or_default();
    talk.say(&format!("{GREETING} {device} {inode} {FORMAT} {}", env!("CARGO_PKG_VERSION")))?;
    let refused = |line: String| {
        let (_, why) = line.split_once(' ').unwrap_or_default();
        Ok(Asked::Refused(why.to_owned()))
    };
    match talk.hear(TURN)?.0 {
        line if line == "AHEAD" => {}
        line => return refused(line),
    }
    let ahead = Directory::open(path).map(|journal| Legacy::load(&journal)).unwrap_or_default();
    failpoint("replace.ahead");
    talk.say("LOADED")?;
    match talk.hear(TURN)?.0 {
        line if line == "LOOK" => {}
        line => return refused(line),
    }
    // The old daemon is paused from here on.
    let looked = look(path, ahead);
    let (journal, legacy) = match looked {
        Ok(looked) => looked,
        Err(why) => {
            talk.say(&format!("NO {why}"))?;
            return Ok(Asked::Refused(why));
        }
    };
    failpoint("replace.looked");
    let Holdings { namespaces, sessions } = legacy.holdings();
    talk.say(&format!("READY {namespaces} {sessions}"))?;
    failpoint("replace.ready");
    let (line, descriptors) = talk.hear(GIVE)?;
    failpoint("replace.taken");
    let Some(words) = line.strip_prefix("YOURS ") else { return refused(line) };
    let words: Vec<u64> = words.split(' ').filter_map(|word| word.parse().ok()).collect();
    let is_parent = words.first() == Some(&u64::from(std::os::unix::process::parent_id()));
    let (listener, instance) = place(endpoint, &words, descriptors)?;
    let predecessor = Some(Predecessor { talk, legacy, journal, is_parent });
    Ok(Asked::Given(Box::new(Coming { listener, instance, predecessor })))
}

/// Loads what the journals hold beyond what was loaded `ahead`, without changing them.
///
/// # Errors
/// If any is damaged: the running daemon, which has the state, must go on.
fn look(path: &Path, ahead: Legacy) -> Result<(Arc<Directory>, Legacy), String> {
    let journal = Directory::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let legacy = ahead.load_again(&journal);
    legacy.check()?;
    Ok((journal, legacy))
}

fn place(
    endpoint: &Endpoint,
    words: &[u64],
    descriptors: Vec<OwnedFd>,
) -> io::Result<(Listener, Option<Instance>)> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing");
    match (words, <[OwnedFd; 3]>::try_from(descriptors)) {
        ([_, device, inode], Ok([listener, directory, lock])) => {
            let socket = (*device, *inode);
            let instance = Instance::inherit(endpoint, directory, lock, socket)?;
            let listener = Listener::from_fd(listener)?;
            listener.claim()?;
            Ok((listener, Some(instance)))
        }
        ([_], Err(mut alone)) if alone.len() == 1 => {
            let listener = alone.pop().ok_or_else(odd)?;
            debug!(descriptor = listener.as_raw_fd(), "the service manager's socket");
            Ok((Listener::from_fd(listener)?, None))
        }
        _ => Err(odd()),
    }
}
