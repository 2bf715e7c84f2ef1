//! How often opening a session is tried, and when a daemon is started. This decides; the shells
//! connect and wait.

use std::{
    io,
    time::{Duration, Instant},
};

use syncd_proto::{Endpoint, v1};

use crate::{
    ConnectError,
    error::is_absent,
    session::{LinkError, OpenError},
};

/// How long to retry a daemon that closes connections before it has opened a session: it may be
/// shutting down, after which another one can be found or started.
const LEAVING: Duration = Duration::from_secs(1);

/// How many times to start a daemon that came up and is gone before it has opened a session: it
/// may have been killed. A daemon that doesn't come up isn't started again.
const STARTS: u32 = 3;

/// The first pause between two attempts; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The attempts to open one session.
pub(crate) struct Attempts {
    endpoint: Endpoint,
    starts: u32,
    first_closed: Option<Instant>,
    pause: Duration,
}

/// What to do after an attempt that failed.
#[derive(Debug)]
pub(crate) enum Next {
    /// Try again after a pause.
    Again(Duration),
    /// Start a daemon and try again.
    Start,
    Fail(ConnectError),
}

impl Attempts {
    pub(crate) fn new(endpoint: &Endpoint, may_start: bool) -> Self {
        let starts = if may_start { STARTS } else { 0 };
        Self { endpoint: endpoint.clone(), starts, first_closed: None, pause: PAUSE }
    }

    pub(crate) fn handle_failure(&mut self, now: Instant, error: LinkError) -> Next {
        match &error {
            LinkError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Next::Again(PAUSE);
            }
            LinkError::Io(error) if is_absent(error) && self.starts > 0 => {
                self.starts -= 1;
                return Next::Start;
            }
            LinkError::Io(error) if is_absent(error) && self.first_closed.is_none() => {}
            error if error.is_final() => {}
            _ => {
                let first = *self.first_closed.get_or_insert(now);
                if now < first + LEAVING {
                    let pause = self.pause;
                    self.pause = (pause * 2).min(LONGEST_PAUSE);
                    return Next::Again(pause);
                }
            }
        }
        Next::Fail(ConnectError::of(&self.endpoint, OpenError::Link(error)))
    }
}

impl OpenError {
    /// The link's error, if another attempt may succeed; else `self`.
    pub(crate) fn leaving(self) -> Result<LinkError, Self> {
        match self {
            Self::Link(error) => Ok(error),
            // This client resumes no session, so the daemon is leaving.
            Self::Refused(error) if error.code() == v1::ErrorCode::SessionLost => {
                Ok(LinkError::Closed)
            }
            error => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use syncd_proto::v1::{Error, ErrorCode};

    use super::*;

    fn attempts(may_start: bool) -> Attempts {
        Attempts::new(&"/nowhere/s.sock".parse().unwrap(), may_start)
    }

    fn io(kind: io::ErrorKind) -> LinkError {
        LinkError::Io(kind.into())
    }

    #[test]
    fn an_absent_daemon_is_started_a_few_times_if_that_is_allowed() {
        let now = Instant::now();
        let mut attempts = self::attempts(true);
        let absent = || io(io::ErrorKind::NotFound);
        for _ in 0..STARTS {
            assert!(matches!(attempts.handle_failure(now, absent()), Next::Start));
        }
        let next = attempts.handle_failure(now, absent());
        assert!(matches!(next, Next::Fail(ConnectError::NoDaemon { .. })));
        let next = self::attempts(false).handle_failure(now, absent());
        assert!(matches!(next, Next::Fail(ConnectError::NoDaemon { .. })));
    }

    #[test]
    fn a_daemon_that_leaves_is_tried_again_and_another_is_started_when_it_is_gone() {
        let now = Instant::now();
        let mut attempts = attempts(true);
        for _ in 0..3 {
            let next = attempts.handle_failure(now, LinkError::Closed);
            assert!(matches!(next, Next::Again(_)));
        }
        let reset = attempts.handle_failure(now, io(io::ErrorKind::ConnectionReset));
        assert!(matches!(reset, Next::Again(_)));
        let gone = attempts.handle_failure(now, io(io::ErrorKind::ConnectionRefused));
        assert!(matches!(gone, Next::Start));
    }

    #[test]
    fn a_daemon_that_always_closes_is_given_up_with_its_reason() {
        let now = Instant::now();
        let mut attempts = attempts(true);
        assert!(matches!(attempts.handle_failure(now, LinkError::Closed), Next::Again(_)));
        let later = now + LEAVING;
        let Next::Fail(error) = attempts.handle_failure(later, LinkError::Closed) else { panic!() };
        assert!(error.to_string().contains("closed the connection"), "{error}");
    }

    #[test]
    fn a_daemon_that_says_that_it_leaves_is_tried_again() {
        let leaves = Error { code: ErrorCode::SessionLost.into(), ..Error::default() };
        let leaves = OpenError::Refused(Box::new(leaves)).leaving().unwrap();
        assert!(matches!(attempts(true).handle_failure(Instant::now(), leaves), Next::Again(_)));
        let quota = Error { code: ErrorCode::Quota.into(), ..Error::default() };
        assert!(OpenError::Refused(Box::new(quota)).leaving().is_err());
    }

    #[test]
    fn a_daemon_of_another_user_is_not_tried_again() {
        let denied = io(io::ErrorKind::PermissionDenied);
        let next = attempts(true).handle_failure(Instant::now(), denied);
        assert!(matches!(next, Next::Fail(ConnectError::Unreachable { .. })));
    }
}
