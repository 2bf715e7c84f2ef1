//! The task that keeps a namespace's time.

use std::{sync::Arc, time::Duration};

use tokio::task::yield_now;

use super::Broker;
use crate::namespace::{Namespace, Standing};

/// Calls a namespace's time-outs when they are due, and goes on with what calls have left to do,
/// until the namespace or the daemon ends. Others have their turn between two calls.
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
            // A moment too far away to name is looked at again before it comes.
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
