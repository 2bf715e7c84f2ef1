//! Conversion between the protocol's messages and the core's values. Only this module uses both.

mod message;
mod request;
mod view;

pub(crate) use message::{NOT_KEPT, cause_text, failed, holder, shutting_down};
pub use message::{error, server_message};
pub use request::{Invalid, request};
pub(crate) use view::{describe, object, process, session, watch_event};

use std::time::Duration;

/// A duration in microseconds, as in the protocol; saturates.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
