//! Tests of the protocol: one promise at a time here, broken connections in `reconnect`, a seeded
//! run against a small broker in `seeded`.

mod reconnect;
mod seeded;

use syncd_proto::v1::{
    Acquire, Cause, EventSet, Granted, Release, SemLockClass, SessionEnd, client_message::Request,
    server_message::Message,
};

use super::*;

const LOCK: u32 = 7;
const GRACE: Duration = Duration::from_secs(10);

fn release(token: u64) -> Request {
    Request::Release(Release { handle: LOCK, owner: 1, token, quiet: true })
}

/// A protocol whose session is open.
fn opened(now: Instant) -> Protocol {
    let mut protocol = Protocol::new(now, Open::default());
    connect(&mut protocol, now, 0);
    protocol
}

/// Connects the protocol; everything that it transmits is dropped.
fn connect(protocol: &mut Protocol, now: Instant, last_id: u64) {
    assert!(protocol.poll_connect(now));
    protocol.handle_connected();
    transmit(protocol);
    let grace_us = GRACE.as_micros() as u64;
    let opened = Opened { last_id, grace_us, resume_key: vec![1], ..Opened::default() };
    protocol.handle_message(message(0, 0, Message::Opened(opened)));
}

fn message(seq: u64, id: u64, message: Message) -> ServerMessage {
    ServerMessage { seq, id, message: Some(message) }
}

fn transmit(protocol: &mut Protocol) -> Vec<ClientMessage> {
    std::iter::from_fn(|| protocol.poll_transmit().cloned()).collect()
}

fn cut(protocol: &mut Protocol, now: Instant) {
    protocol.handle_disconnected(now, End::Broken("cut".to_owned()));
}

fn acquire(protocol: &mut Protocol, deadline: Option<Instant>) -> u64 {
    let undo = Undo::Grant { handle: LOCK, owner: 1, unowned: false };
    let acquire = Acquire { handle: LOCK, owner: 1, ..Acquire::default() };
    protocol.handle_request(Request::Acquire(acquire), Some(undo), deadline)
}

fn granted(token: u64) -> Message {
    Message::Granted(Granted { token, depth: 1, abandoned: None })
}

#[test]
fn a_resume_sends_again_what_has_not_arrived_and_no_more() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let ids: Vec<u64> = (0..3).map(|_| acquire(&mut protocol, None)).collect();
    assert_eq!(transmit(&mut protocol).len(), 3);
    cut(&mut protocol, now);
    assert!(transmit(&mut protocol).is_empty());
    connect(&mut protocol, now, ids[0]);
    let again: Vec<u64> = transmit(&mut protocol).iter().map(|message| message.id).collect();
    assert_eq!(again, ids[1..]);
}

#[test]
fn an_unanswered_request_ends_at_its_deadline_and_is_withdrawn() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let id = acquire(&mut protocol, Some(now + GRACE));
    transmit(&mut protocol);
    assert_eq!(protocol.poll_timeout(), Some(now + GRACE));
    protocol.handle_timeout(now + GRACE);
    assert_eq!(protocol.poll_reply(id), Some(Err(Failure::Overdue)));
    let sent = transmit(&mut protocol);
    assert!(matches!(&sent[..], [ClientMessage { request: Some(Request::Cancel(cancel)), .. }]
        if cancel.id == id && cancel.give_back));
}

#[test]
fn a_grant_to_be_undone_is_not_acknowledged_before_the_cancel_has_arrived() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let id = acquire(&mut protocol, None);
    protocol.handle_message(message(1, id, granted(5)));
    protocol.handle_withdraw(id);
    let set = Request::EventSet(EventSet { handle: 9 });
    let next = protocol.handle_request(set, None, None);
    assert!(transmit(&mut protocol).iter().all(|message| message.ack == 0));
    // The connection breaks: the resume must find the grant still kept.
    cut(&mut protocol, now);
    assert!(protocol.poll_connect(now));
    protocol.handle_connected();
    let greeting = protocol.poll_transmit().cloned().unwrap();
    assert!(matches!(greeting.request, Some(Request::Open(open)) if open.resume_seq == 0));
    protocol.handle_message(message(0, 0, Message::Opened(Opened::default())));
    transmit(&mut protocol);
    protocol.handle_message(message(2, next, Message::Done(v1::Done::default())));
    assert!(protocol.poll_reply(next).is_some());
    acquire(&mut protocol, None);
    assert_eq!(transmit(&mut protocol)[0].ack, 2);
}

#[test]
fn a_grant_that_was_acknowledged_is_released_by_its_token() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let id = acquire(&mut protocol, None);
    protocol.handle_message(message(1, id, granted(5)));
    let last = withdraw_late(&mut protocol, id);
    assert!(matches!(last, Some(Request::Release(release)) if release.token == 5));
}

/// Withdraws a request after so many others that its reply was acknowledged; returns the request
/// that this sends.
fn withdraw_late(protocol: &mut Protocol, id: u64) -> Option<Request> {
    for seq in 2..2000 {
        let set = Request::EventSet(EventSet { handle: 9 });
        let other = protocol.handle_request(set, None, None);
        protocol.handle_message(message(seq, other, Message::Done(v1::Done::default())));
        protocol.poll_reply(other).unwrap().unwrap();
    }
    transmit(protocol);
    protocol.handle_withdraw(id);
    transmit(protocol).pop().and_then(|message| message.request)
}

#[test]
fn a_withdrawn_unowned_permit_is_released_without_a_token() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let undo = Undo::Grant { handle: LOCK, owner: 1, unowned: true };
    let acquire = Request::Acquire(Acquire { handle: LOCK, unowned: true, ..Acquire::default() });
    let id = protocol.handle_request(acquire, Some(undo), None);
    protocol.handle_message(message(1, id, granted(5)));
    let last = withdraw_late(&mut protocol, id);
    assert!(matches!(last, Some(Request::Release(release)) if release.token == 0));
}

#[test]
fn a_late_attachment_is_detached() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let create = v1::Create {
        name: "l".to_owned(),
        spec: Some(v1::create::Spec::SemLock(v1::SemLockSpec {
            class: SemLockClass::Lock.into(),
            ..v1::SemLockSpec::default()
        })),
        ..v1::Create::default()
    };
    let id = protocol.handle_request(Request::Create(create), None, None);
    transmit(&mut protocol);
    protocol.handle_withdraw(id);
    let attached = v1::Attached { handle: 4, ..v1::Attached::default() };
    protocol.handle_message(message(1, id, Message::Attached(attached)));
    let sent = transmit(&mut protocol);
    assert!(matches!(&sent[..], [ClientMessage { request: Some(Request::Detach(detach)), .. }]
        if detach.handle == 4));
}

#[test]
fn a_release_of_a_hold_released_by_force_is_not_sent() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let lost = v1::HoldLost { token: 5, ..v1::HoldLost::default() };
    protocol.handle_message(message(1, 0, Message::HoldLost(lost)));
    assert!(protocol.is_taken(5));
    protocol.handle_post(release(5));
    assert!(transmit(&mut protocol).is_empty());
}

#[test]
fn a_lost_session_tells_every_waiter_and_counts_what_may_not_have_arrived() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let ids = [acquire(&mut protocol, None), acquire(&mut protocol, Some(now + GRACE))];
    protocol.handle_post(release(0));
    protocol.handle_post(release(5));
    transmit(&mut protocol);
    let end = SessionEnd { cause: Cause::Kicked.into(), ..SessionEnd::default() };
    protocol.handle_message(message(1, 0, Message::SessionEnd(end)));
    for id in ids {
        let Some(Err(Failure::Lost(why))) = protocol.poll_reply(id) else { panic!("{id}") };
        // The hold ended with the session, so its release isn't counted.
        assert_eq!(why.undelivered, 1);
    }
    assert_eq!(protocol.poll_timeout(), None);
    assert!(!protocol.is_unsent());
}

#[test]
fn a_producer_that_only_releases_learns_what_has_arrived_and_waits_when_nothing_does() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let mut seq = 0;
    for _ in 0..100_000 {
        protocol.handle_post(release(0));
        for sent in transmit(&mut protocol) {
            if let Some(Request::Release(Release { quiet: false, .. })) = sent.request {
                seq += 1;
                let done = Message::Done(v1::Done::default());
                protocol.handle_message(message(seq, sent.id, done));
            }
        }
        assert!(protocol.sent.len() <= 1100, "{}", protocol.sent.len());
        assert!(protocol.poll_room());
    }
    // The connection accepts no more bytes.
    for _ in 0..=CROWD {
        protocol.handle_post(release(0));
    }
    assert!(!protocol.poll_room());
    while protocol.poll_event().is_some() {}
    assert!(protocol.poll_transmit().is_some());
    assert_eq!(protocol.poll_event(), Some(Event::Room));
}

#[test]
fn a_closed_session_is_over_when_the_daemon_has_said_so() {
    let now = Instant::now();
    let mut protocol = opened(now);
    let id = protocol.handle_close();
    assert_eq!(protocol.handle_close(), id);
    transmit(&mut protocol);
    assert!(protocol.lost().is_none());
    protocol.handle_message(message(1, id, Message::Done(v1::Done::default())));
    assert_eq!(protocol.lost(), Some(&SessionLost::closed()));
    assert!(matches!(protocol.poll_reply(id), Some(Ok(Message::Done(_)))));
}

#[test]
fn no_secret_is_shown() {
    let now = Instant::now();
    let mut protocol = Protocol::new(now, Open::default());
    assert!(protocol.poll_connect(now));
    protocol.handle_connected();
    transmit(&mut protocol);
    let opened = Opened { resume_key: vec![171; 4], ..Opened::default() };
    protocol.handle_message(message(0, 0, Message::Opened(opened)));
    assert!(!format!("{protocol:?}").contains("171"));
}
