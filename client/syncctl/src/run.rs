//! `run`: a command under a lock or a permit, as flock(1) but with an owner, a fencing token and an
//! end when the lock is lost.

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

/// How often a hold is looked at: the daemon tells of a session's end at once, but of one hold
/// taken by force only who asks.
const GLANCE: Duration = Duration::from_millis(250);

/// How long a daemon may take to confirm that it has the lock back. It has been told by then.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the command learns of its lock, and not of one around it.
const VARIABLES: [&str; 3] = ["SYNCD_LOCK", "SYNCD_TOKEN", "SYNCD_ABANDONED"];

/// What `run` takes.
enum Object {
    Lock(Lock),
    Semaphore(Semaphore),
}

/// What it has.
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

/// `run`: the exit code, unless the command's end was a signal, which then is ours.
pub fn run(run: Run, global: &Global) -> Result<u8, Failure> {
    // Before the runtime, and the session's socket.
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
             what it guards may be half done",
            run.name,
            plain(&by.to_string()),
            span(left.ago),
            span(left.held)
        ));
        environment.push(("SYNCD_ABANDONED", format!("{} {}", by.pid, by.command)));
    }
    let [program, arguments @ ..] = &*run.command else { unreachable!("clap wants a command") };
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

/// The command has ended: so does the hold, if it still was one.
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
        released = timeout(FAREWELL, given) => match released {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(Failure::Lost(format!(
                "{name:?} was lost before the command had ended ({why}): somebody else may have had \
                 it meanwhile"
            ))),
            Err(_) => complain(format_args!(
                "{name:?}: the daemon doesn't answer: it has the lock back when it goes on"
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
    // Who waits without a word needn't ask twice.
    let first = if talks { Some(Duration::ZERO) } else { patience };
    let mut taken = object.acquire(first).await;
    if let Err(AcquireError::TimedOut { held_by, .. }) = &taken
        && first != patience
    {
        complain(format_args!("waiting for {name:?}, {}", holders(held_by)));
        taken = object.acquire(patience).await;
    }
    taken.map_err(|error| match error {
        AcquireError::TimedOut { held_by, .. } => {
            let in_time = match patience {
                Some(t) if !t.is_zero() => format!(" within {}", span(t)),
                _ => String::new(),
            };
            let text = format!("{name:?} not to be had{in_time}, {}", holders(&held_by));
            Failure::Conflict { text, code: run.conflict_exit_code }
        }
        error => broker::not_acquired(error),
    })
}

fn holders(list: &[Holder]) -> String {
    let one = |h: &Holder| format!("{} for {}", plain(&h.process.to_string()), span(h.held));
    match list {
        [] => "taken by nobody in particular: it is unowned, or others are before us".into(),
        list => format!("held by {}", list.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// Waits until what is held is no longer ours, and says why.
async fn lost(client: &Client, hold: &Hold) -> String {
    let session = async {
        match client.lost().await {
            Ok(why) => why.to_string(),
            Err(error) => error.to_string(),
        }
    };
    let taken = async {
        while hold.is_valid() {
            sleep(GLANCE).await;
        }
        "somebody released it".to_owned()
    };
    tokio::select! {
        biased;
        why = session => why,
        why = taken => why,
    }
}
