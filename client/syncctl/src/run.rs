//! `run`: a command under a lock or a permit, as flock(1) but with an owner, a fencing token and
//! an end when the lock is lost. Never here: processes and signals; those are the job's.

use std::{
    io::{self, IsTerminal as _},
    ops::Deref,
    time::Duration,
};

use syncd_client::{AcquireError, Client, Hold, Holder, Lock, Semaphore};
use tokio::time::sleep;

use crate::{
    broker,
    cli::{Global, Run},
    failure::Failure,
    text::{plain, span},
};

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::Job;
#[cfg(windows)]
use windows::Job;

/// How often a hold is looked at: the daemon tells of a session's end at once, but of one hold
/// taken by force only who asks.
const GLANCE: Duration = Duration::from_millis(250);

/// What `run` takes.
enum Object {
    Lock(Lock),
    Semaphore(Semaphore),
}

impl Object {
    async fn acquire(
        &self,
        timeout: Option<Duration>,
    ) -> Result<Box<dyn Deref<Target = Hold>>, AcquireError> {
        Ok(match (self, timeout) {
            (Self::Lock(lock), None) => Box::new(lock.acquire().await?),
            (Self::Lock(lock), Some(t)) => Box::new(lock.acquire_timeout(t).await?),
            (Self::Semaphore(semaphore), None) => Box::new(semaphore.acquire().await?),
            (Self::Semaphore(semaphore), Some(t)) => Box::new(semaphore.acquire_timeout(t).await?),
        })
    }
}

/// `run`: the exit code.
pub async fn run(run: Run, global: &Global) -> Result<u8, Failure> {
    let client = broker::client(global).await?;
    let object = match run.semaphore {
        None => client.lock(&run.name).await.map(Object::Lock),
        Some(permits) => client.semaphore(&run.name, permits).await.map(Object::Semaphore),
    }
    .map_err(broker::not_created)?;
    let hold = acquire(&object, &run).await?;

    let mut environment =
        vec![("SYNCD_LOCK", run.name.clone()), ("SYNCD_TOKEN", hold.fencing_token().to_string())];
    if let Some(left) = hold.abandoned() {
        let (by, cause) = (&left.process, left.cause);
        eprintln!(
            "syncctl: warning: {:?} was abandoned by {}, which {cause} {} ago after holding it for {}: \
             what it guards may be half done",
            run.name,
            plain(&by.to_string()),
            span(left.ago),
            span(left.held)
        );
        environment.push(("SYNCD_ABANDONED", format!("{} {}", by.pid, by.command)));
    }
    let [program, arguments @ ..] = &*run.command else { unreachable!("clap wants a command") };
    let mut job = Job::start(program, arguments, &environment)
        .map_err(|error| Failure::Exec { program: plain(&program.to_string_lossy()), error })?;
    tokio::select! {
        code = job.ended() => {
            drop(hold);
            client.close().await;
            Ok(code?)
        }
        why = lost(&client, &hold) => {
            eprintln!("syncctl: {:?}: {why}: stopping the command", run.name);
            job.stop().await?;
            Err(Failure::Lost(format!("{:?} was lost, and the command was stopped", run.name)))
        }
    }
}

async fn acquire(object: &Object, run: &Run) -> Result<Box<dyn Deref<Target = Hold>>, Failure> {
    let name = &run.name;
    let patience = if run.no_wait { Some(Duration::ZERO) } else { run.timeout };
    let talks = run.verbose || io::stderr().is_terminal();
    // Who waits without a word needn't ask twice.
    let first = if talks { Some(Duration::ZERO) } else { patience };
    let mut taken = object.acquire(first).await;
    if let Err(AcquireError::TimedOut { held_by, .. }) = &taken
        && first != patience
    {
        eprintln!("syncctl: waiting for {name:?}, {}", holders(held_by));
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
        [] => "taken by nobody in particular: it is loose, or others are before us".into(),
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
