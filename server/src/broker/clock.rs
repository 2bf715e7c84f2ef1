//! The clock, and the task that keeps a namespace's time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use syncd_core::Time;
use tokio::task::yield_now;

use super::Broker;
use crate::namespace::{Namespace, Standing};

/// The core's clock: nanoseconds since the machine's start, so that deadlines continue across
/// daemons.
pub(crate) struct Clock {
    began: Time,
    since: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { began: Time(since_boot()), since: Instant::now() }
    }

    pub fn now(&self) -> Time {
        self.began + self.since.elapsed()
    }

    /// The daemon's age.
    pub fn uptime(&self) -> Duration {
        self.since.elapsed()
    }
}

#[cfg(unix)]
fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// On Windows no state is restored, so any origin will do.
#[cfg(windows)]
fn since_boot() -> u64 {
    0
}

/// Calls `handle_timeout` of a namespace when it is due, until the namespace or the daemon ends.
/// Yields after each call.
pub(super) async fn keep_time(broker: Arc<Broker>, namespace: Arc<Namespace>) {
    loop {
        let armed = {
            let state = namespace.lock();
            if state.standing != Standing::Good {
                return;
            }
            state.armed
        };
        let earlier = namespace.timer.notified();
        let Some(at) = armed else {
            earlier.await;
            continue;
        };
        let now = broker.now();
        if at > now {
            // At most a day at a time, since tokio's timer has a limit.
            let wait = at.since(now).min(Duration::from_secs(86_400));
            if tokio::time::timeout(wait, earlier).await.is_ok() {
                continue;
            }
        }
        let called = broker.enter(&namespace, broker.now(), None, |state, now| {
            state.armed = None;
            state.space.handle_timeout(now);
        });
        if called.is_err() {
            return;
        }
        yield_now().await;
    }
}
