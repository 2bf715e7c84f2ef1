//! Broken connections, absent daemons, and when the session is given up.

use syncd_proto::v1::{EventWait, SessionEnd, client_message::Request, server_message::Message};

use super::{super::*, GRACE, acquire, cut, message, opened, transmit};

/// The protocol connects, and no daemon listens.
fn miss(protocol: &mut Protocol, now: Instant) {
    assert!(protocol.poll_connect(now));
    protocol.handle_disconnected(now, End::Absent("nobody".to_owned()));
}

/// As [`connect`], to a daemon whose sessions outlive it or don't; returns the protocol's Open.
fn connect_to(protocol: &mut Protocol, now: Instant, outlives_daemon: bool) -> Open {
    assert!(protocol.poll_connect(now));
    protocol.handle_connected();
    let greeting = transmit(protocol).remove(0);
    let grace_us = GRACE.as_micros() as u64;
    let resume_key = vec![1];
    let opened = Opened { outlives_daemon, grace_us, resume_key, ..Opened::default() };
    protocol.handle_timeout(now);
    protocol.handle_message(message(0, 0, Message::Opened(opened)));
    let Some(Request::Open(open)) = greeting.request else { panic!("{greeting:?}") };
    open
}

/// When the protocol gives up, if from `now` on each attempt ends with `end`.
fn end_of(protocol: &mut Protocol, mut now: Instant, end: &End) -> Instant {
    while protocol.lost().is_none() {
        if protocol.poll_connect(now) {
            protocol.handle_disconnected(now, end.clone());
        }
        now = protocol.poll_timeout().unwrap_or(now);
        protocol.handle_timeout(now);
    }
    now
}

#[test]
fn a_session_is_given_up_before_its_grace_ends_however_many_attempts_are_made() {
    let start = Instant::now();
    let mut now = start;
    let mut protocol = opened(now);
    let id = acquire(&mut protocol, None);
    cut(&mut protocol, now);
    while protocol.lost().is_none() {
        if protocol.poll_connect(now) {
            // Connected, and no reply.
            protocol.handle_connected();
        }
        now = protocol.poll_timeout().expect("it has an end");
        protocol.handle_timeout(now);
    }
    assert!(now < start + GRACE);
    assert!(matches!(protocol.poll_reply(id), Some(Err(Failure::Lost(_)))));
}

#[test]
fn a_session_that_outlives_its_daemon_waits_for_the_next_for_its_patience() {
    let start = Instant::now();
    let absent = End::Absent("nobody".to_owned());
    let end = |outlives: bool, is_leaving: bool, end: &End| {
        let mut protocol = Protocol::new(start, Open::default());
        protocol.set_patience(GRACE * 3);
        connect_to(&mut protocol, start, outlives);
        if is_leaving {
            let leaves = SessionEnd { shutting_down: true, ..SessionEnd::default() };
            protocol.handle_message(message(1, 0, Message::SessionEnd(leaves)));
        }
        cut(&mut protocol, start);
        let end = end_of(&mut protocol, start, end);
        assert_eq!(protocol.poll_replaced().is_some(), outlives);
        end - start
    };
    let broken = End::Broken("no".to_owned());
    let grace = GRACE * 3 / 4;
    assert_eq!(end(false, false, &absent), grace);
    assert_eq!(end(true, false, &absent), GRACE * 3);
    // The daemon may be alive, and grant the locks to others after the grace.
    assert_eq!(end(true, false, &broken), grace);
    assert_eq!(end(true, true, &broken), GRACE * 3);
}

/// The next daemon may have resumed it, and counts its grace from when that connection broke.
#[test]
fn a_session_whose_next_connection_breaks_unanswered_is_given_up_within_that_daemons_grace() {
    let start = Instant::now();
    let mut protocol = Protocol::new(start, Open::default());
    connect_to(&mut protocol, start, true);
    cut(&mut protocol, start);
    miss(&mut protocol, start);
    let later = start + GRACE * 2;
    assert!(protocol.poll_connect(later));
    protocol.handle_connected();
    cut(&mut protocol, later);
    let broken = End::Broken("no".to_owned());
    assert_eq!(end_of(&mut protocol, later, &broken), later + GRACE * 3 / 4);
}

/// A service manager listens while there is no daemon.
#[test]
fn a_connection_that_nobody_answers_is_waited_for_if_the_daemon_said_that_it_leaves() {
    let start = Instant::now();
    let end = |is_leaving: bool| {
        let mut protocol = Protocol::new(start, Open::default());
        connect_to(&mut protocol, start, true);
        if is_leaving {
            let leaves = SessionEnd { shutting_down: true, ..SessionEnd::default() };
            protocol.handle_message(message(1, 0, Message::SessionEnd(leaves)));
        }
        cut(&mut protocol, start);
        assert!(protocol.poll_connect(start));
        protocol.handle_connected();
        protocol.poll_timeout().unwrap() - start
    };
    assert_eq!(end(true), PATIENCE);
    // The daemon may be stopped, and counts the grace.
    assert_eq!(end(false), GRACE * 3 / 4);
}

#[test]
fn a_session_that_the_next_daemon_does_not_know_is_lost_at_once() {
    let now = Instant::now();
    let mut protocol = Protocol::new(now, Open::default());
    connect_to(&mut protocol, now, true);
    let id = acquire(&mut protocol, None);
    cut(&mut protocol, now);
    miss(&mut protocol, now);
    let now = protocol.poll_timeout().unwrap();
    assert!(protocol.poll_connect(now));
    protocol.handle_connected();
    transmit(&mut protocol);
    let error = v1::Error { text: "none".to_owned(), ..v1::Error::default() };
    protocol.handle_message(message(0, 0, Message::Error(Box::new(error))));
    assert!(matches!(protocol.poll_reply(id), Some(Err(Failure::Lost(_)))));
    assert_eq!(protocol.poll_replaced(), None);
}

#[test]
fn attempts_are_numbered_and_become_less_frequent() {
    let start = Instant::now();
    let mut now = start;
    let mut protocol = Protocol::new(now, Open::default());
    assert_eq!(connect_to(&mut protocol, now, true).attempt, 0);
    for attempt in 1..4 {
        cut(&mut protocol, now);
        let open = connect_to(&mut protocol, now, true);
        assert_eq!((open.attempt, open.resume_key), (attempt, vec![1]));
    }
    cut(&mut protocol, now);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        miss(&mut protocol, now);
        let next = protocol.poll_timeout().unwrap();
        pauses.push(next - now);
        now = next;
    }
    let within = |pause: Duration, most: u64| {
        let most = Duration::from_millis(most);
        pause >= most * 3 / 4 && pause <= most * 5 / 4
    };
    assert!(within(pauses[0], 1) && within(pauses[3], 8), "{pauses:?}");
    assert!(pauses[7..].iter().all(|pause| within(*pause, 100)), "{pauses:?}");
}

/// Rule R33: time-outs run while there is no daemon.
#[test]
fn the_time_without_a_daemon_counts_against_time_outs() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let mut protocol = Protocol::new(start, Open::default());
    connect_to(&mut protocol, start, true);
    let wait = |protocol: &mut Protocol, seconds: u64, now: Instant| {
        let timeout_us = Some(seconds * 1_000_000);
        let wait = Request::EventWait(EventWait { handle: 9, owner: 1, timeout_us });
        protocol.handle_request(wait, Some(Undo::Wait), None);
        protocol.handle_timeout(now);
    };
    wait(&mut protocol, 5, start);
    transmit(&mut protocol);
    cut(&mut protocol, start);
    let mut now = start;
    miss(&mut protocol, now);
    now += second * 2;
    wait(&mut protocol, 5, now);
    wait(&mut protocol, 1, now);
    miss(&mut protocol, now);
    now += second * 2;
    connect_to(&mut protocol, now, true);
    let timeouts = |sent: Vec<ClientMessage>| {
        let timeout = |message: ClientMessage| match message.request {
            Some(Request::EventWait(wait)) => wait.timeout_us.unwrap() / 1_000_000,
            other => panic!("{other:?}"),
        };
        sent.into_iter().map(timeout).collect::<Vec<_>>()
    };
    assert_eq!(timeouts(transmit(&mut protocol)), [1, 3, 0]);
    // A second break counts from the request's start, too.
    cut(&mut protocol, now);
    connect_to(&mut protocol, now + second, true);
    assert_eq!(timeouts(transmit(&mut protocol)), [0, 2, 0]);
}
