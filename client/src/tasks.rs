//! The shell for tasks: futures that wait for a session's replies, and do its I/O while they are
//! polled. [`blocking`](crate::blocking) is the shell for threads.

mod connect;
mod driver;
mod leader;
mod session;
mod waiting;

use std::time::Duration;

pub(crate) use self::{connect::session, session::Session};

/// How long a dropped session waits until its unsent requests are in the socket.
const FLUSH: Duration = Duration::from_secs(1);
