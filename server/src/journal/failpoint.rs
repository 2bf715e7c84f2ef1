//! Places where a test has the process killed: `SYNCD_FAILPOINT=name`, or `name:N` for the Nth
//! time that it comes by. Without the feature `failpoints` they are nothing.

/// Kills the process, as SIGKILL does, if it was told to die here.
#[cfg(feature = "failpoints")]
pub fn failpoint(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    static TOLD: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let told = TOLD.get_or_init(|| {
        let told = std::env::var("SYNCD_FAILPOINT").ok()?;
        Some(match told.split_once(':') {
            Some((name, count)) => {
                (name.to_owned(), count.parse().expect("SYNCD_FAILPOINT=name:N"))
            }
            None => (told, 1),
        })
    });
    let Some((told, count)) = told else { return };
    if told == name && PASSED.fetch_add(1, Relaxed) + 1 == *count {
        #[cfg(unix)]
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .expect("a process may kill itself");
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn failpoint(_name: &str) {}
