//! `run`: runs a command under a lock or a permit, like flock(1), but with a fencing token, and
//! stops it if the lock is lost.

use std::{
    io::{self, IsTerminal as _},
    ops::Deref,
    time::Duration,
};

use syncd_client::{
    AcquireError, Client, Hold, Holder, Lock, LockGuard, Permit, ReleaseError, Semaphore,
};
use tokio::time::{sleep, timeout};

use crate::{
    broker,
    cli::{Global, Run},
    failure::Failure,
    text::{complain, plain, span},
};

#[cfg(unix)]
mod unix;
#[cfg(unix)]
mod warden;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::{Ended, Job, Keeper};
#[cfg(windows)]
use windows::{Ended, Job, Keeper};

/// How often to check the hold: the end of the session is noticed at once, but a release by force
/// only by a check.
const CHECK: Duration = Duration::from_millis(250);

/// How long to wait for the daemon to confirm the release, which has been sent by then.
const CONFIRMATION: Duration = Duration::from_secs(10);

/// The variables that tell the command of its lock. Removed first, since an enclosing `run` may
/// have set them.
const VARIABLES: [&str; 3] = ["SYNCD_LOCK", "SYNCD_TOKEN", "SYNCD_ABANDONED"];

/// The object to acquire.
enum Object {
    Lock(Lock),
    Semaphore(Semaphore),
}

/// The acquired hold.
enum Held {
    Lock(LockGuard),
    Permit(Permit),
}

impl Object {
    async fn acquire(&self, timeout: Option<Duration>) -> Result<Held, AcquireError> {
        Ok(match (self, timeout) {
            (Self::Lock(lock), None) => Held::Lock(lock.acquire().await?),
            (Self::Lock(lock), Some(t)) => Held::Lock(lock.acquire_timeout(t).await?),
            (Self::Semaphore(semaphore), None) => Held::Permit(semaphore.acquire().await?),
            (Self::Semaphore(semaphore), Some(t)) => {
                Held::Permit(semaphore.acquire_timeout(t).await?)
            }
        })
    }
}

impl Held {
    async fn release(self) -> Result<(), ReleaseError> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Permit(permit) => permit.release().await,
        }
    }
}

impl Deref for Held {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        match self {
            Self::Lock(guard) => guard,
            Self::Permit(permit) => permit,
        }
    }
}

/// `run`: returns the exit code, or ends this process by the signal that ended the command.
pub fn run(run: Run, global: &Global) -> Result<u8, Failure> {
    // Before the runtime's threads and the session's socket: it forks.
    let keeper = Keeper::new()?;
    let ended = crate::runtime()?.block_on(carry(&run, global, keeper))?;
    Ok(ended.end())
}

async fn carry(run: &Run, global: &Global, keeper: Keeper) -> Result<Ended, Failure> {
    let client = broker::client(global).await?;
    let object = match run.semaphore {
        None => client.lock(&run.name).await.map(Object::Lock),
        Some(permits) => client.semaphore(&run.name, permits).await.map(Object::Semaphore),
    }
    .map_err(broker::not_created)?;
    let held = acquire(&object, run).await?;

    let mut environment =
        vec![("SYNCD_LOCK", run.name.clone()), ("SYNCD_TOKEN", held.fencing_token().to_string())];
    if let Some(left) = held.abandoned() {
        let (by, cause) = (&left.process, left.cause);
        complain(format_args!(
            "warning: {:?} was abandoned by {}, which {cause} {} ago after holding it for {}: \
             the data that it guards may be inconsistent",
            run.name,
            plain(&by.to_string()),
            span(left.ago),
            span(left.held)
        ));
        environment.push(("SYNCD_ABANDONED", format!("{} {}", by.pid, by.command)));
    }
    let [program, arguments @ ..] = &*run.command else { unreachable!("clap requires a command") };
    let mut job = Job::start(program, arguments, &environment, keeper)
        .map_err(|error| Failure::Exec { program: plain(&program.to_string_lossy()), error })?;
    tokio::select! {
        ended = job.ended() => give_back(run, client, held, job, ended?).await,
        why = lost(&client, &held) => {
            complain(format_args!("{:?}: {why}: stopping the command", run.name));
            job.stop().await?;
            Err(Failure::Lost(format!("{:?} was lost, and the command was stopped", run.name)))
        }
    }
}

/// Releases the lock after the command has ended, and checks that it was held until then.
async fn give_back(
    run: &Run,
    client: Client,
    held: Held,
    mut job: Job,
    ended: Ended,
) -> Result<Ended, Failure> {
    let name = &run.name;
    let given = async {
        let released = held.release().await;
        client.close().await;
        released
    };
    tokio::select! {
        biased;
        released = timeout(CONFIRMATION, given) => match released {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(Failure::Lost(format!(
                "{name:?} was lost before the command ended ({why}): another owner may have held \
                 it meanwhile"
            ))),
            Err(_) => complain(format_args!(
                "{name:?}: the daemon doesn't answer; it will handle the release when it goes on"
            )),
        },
        interrupted = job.interrupted() => return Ok(interrupted),
    }
    Ok(ended)
}

async fn acquire(object: &Object, run: &Run) -> Result<Held, Failure> {
    let name = &run.name;
    let patience = if run.no_wait { Some(Duration::ZERO) } else { run.timeout };
    let talks = run.verbose || io::stderr().is_terminal();
    // To print the holders before waiting, a try comes first.
    let first = if talks { Some(Duration::ZERO) } else { patience };
    let mut taken = object.acquire(first).await;
    if let Err(AcquireError::TimedOut { held_by, .. }) = &taken
        && first != patience
    {
        complain(format_args!("waiting for {name:?}: {}", holders(held_by)));
        taken = object.acquire(patience).await;
    }
    taken.map_err(|error| match error {
        AcquireError::TimedOut { held_by, .. } => {
            let in_time = match patience {
                Some(t) if !t.is_zero() => format!(" within {}", span(t)),
                _ => String::new(),
            };
            let text = format!("could not acquire {name:?}{in_time}: {}", holders(&held_by));
            Failure::Conflict { text, code: run.conflict_exit_code }
        }
        error => broker::not_acquired(error),
    })
}

fn holders(list: &[Holder]) -> String {
    let one = |h: &Holder| format!("{} for {}", plain(&h.process.to_string()), span(h.held));
    match list {
        [] => {
            "no holder: its permits are unowned, or other processes are first in the queue".into()
        }
        list => format!("held by {}", list.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// Waits until the hold is lost, and returns why.
async fn lost(client: &Client, hold: &Hold) -> String {
    let session = async {
        match client.lost().await {
            Ok(why) => why.to_string(),
            Err(error) => error.to_string(),
        }
    };
    let taken = async {
        while hold.is_valid() {
            sleep(CHECK).await;
        }
        "it was released by another session or by force".to_owned()
    };
    tokio::select! {
        biased;
        why = session => why,
        why = taken => why,
    }
}
