//! The shell for tasks: futures that wait at a session, and what they do while they are polled.
//! Beside it stands [`blocking`](crate::blocking), for threads.

mod connect;
mod driver;
mod leader;
mod session;
mod waiting;

use std::time::Duration;

pub(crate) use self::{connect::session, session::Session};

/// For how long what couldn't be sent at once is waited for at the session's end.
const FLUSH: Duration = Duration::from_secs(1);
