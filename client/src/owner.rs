//! Owner numbers: they identify threads, tasks and owned guards within one session.

use std::{
    cell::Cell,
    hash::{Hash as _, Hasher},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const THREAD: u64 = 1;
const TASK: u64 = 2;
const GUARD: u64 = 3;

/// The current task's number, or outside of tasks the thread's.
pub(crate) fn current() -> u64 {
    match tokio::task::try_id() {
        Some(task) => number_of(task) << 2 | TASK,
        None => thread(),
    }
}

/// A new number for an owned guard.
pub(crate) fn fresh() -> u64 {
    static GUARDS: AtomicU64 = AtomicU64::new(1);
    GUARDS.fetch_add(1, Relaxed) << 2 | GUARD
}

/// The current thread's number, even inside a task.
pub(crate) fn thread() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(THREADS.fetch_add(1, Relaxed) << 2 | THREAD);
        }
        number.get()
    })
}

/// The number in a task's Id, which tokio exposes only through `Hash`.
fn number_of(task: tokio::task::Id) -> u64 {
    struct Number(u64);
    impl Hasher for Number {
        fn write(&mut self, bytes: &[u8]) {
            bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
        }
        fn write_u64(&mut self, number: u64) {
            self.0 = number;
        }
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let mut number = Number(0);
    task.hash(&mut number);
    number.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_shares_it_with_nobody() {
        let here = current();
        assert_eq!(current(), here);
        let there = std::thread::spawn(current).join().unwrap();
        assert_ne!(there, here);
        assert_ne!(fresh(), fresh());
    }

    #[tokio::test]
    async fn each_task_is_an_owner_of_its_own() {
        let tasks = [tokio::spawn(async { current() }), tokio::spawn(async { current() })];
        let [a, b] = tasks;
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_ne!(a, b);
        assert_eq!((a & 3, b & 3, current() & 3), (TASK, TASK, THREAD));
    }
}
