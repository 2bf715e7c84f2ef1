//! Panics: one ends the call, session or namespace that it happened in, and nothing else. It is
//! caught here, reported and counted.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tracing::error;

static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// A panic that has been reported.
#[derive(Debug)]
pub(crate) struct Panicked;

/// How many panics were caught since the process started.
pub(crate) fn count() -> u64 {
    CAUGHT.load(Relaxed)
}

/// Locks a mutex even if it is poisoned: for state that no panic leaves inconsistent. (A namespace,
/// which one could, is ended by it.)
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `act`, and catches a panic in it. `within` names for the log what the panic ended.
pub(crate) fn caught<T>(within: &str, act: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| report(within, &*panic))
}

/// Reports a panic that was caught elsewhere.
pub(crate) fn report(within: &str, panic: &(dyn Any + Send)) -> Panicked {
    CAUGHT.fetch_add(1, Relaxed);
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("without a message");
    error!("panic in {within}, which ends: {text} (a bug in syncd: please report it)");
    Panicked
}

/// A future that returns a panic as its result.
pub(crate) struct Caught<F> {
    within: &'static str,
    future: Pin<Box<F>>,
}

impl<F: Future> Caught<F> {
    pub fn new(within: &'static str, future: F) -> Self {
        Self { within, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { within, future } = &mut *self;
        match caught(within, || future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_futures_panic_is_returned_and_counted() {
        let before = count();
        assert_eq!(Caught::new("a test", async { 1 }).await.unwrap(), 1);
        assert!(Caught::new("a test", async { panic!("at {}", 2) }).await.is_err());
        assert!(count() > before);
    }

    #[test]
    fn a_lock_can_be_used_after_a_panic_under_it() {
        let mutex = Mutex::new(1);
        let panicked = caught("a test", || {
            let _guard = mutex.lock();
            panic!();
        });
        assert!(panicked.is_err());
        assert_eq!(*lock(&mutex), 1);
    }
}
