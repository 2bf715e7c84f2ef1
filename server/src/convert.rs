//! Where the wire and the core meet: each message of one has its twin in the other. Nothing
//! here decides anything about a lock, and nowhere else do the two meet.

mod message;
mod request;
mod view;

pub(crate) use message::{NOT_KEPT, cause_text, failed, holder, shutting_down};
pub use message::{error, server_message};
pub use request::{Invalid, request};
pub(crate) use view::{describe, object, process, session, watch_event};

use std::time::Duration;

/// A duration on the wire, in microseconds; one too long to count is the longest.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
