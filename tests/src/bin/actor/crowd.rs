//! One of a crowd: two owners at a time take and give what they can get, by either shell of the
//! client, and write down what they asked and heard. It stops when it is told anything, or nobody is
//! there any more who could tell.

use std::{
    env,
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use rustix::fs::{FlockOperation, flock};
use syncd_client::{AcquireError, Builder, Client, Hold};
use syncd_tests::history::{Call, Outcome, Recorder};

/// How many owners a process has.
const OWNERS: u64 = 2;

/// A file that sees each owner of the lock with its token, and another one that they lock for
/// themselves: neither needs a broker to tell of two at once.
struct Fence {
    file: File,
    witness: File,
}

impl Fence {
    fn open(path: &Path) -> Self {
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).open(path).expect("a file")
        };
        Self { file: open(path), witness: open(&path.with_extension("witness")) }
    }

    fn enter(&self, token: u64) -> Result<(), String> {
        flock(&self.witness, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("token {token}: somebody else has the file's own lock"))?;
        let mut last = [0; 8];
        let _ = self.file.read_exact_at(&mut last, 0);
        let last = u64::from_le_bytes(last);
        if last >= token {
            return Err(format!("the guarded file sees token {token} after {last}"));
        }
        self.file.write_all_at(&token.to_le_bytes(), 0).map_err(|error| error.to_string())
    }

    fn leave(&self) {
        flock(&self.witness, FlockOperation::Unlock).expect("it is locked");
    }
}

fn outcome(hold: &Hold, notified: bool) -> Outcome {
    let after = hold.abandoned().map(|left| left.token.get());
    Outcome::Granted { token: hold.fencing_token().get(), notified, after }
}

/// A call's time may be over; anything else must not be.
fn refused(error: AcquireError) -> Outcome {
    match error {
        AcquireError::TimedOut { .. } => Outcome::Refused,
        other => Outcome::Failed(other.to_string()),
    }
}

fn failed(error: impl ToString) -> Outcome {
    Outcome::Failed(error.to_string())
}

fn done(result: Result<(), impl ToString>) -> Outcome {
    result.map_or_else(failed, |()| Outcome::Done { count: 0 })
}

/// Within the lock for a moment, mostly none.
fn moment(rng: &mut Rng) -> Duration {
    Duration::from_micros(if rng.u8(..4) == 0 { rng.u64(..2000) } else { 0 })
}

fn patience(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.u64(..15))
}

fn acquire(object: &str) -> Call {
    Call::Acquire { object: object.into() }
}

fn release(object: &str, token: u64) -> Call {
    Call::Release { object: object.into(), token }
}

async fn pause(time: Duration) {
    // Its timer knows whole milliseconds.
    if time > Duration::from_millis(1) {
        tokio::time::sleep(time).await;
    } else {
        tokio::task::yield_now().await;
    }
}

/// An acquire that is dropped when its time is over.
async fn dropped(
    lock: &syncd_client::Lock,
    patience: Duration,
) -> Option<Result<syncd_client::LockGuard, AcquireError>> {
    tokio::time::timeout(patience, lock.acquire()).await.ok()
}

fn timed(
    lock: &syncd_client::blocking::Lock,
    patience: Duration,
) -> Option<Result<syncd_client::blocking::LockGuard, AcquireError>> {
    Some(lock.acquire_timeout(patience))
}

/// One text for both shells.
macro_rules! crowd {
    ($name:ident, $($path:ident)::+, $pause:path, $withdrawn:ident,
        [$($async:ident)?], [$($await:tt)*]) => {
        mod $name {
            use $($path)::+::{Client, Condition, Lock, RLock, Semaphore};

            use super::*;

            #[derive(Clone)]
            pub struct Member {
                pub recorder: Arc<Recorder>,
                pub stop: Arc<AtomicBool>,
                fenced: Lock,
                timed: Lock,
                gate: RLock,
                bell: Condition,
                slots: Semaphore,
                items: Semaphore,
            }

            impl Member {
                pub $($async)? fn new(
                    client: &Client,
                    recorder: Arc<Recorder>,
                    stop: Arc<AtomicBool>,
                ) -> Self {
                    let gate = client.rlock("gate")$($await)*.expect("an RLock");
                    Self {
                        recorder,
                        stop,
                        fenced: client.lock("fenced")$($await)*.expect("a lock"),
                        timed: client.lock("timed")$($await)*.expect("a lock"),
                        bell: client.condition("bell", &gate)$($await)*.expect("a Condition"),
                        gate,
                        slots: client.semaphore("slots", 2)$($await)*.expect("a semaphore"),
                        items: client.semaphore("items", 0)$($await)*.expect("a semaphore"),
                    }
                }

                pub $($async)? fn work(self, fence: Fence, mut rng: Rng) {
                    while !self.stop.load(Relaxed) {
                        match rng.u8(..10) {
                            0..3 => self.turn(&fence, &mut rng)$($await)*,
                            3 | 4 => self.try_it(&mut rng)$($await)*,
                            5 | 6 => self.meet(&mut rng)$($await)*,
                            7 => self.share(&mut rng)$($await)*,
                            8 => self.give()$($await)*,
                            _ => self.take(&mut rng)$($await)*,
                        }
                    }
                }

                $($async)? fn turn(&self, fence: &Fence, rng: &mut Rng) {
                    let call = self.recorder.begin(&acquire("fenced"));
                    let guard = match self.fenced.acquire()$($await)* {
                        Ok(guard) => guard,
                        Err(error) => return self.recorder.end(call, &refused(error)),
                    };
                    let token = guard.fencing_token().get();
                    match fence.enter(token) {
                        Ok(()) => self.recorder.end(call, &outcome(&guard, false)),
                        Err(why) => self.recorder.end(call, &Outcome::Failed(why)),
                    }
                    $pause(moment(rng))$($await)*;
                    fence.leave();
                    let call = self.recorder.begin(&release("fenced", token));
                    if rng.bool() {
                        let released = guard.release()$($await)*;
                        self.recorder.end(call, &done(released));
                    } else {
                        // Whether it has come to anything isn't told.
                        drop(guard);
                    }
                }

                $($async)? fn try_it(&self, rng: &mut Rng) {
                    let call = self.recorder.begin(&acquire("timed"));
                    let patience = patience(rng);
                    let acquired = match rng.bool() {
                        true => Some(self.timed.acquire_timeout(patience)$($await)*),
                        false => $withdrawn(&self.timed, patience)$($await)*,
                    };
                    let guard = match acquired {
                        Some(Ok(guard)) => guard,
                        Some(Err(error)) => return self.recorder.end(call, &refused(error)),
                        None => return self.recorder.end(call, &Outcome::Refused),
                    };
                    self.recorder.end(call, &outcome(&guard, false));
                    $pause(moment(rng))$($await)*;
                    let call = self.recorder.begin(&release("timed", guard.fencing_token().get()));
                    let released = guard.release()$($await)*;
                    self.recorder.end(call, &done(released));
                }

                $($async)? fn meet(&self, rng: &mut Rng) {
                    let call = self.recorder.begin(&acquire("gate"));
                    let mut guard = match self.gate.acquire()$($await)* {
                        Ok(guard) => guard,
                        Err(error) => return self.recorder.end(call, &refused(error)),
                    };
                    self.recorder.end(call, &outcome(&guard, false));
                    match rng.u8(..4) {
                        0 => {
                            // Deeper, which is no grant.
                            let deeper = self.gate.acquire()$($await)*;
                            drop(deeper.map_err(|error| self.breach(&error)));
                        }
                        1 => {
                            let call = self.recorder.begin(&Call::Notify);
                            let count = match rng.bool() {
                                true => self.bell.notify(&guard, 1)$($await)*,
                                false => self.bell.notify_all(&guard)$($await)*,
                            };
                            let count = count.map(|count| Outcome::Done { count: count.into() });
                            self.recorder.end(call, &count.unwrap_or_else(failed));
                        }
                        _ => {
                            let (object, token) = ("gate".into(), guard.fencing_token().get());
                            let call = self.recorder.begin(&Call::Wait { object, token });
                            let time = patience(rng) * 2;
                            match self.bell.wait_timeout(&mut guard, time)$($await)* {
                                Ok(woke) => {
                                    self.recorder.end(call, &outcome(&guard, !woke.timed_out()));
                                }
                                Err(error) => return self.recorder.end(call, &failed(error)),
                            }
                        }
                    }
                    let call = self.recorder.begin(&release("gate", guard.fencing_token().get()));
                    let released = guard.release()$($await)*;
                    self.recorder.end(call, &done(released));
                }

                fn breach(&self, error: &AcquireError) {
                    let call = self.recorder.begin(&acquire("gate"));
                    self.recorder.end(call, &Outcome::Failed(error.to_string()));
                }

                $($async)? fn share(&self, rng: &mut Rng) {
                    let call = self.recorder.begin(&acquire("slots"));
                    let acquired = match rng.bool() {
                        true => self.slots.acquire_timeout(patience(rng))$($await)*,
                        false => self.slots.acquire()$($await)*,
                    };
                    let permit = match acquired {
                        Ok(permit) => permit,
                        Err(error) => return self.recorder.end(call, &refused(error)),
                    };
                    self.recorder.end(call, &outcome(&permit, false));
                    $pause(moment(rng))$($await)*;
                    let call = self.recorder.begin(&release("slots", permit.fencing_token().get()));
                    let released = permit.release()$($await)*;
                    self.recorder.end(call, &done(released));
                }

                $($async)? fn give(&self) {
                    let call = self.recorder.begin(&Call::Give);
                    let given = self.items.release()$($await)*;
                    // Its answer is none: what comes after it finds it done.
                    let known = self.items.value()$($await)*;
                    let known = known.map_err(|error| error.to_string()).map(drop);
                    self.recorder.end(call, &match given {
                        Ok(()) => done(known),
                        Err(error) => failed(error),
                    });
                }

                $($async)? fn take(&self, rng: &mut Rng) {
                    let call = self.recorder.begin(&Call::Take);
                    let taken = self.items.acquire_unowned_timeout(patience(rng))$($await)*;
                    self.recorder.end(call, &match taken {
                        Ok(()) => Outcome::Done { count: 1 },
                        Err(error) => refused(error),
                    });
                }
            }
        }
    };
}

crowd!(tasks, syncd_client, pause, dropped, [async], [.await]);
crowd!(threads, syncd_client::blocking, thread::sleep, timed, [], []);

/// Where the daemon is, there may be none for a moment.
fn patiently<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    for _ in 0..6000 {
        if let Ok(made) = attempt() {
            return made;
        }
        thread::sleep(Duration::from_millis(5));
    }
    attempt().unwrap_or_else(|error| panic!("no session: {error}"))
}

/// `FILE FENCED SEED`: by threads if the seed is even, by tasks if it is odd.
pub fn run(namespace: &str) {
    let mut arguments = env::args().skip(3);
    let file = PathBuf::from(arguments.next().expect("a file"));
    let fenced = PathBuf::from(arguments.next().expect("a guarded file"));
    let seed: u64 = arguments.next().and_then(|seed| seed.parse().ok()).expect("a seed");
    let recorder = Arc::new(Recorder::create(&file).expect("a history"));
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, Relaxed);
    });
    let builder = || -> Builder { Client::builder().namespace(namespace).auto_start(false) };
    let rngs = (0..OWNERS).map(|owner| Rng::with_seed(seed * OWNERS + owner));
    if seed.is_multiple_of(2) {
        let client = patiently(|| builder().connect_blocking());
        let member = threads::Member::new(&client, recorder, stop);
        let work = |rng| {
            let (member, fence) = (member.clone(), Fence::open(&fenced));
            thread::spawn(move || member.work(fence, rng))
        };
        let owners: Vec<_> = rngs.map(work).collect();
        owners.into_iter().for_each(|owner| owner.join().expect("an owner"));
        drop(member);
        client.close();
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = patiently(|| runtime.block_on(builder().connect()));
        runtime.block_on(async {
            let member = tasks::Member::new(&client, recorder, stop).await;
            let work = |rng| tokio::spawn(member.clone().work(Fence::open(&fenced), rng));
            let owners: Vec<_> = rngs.map(work).collect();
            for owner in owners {
                owner.await.expect("an owner");
            }
            drop(member);
            client.close().await;
        });
    }
    process::exit(0);
}
