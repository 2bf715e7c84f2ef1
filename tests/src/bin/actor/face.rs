//! The client crate as an actor: async and blocking, which have the same names, so that one text
//! serves for both.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use syncd_client::{Builder, Client, CreateError, Token, WaitOutcome};
use syncd_tests::script::{Kind, Object, Op};

use super::{
    Line, lines, say,
    words::{failed, granted, not_acquired, not_created, not_met, not_released, not_waited, woken},
};

/// What becomes of an operation, in the script's words.
type Outcome = Result<String, String>;

fn builder(namespace: String) -> Builder {
    Client::builder().namespace(namespace).auto_start(false)
}

/// One text for both: `async` and `.await`, or neither.
macro_rules! face {
    ($name:ident, $($path:ident)::+, [$($async:ident)?], [$($await:tt)*]) => {
        mod $name {
            use $($path)::+::{
                Barrier, BoundedSemaphore, Client, Condition, Event, Lock, LockGuard, Permit, RLock,
                Semaphore,
            };

            use super::*;

            #[derive(Clone)]
            enum Thing {
                Lock(Lock),
                RLock(RLock),
                Semaphore(Semaphore),
                Bounded(BoundedSemaphore),
                Condition(Condition, String),
                Event(Event),
                Barrier(Barrier),
            }

            enum Held {
                Lock(LockGuard),
                Permit(Permit),
                Unowned,
            }

            /// The session, and the objects that it knows.
            pub struct Shared {
                pub client: Client,
                pub declared: Mutex<HashMap<String, (Object, Option<String>)>>,
                things: Mutex<HashMap<String, Thing>>,
            }

            impl Shared {
                pub fn new(client: Client) -> Arc<Self> {
                    let (declared, things) = Default::default();
                    Arc::new(Self { client, declared, things })
                }

                pub fn declare(&self, object: Object, by: Option<String>) {
                    self.declared.lock().unwrap().insert(object.name.clone(), (object, by));
                }

                /// Gets or creates an object, once.
                $($async)? fn thing(&self, name: &str) -> Result<Thing, String> {
                    let known = self.things.lock().unwrap().get(name).cloned();
                    if let Some(thing) = known {
                        return Ok(thing);
                    }
                    let declared = self.declared.lock().unwrap().get(name).cloned();
                    let (object, by) = declared.ok_or("it isn't declared")?;
                    let by: Option<Token> = by.map(|by| by.parse().expect("a token"));
                    let thing = match by {
                        Some(token) => self.attach(&object, &token)$($await)*,
                        None => self.create(&object)$($await)*,
                    };
                    let thing = thing.map_err(not_created)?;
                    if object.anonymous {
                        let token = match &thing {
                            Thing::Lock(lock) => lock.token(),
                            Thing::RLock(lock) => lock.token(),
                            Thing::Semaphore(semaphore) => semaphore.token(),
                            Thing::Bounded(semaphore) => semaphore.token(),
                            Thing::Condition(condition, _) => condition.token(),
                            Thing::Event(event) => event.token(),
                            Thing::Barrier(barrier) => barrier.token(),
                        };
                        println!("key {name} {token}");
                    }
                    self.things.lock().unwrap().insert(name.to_owned(), thing.clone());
                    Ok(thing)
                }

                $($async)? fn attach(
                    &self,
                    object: &Object,
                    token: &Token,
                ) -> Result<Thing, CreateError> {
                    let client = &self.client;
                    Ok(match &object.kind {
                        Kind::Lock => Thing::Lock(client.attach(token)$($await)*?),
                        Kind::RLock => Thing::RLock(client.attach(token)$($await)*?),
                        Kind::Semaphore { .. } => {
                            Thing::Semaphore(client.attach(token)$($await)*?)
                        }
                        Kind::BoundedSemaphore { .. } => {
                            Thing::Bounded(client.attach(token)$($await)*?)
                        }
                        Kind::Condition { lock } => {
                            Thing::Condition(client.attach(token)$($await)*?, lock.clone())
                        }
                        Kind::Event => Thing::Event(client.attach(token)$($await)*?),
                        Kind::Barrier { .. } => Thing::Barrier(client.attach(token)$($await)*?),
                    })
                }

                $($async)? fn create(&self, object: &Object) -> Result<Thing, CreateError> {
                    let lock = match &object.kind {
                        Kind::Condition { lock } => self.things.lock().unwrap().get(lock).cloned(),
                        _ => None,
                    };
                    let mut options = match object.anonymous {
                        true => self.client.anonymous(),
                        false => self.client.object(&object.name),
                    };
                    options = if object.keep { options.keep() } else { options };
                    options = if object.poison { options.poison() } else { options };
                    Ok(match &object.kind {
                        Kind::Lock => Thing::Lock(options.lock()$($await)*?),
                        Kind::RLock => Thing::RLock(options.rlock()$($await)*?),
                        Kind::Semaphore { value, max } => {
                            assert_eq!(*max, 0, "a maximum needs the wire");
                            Thing::Semaphore(options.semaphore(*value)$($await)*?)
                        }
                        Kind::BoundedSemaphore { value } => {
                            Thing::Bounded(options.bounded_semaphore(*value)$($await)*?)
                        }
                        Kind::Condition { lock: name } => {
                            let condition = match lock {
                                Some(Thing::Lock(lock)) => options.condition(&lock)$($await)*?,
                                Some(Thing::RLock(lock)) => options.condition(&lock)$($await)*?,
                                _ => panic!("{name} is known, and a lock"),
                            };
                            Thing::Condition(condition, name.clone())
                        }
                        Kind::Event => Thing::Event(options.event()$($await)*?),
                        Kind::Barrier { parties } => {
                            Thing::Barrier(options.barrier(*parties)$($await)*?)
                        }
                    })
                }
            }

            /// One owner: a thread, or a task.
            pub struct Owner {
                shared: Arc<Shared>,
                held: HashMap<String, Vec<Held>>,
            }

            impl Owner {
                pub fn new(shared: Arc<Shared>) -> Self {
                    Self { shared, held: HashMap::new() }
                }

                pub $($async)? fn perform(&mut self, op: Op) -> Outcome {
                    let name = op.object().unwrap_or_default().to_owned();
                    match op {
                        Op::Unlink { .. } => {
                            let unlinked = self.shared.client.unlink(&name)$($await)*;
                            return unlinked.map(|()| "ok".into()).map_err(not_created);
                        }
                        Op::Leave => {
                            self.shared.client.close()$($await)*;
                            return Ok("ok".into());
                        }
                        _ => {}
                    }
                    let declared = self.shared.declared.lock().unwrap().get(&name).cloned();
                    if let Some((Object { kind: Kind::Condition { lock }, .. }, _)) = declared {
                        self.shared.thing(&lock)$($await)*?;
                    }
                    let thing = self.shared.thing(&name)$($await)*?;
                    match op {
                        Op::Acquire { unowned: true, timeout, .. } => {
                            let taken = match (&thing, timeout) {
                                (Thing::Semaphore(s), None) => s.acquire_unowned()$($await)*,
                                (Thing::Semaphore(s), Some(t)) => {
                                    s.acquire_unowned_timeout(t)$($await)*
                                }
                                (Thing::Bounded(s), None) => s.acquire_unowned()$($await)*,
                                (Thing::Bounded(s), Some(t)) => {
                                    s.acquire_unowned_timeout(t)$($await)*
                                }
                                _ => return Err("only semaphores have unowned permits".into()),
                            };
                            taken.map_err(not_acquired)?;
                            self.held.entry(name).or_default().push(Held::Unowned);
                            Ok("granted".into())
                        }
                        Op::Acquire { timeout, unless_deadlock, .. } => {
                            let careful = unless_deadlock;
                            let held = match thing {
                                Thing::Lock(lock) => {
                                    let lock = if careful { lock.fail_on_deadlock() } else { lock };
                                    Held::Lock(match timeout {
                                        None => lock.acquire()$($await)*,
                                        Some(t) => lock.acquire_timeout(t)$($await)*,
                                    }.map_err(not_acquired)?)
                                }
                                Thing::RLock(lock) => {
                                    let lock = if careful { lock.fail_on_deadlock() } else { lock };
                                    Held::Lock(match timeout {
                                        None => lock.acquire()$($await)*,
                                        Some(t) => lock.acquire_timeout(t)$($await)*,
                                    }.map_err(not_acquired)?)
                                }
                                Thing::Semaphore(semaphore) => Held::Permit(match timeout {
                                    None => semaphore.acquire()$($await)*,
                                    Some(t) => semaphore.acquire_timeout(t)$($await)*,
                                }.map_err(not_acquired)?),
                                Thing::Bounded(semaphore) => Held::Permit(match timeout {
                                    None => semaphore.acquire()$($await)*,
                                    Some(t) => semaphore.acquire_timeout(t)$($await)*,
                                }.map_err(not_acquired)?),
                                _ => return Err("it can't be acquired".into()),
                            };
                            let outcome = match &held {
                                Held::Lock(guard) => granted("granted", guard),
                                Held::Permit(permit) => granted("granted", permit),
                                Held::Unowned => unreachable!("it is owned"),
                            };
                            self.held.entry(name).or_default().push(held);
                            Ok(outcome)
                        }
                        Op::Release { bare: true, .. } => bare(&thing)$($await)*,
                        Op::Release { bare: false, .. } => {
                            match self.held.get_mut(&name).and_then(Vec::pop) {
                                Some(Held::Lock(guard)) => guard.release()$($await)*,
                                Some(Held::Permit(permit)) => permit.release()$($await)*,
                                Some(Held::Unowned) => return bare(&thing)$($await)*,
                                None => return Err("it holds nothing".into()),
                            }.map(|()| "ok".into()).map_err(not_released)
                        }
                        Op::Forget { .. } => {
                            let held = self.held.entry(name).or_default();
                            let Some(Held::Permit(permit)) = held.pop() else {
                                return Err("it holds no permit".into());
                            };
                            held.push(Held::Unowned);
                            permit.forget()$($await)*.map(|()| "ok".into()).map_err(not_released)
                        }
                        Op::Mark { .. } => {
                            let held = self.held.get_mut(&name).and_then(|held| held.last_mut());
                            match (held, &thing) {
                                (Some(Held::Lock(guard)), _) => guard.mark_consistent()$($await)*,
                                (_, Thing::Lock(lock)) => lock.mark_consistent()$($await)*,
                                (_, Thing::RLock(lock)) => lock.mark_consistent()$($await)*,
                                _ => return Err("only locks are marked".into()),
                            }.map(|()| "ok".into()).map_err(not_released)
                        }
                        Op::Valid { .. } => {
                            let held = self.held.get(&name).and_then(|held| held.last());
                            match held {
                                Some(Held::Lock(guard)) => Ok(guard.is_valid().to_string()),
                                Some(Held::Permit(permit)) => Ok(permit.is_valid().to_string()),
                                _ => Err("it never held it".into()),
                            }
                        }
                        Op::Open { .. } => Ok("ok".into()),
                        Op::Wait { timeout, .. } => {
                            let Thing::Condition(condition, lock) = thing else {
                                return Err("it is no Condition".into());
                            };
                            let held = self.held.get_mut(&lock).and_then(|held| held.last_mut());
                            let Some(Held::Lock(guard)) = held else {
                                return Err("it doesn't hold the lock".into());
                            };
                            let outcome = match timeout {
                                None => {
                                    let waited = condition.wait(guard)$($await)*;
                                    waited.map(|()| WaitOutcome::Notified)
                                }
                                Some(t) => condition.wait_timeout(guard, t)$($await)*,
                            };
                            let outcome = outcome.map_err(not_waited)?;
                            Ok(granted(woken(outcome), guard))
                        }
                        Op::Notify { n, .. } => {
                            let Thing::Condition(condition, lock) = thing else {
                                return Err("it is no Condition".into());
                            };
                            let held = self.held.get(&lock).and_then(|held| held.last());
                            let Some(Held::Lock(guard)) = held else {
                                return Err("it doesn't hold the lock".into());
                            };
                            let count = match n {
                                None => condition.notify_all(guard)$($await)*,
                                Some(n) => condition.notify(guard, n)$($await)*,
                            };
                            count.map(|count| format!("ok {count}")).map_err(not_waited)
                        }
                        Op::Set { .. } | Op::Clear { .. } | Op::Await { .. } => {
                            let Thing::Event(event) = thing else {
                                return Err("it is no Event".into());
                            };
                            match op {
                                Op::Set { .. } => {
                                    event.set()$($await)*.map(|count| format!("ok {count}"))
                                }
                                Op::Clear { .. } => event.clear()$($await)*.map(|()| "ok".into()),
                                Op::Await { timeout: Some(t), .. } => {
                                    event.wait_timeout(t)$($await)*.map(|outcome| {
                                        if outcome.timed_out() { "timed out" } else { "ok" }.into()
                                    })
                                }
                                _ => event.wait()$($await)*.map(|()| "ok".into()),
                            }.map_err(failed)
                        }
                        Op::Meet { .. } | Op::Reset { .. } | Op::Abort { .. } => {
                            let Thing::Barrier(barrier) = thing else {
                                return Err("it is no Barrier".into());
                            };
                            let met = match op {
                                Op::Reset { .. } => {
                                    let reset = barrier.reset()$($await)*;
                                    return reset.map(|()| "ok".into()).map_err(failed);
                                }
                                Op::Abort { .. } => {
                                    let aborted = barrier.abort()$($await)*;
                                    return aborted.map(|()| "ok".into()).map_err(failed);
                                }
                                Op::Meet { timeout: Some(t), .. } => {
                                    barrier.wait_timeout(t)$($await)*
                                }
                                _ => barrier.wait()$($await)*,
                            };
                            met.map(|met| format!("passed {}", met.index())).map_err(not_met)
                        }
                        other => Err(format!("beyond this face: {other:?}")),
                    }
                }
            }

            /// A release without a token.
            $($async)? fn bare(thing: &Thing) -> Outcome {
                match thing {
                    Thing::Lock(lock) => lock.release()$($await)*,
                    Thing::RLock(lock) => lock.release()$($await)*,
                    Thing::Semaphore(semaphore) => {
                        let released = semaphore.release()$($await)*;
                        // It isn't answered: what comes after must find it done.
                        semaphore.value()$($await)*.map_err(failed)?;
                        released
                    }
                    Thing::Bounded(semaphore) => semaphore.release()$($await)*,
                    _ => return Err("it can't be released".into()),
                }.map(|()| "ok".into()).map_err(not_released)
            }
        }
    };
}

face!(asynchronous, syncd_client, [async], [.await]);
face!(threads, syncd_client::blocking, [], []);

/// Each owner is a thread.
pub fn run_blocking(namespace: String) {
    let client = builder(namespace).connect_blocking().expect("a session");
    let shared = threads::Shared::new(client);
    let mut owners = HashMap::new();
    for line in lines() {
        match line {
            Line::Object { object, by } => shared.declare(object, by),
            Line::Do { owner, op } => {
                let sender = owners.entry(owner).or_insert_with(|| {
                    let (sender, ops) = std::sync::mpsc::channel::<Op>();
                    let shared = shared.clone();
                    std::thread::spawn(move || {
                        let mut me = threads::Owner::new(shared);
                        for op in ops {
                            say(owner, &me.perform(op).unwrap_or_else(|refusal| refusal));
                        }
                    });
                    sender
                });
                sender.send(op).expect("its owner lives");
            }
        }
    }
}

/// Each owner is a task.
pub fn run_async(namespace: String) {
    let mut builder_ = tokio::runtime::Builder::new_current_thread();
    let runtime = builder_.enable_all().build().expect("a runtime");
    let client = runtime.block_on(builder(namespace).connect()).expect("a session");
    let shared = asynchronous::Shared::new(client);
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || lines().into_iter().for_each(|line| drop(sender.send(line))));
    runtime.block_on(async {
        let mut owners = HashMap::new();
        while let Some(line) = received.recv().await {
            match line {
                Line::Object { object, by } => shared.declare(object, by),
                Line::Do { owner, op } => {
                    let sender = owners.entry(owner).or_insert_with(|| {
                        let (sender, mut ops) = tokio::sync::mpsc::unbounded_channel::<Op>();
                        let shared = shared.clone();
                        tokio::spawn(async move {
                            let mut me = asynchronous::Owner::new(shared);
                            while let Some(op) = ops.recv().await {
                                let outcome = me.perform(op).await;
                                say(owner, &outcome.unwrap_or_else(|refusal| refusal));
                            }
                        });
                        sender
                    });
                    sender.send(op).expect("its owner lives");
                }
            }
        }
    });
}
