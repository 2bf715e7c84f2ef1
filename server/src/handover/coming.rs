//! The new daemon's part: asking for the place, and looking at what is kept before it is its own.

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

/// How long the old daemon may take before it lets this one look: it may be making a snapshot.
const TURN: Duration = Duration::from_secs(60);
/// How long it may take to give the place away.
const GIVE: Duration = Duration::from_secs(30);
/// How much news of its clients waits for it at most, should it be stopped.
const UNTOLD: usize = 4096;
/// For how long a place is asked for that is neither given nor free, as of a daemon that leaves.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon that gave its place, and waits for this one to serve.
pub(crate) struct Predecessor {
    talk: Talk,
    /// What it leaves, which was looked at.
    legacy: Legacy,
    pub journal: Arc<Directory>,
    pub is_parent: bool,
}

impl Predecessor {
    /// Restores what it left, serves from then on, and lets it know.
    ///
    /// # Errors
    /// If another daemon keeps its state in that directory, of which the one before let go.
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
            Err(error) => debug!(%error, "the daemon before is gone already"),
        }
        Ok(())
    }
}

/// Tells the daemon before what is new of its clients, as long as it is there.
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
    /// Nobody listens.
    Nobody,
    /// It said no, or there is no asking.
    Refused(String),
    /// It went, or gave up.
    Broken(io::Error),
}

/// Has the place of the daemon that is there; if there is none, `take` does.
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
            Asked::Broken(error) => format!("the daemon there has gone meanwhile ({error})"),
            Asked::Nobody => match take() {
                // It leaves, or another one has just come.
                Err(ServeError::AlreadyRunning { .. }) if begun.elapsed() < PATIENCE => {
                    "it neither serves nor leaves".to_owned()
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
                // More come than it accepts.
                io::ErrorKind::WouldBlock => Asked::Broken(error),
                _ => Asked::Refused(error.to_string()),
            };
        }
    };
    match converse(endpoint, journal, stream) {
        Ok(asked) => asked,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Asked::Refused(
            "the daemon there can't hand over: it is of an earlier version. Stop it (SIGTERM) and \
             start this one: its clients go on"
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
    // From here on everybody waits.
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

/// Loads all that is kept but what was loaded `ahead`, and changes nothing.
///
/// # Errors
/// What is not as it was written: for a daemon that knows it, it is in no doubt.
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
