//! Sessions over the wire: opening, resuming, ending, and refusals, with a plain tonic client. The
//! meaning of locks is tested elsewhere.

mod support;

use support::{Daemon, Session, acquire, open, stream, within};
use syncd_proto::v1::{
    self, Cause, ClientMessage, ErrorCode, client_message::Request, server_message::Message,
};
use tonic::Code;

fn error(message: Message) -> v1::Error {
    match message {
        Message::Error(error) => *error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_lock_goes_from_hand_to_hand() {
    let daemon = Daemon::start();
    let mut first = daemon.session().await;
    let mut second = daemon.session().await;
    let (mine, theirs) = (first.lock("a").await, second.lock("a").await);
    let Message::Granted(held) = first.ask(acquire(mine)).await else { panic!("it was free") };
    let waiting = second.send(acquire(theirs)).await;
    let release = v1::Release { handle: mine, owner: 1, token: held.token, quiet: false };
    assert_eq!(first.ask(Request::Release(release)).await, Message::Done(v1::Done { count: 0 }));
    let granted = second.next().await;
    assert_eq!(granted.id, waiting);
    let Message::Granted(next) = granted.message.unwrap() else { panic!("it is free again") };
    assert!(next.token > held.token);
    daemon.stop().await;
}

#[tokio::test]
async fn another_protocol_is_refused_with_the_daemons_own() {
    let daemon = Daemon::start();
    let open = v1::Open { protocol: 99, ..Default::default() };
    let refused = Session::open(daemon.channel().await, open).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::Unsupported);
    assert!(refused.text.contains("version 1"), "{}", refused.text);
}

#[tokio::test]
async fn what_is_wrong_with_an_open_is_named() {
    let daemon = Daemon::start();
    let long = "x".repeat(256);
    for (field, wrong) in [
        ("label", v1::Open { label: long.clone(), ..open() }),
        ("namespace", v1::Open { namespace: long.clone(), ..open() }),
        ("namespace", v1::Open { namespace: "a\0b".into(), ..open() }),
        ("namespace", v1::Open { namespace: "a\nb".into(), ..open() }),
    ] {
        let refused = Session::open(daemon.channel().await, wrong).await.err().unwrap();
        assert_eq!((refused.code(), &*refused.field), (ErrorCode::InvalidArgument, field));
    }
    let (requests, mut replies) = stream(daemon.channel().await).await.unwrap();
    requests.send(ClientMessage { id: 1, ack: 0, request: Some(acquire(0)) }).await.unwrap();
    let refused = within(replies.message()).await.unwrap().unwrap();
    assert_eq!(error(refused.message.unwrap()).field, "request");
    assert!(within(replies.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_request_that_says_nothing_is_refused_in_its_turn() {
    let daemon = Daemon::start();
    let mut session = daemon.session().await;
    let refused = session.ask(Request::Create(v1::Create::default())).await;
    assert_eq!(error(refused).field, "spec");
    let id = session.send(Request::Open(open())).await;
    let refused = session.next().await;
    assert_eq!((refused.id, refused.seq), (id, 2));
    assert_eq!(error(refused.message.unwrap()).code(), ErrorCode::InvalidArgument);
    session.lock("still served").await;
}

#[tokio::test]
async fn a_broken_connection_is_resumed_with_all_that_was_missed() {
    let daemon = Daemon::start();
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    holder.ask(acquire(handle)).await;
    let mut waiter = daemon.session().await;
    let handle = waiter.lock("a").await;
    let waiting = waiter.send(acquire(handle)).await;
    // Its reply proves that the Acquire has been handled.
    waiter.ask(Request::Query(v1::Query { handle })).await;
    let resume = v1::Open { resume_key: waiter.opened.resume_key.clone(), resume_seq: 2, ..open() };
    drop(waiter);
    drop(holder.ask(Request::Goodbye(v1::Goodbye {})).await);
    assert!(within(holder.replies.message()).await.unwrap().is_none());

    let mut resumed = Session::open(daemon.channel().await, resume).await.unwrap();
    assert_eq!(resumed.opened.last_id, waiting + 1);
    let granted = resumed.next().await;
    assert_eq!((granted.id, granted.seq), (waiting, 3));
    let Message::Granted(granted) = granted.message.unwrap() else { panic!("not granted") };
    assert_eq!(granted.abandoned.unwrap().cause(), Cause::Left);
}

#[tokio::test]
async fn a_resume_takes_the_session_from_its_old_stream() {
    let daemon = Daemon::start();
    let mut old = daemon.session().await;
    let resume = v1::Open { resume_key: old.opened.resume_key.clone(), ..open() };
    let mut new = Session::open(daemon.channel().await, resume).await.unwrap();
    assert_eq!(new.opened.session, old.opened.session);
    assert_eq!(within(old.replies.message()).await.unwrap_err().code(), Code::Aborted);
    drop(old);
    new.lock("still served").await;
}

/// The connection was late: the client has made another one meanwhile.
#[tokio::test]
async fn an_attempt_to_resume_that_is_read_after_its_successor_leaves_that_ones_stream_alone() {
    let daemon = Daemon::start();
    let first = daemon.session().await;
    let resume =
        |attempt| v1::Open { resume_key: first.opened.resume_key.clone(), attempt, ..open() };
    let (stale, replies) = stream(daemon.channel().await).await.unwrap();
    let mut live = Session::open(daemon.channel().await, resume(2)).await.unwrap();
    let handle = live.lock("a").await;
    let open = Some(Request::Open(resume(1)));
    stale.send(ClientMessage { id: 0, ack: 0, request: open }).await.unwrap();
    let mut replies = replies;
    let refused = within(replies.message()).await.unwrap().unwrap();
    let refused = error(refused.message.unwrap());
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::InvalidArgument, "attempt"));
    assert!(within(replies.message()).await.unwrap().is_none());
    assert!(matches!(live.ask(acquire(handle)).await, Message::Granted(_)));
    // The next one takes over as usual.
    let next = Session::open(daemon.channel().await, resume(3)).await.unwrap();
    assert_eq!(next.opened.session, first.opened.session);
    assert_eq!(within(live.replies.message()).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn a_session_that_was_given_up_ends_as_the_one_in_its_place_opens() {
    let daemon = Daemon::start();
    let mut old = daemon.session().await;
    let handle = old.lock("a").await;
    old.ask(acquire(handle)).await;
    let instead = v1::Open { replaces: old.opened.resume_key.clone(), ..open() };
    let mut new = Session::open(daemon.channel().await, instead).await.unwrap();
    assert_ne!(new.opened.session, old.opened.session);
    let handle = new.lock("a").await;
    let Message::Granted(granted) = new.ask(acquire(handle)).await else { panic!("not free") };
    assert_eq!(granted.abandoned.unwrap().cause(), Cause::Disconnected);
}

#[tokio::test]
async fn a_forged_resume_key_finds_no_session() {
    let daemon = Daemon::start();
    let mut session = daemon.session().await;
    let key = session.opened.resume_key.clone();
    let mut wrong = key.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let instead = v1::Open { replaces: wrong.clone(), ..open() };
    drop(Session::open(daemon.channel().await, instead).await.unwrap());
    for (namespace, key) in [("", wrong), ("", key[..8].to_vec()), ("", vec![0]), ("else", key)] {
        let resume = v1::Open { resume_key: key, namespace: namespace.into(), ..open() };
        let refused = Session::open(daemon.channel().await, resume).await.err().unwrap();
        assert_eq!(refused.code(), ErrorCode::NotFound);
    }
    session.lock("still served").await;
}

#[tokio::test]
async fn bytes_that_are_no_message_lose_the_session_alone() {
    let daemon = Daemon::start();
    let mut other = daemon.session().await;
    let session = daemon.session().await;
    let long = v1::Unlink { name: "x".repeat(100_000) };
    session.send(Request::Unlink(long)).await;
    let mut session = session;
    let status = within(session.replies.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    let reply = daemon.inspect().await.sessions(v1::SessionsRequest::default()).await.unwrap();
    let left: Vec<u64> = reply.into_inner().sessions.iter().map(|s| s.id).collect();
    assert_eq!(left, [other.opened.session]);
    other.lock("still served").await;
}

#[tokio::test]
async fn goodbye_ends_the_stream_and_the_session() {
    let daemon = Daemon::start();
    let mut session = daemon.session().await;
    session.lock("a").await;
    assert_eq!(
        session.ask(Request::Goodbye(v1::Goodbye {})).await,
        Message::Done(v1::Done { count: 0 })
    );
    assert!(within(session.replies.message()).await.unwrap().is_none());
    let status = daemon.inspect().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.sessions, status.namespaces.len()), (0, 0), "the namespace is gone too");
}

#[tokio::test]
async fn numbers_never_fall_back_when_a_namespace_is_made_anew() {
    let daemon = Daemon::start();
    let mut last = 0;
    for _ in 0..3 {
        let mut session = daemon.session().await;
        let handle = session.lock("a").await;
        let Message::Granted(granted) = session.ask(acquire(handle)).await else { panic!() };
        assert!(granted.token > last && session.opened.session > last);
        last = granted.token;
        session.ask(Request::Goodbye(v1::Goodbye {})).await;
    }
}

#[tokio::test]
async fn a_daemon_that_leaves_tells_its_sessions() {
    let daemon = Daemon::start();
    let mut session = daemon.session().await;
    let mut inspect = daemon.inspect().await;
    let mut events = inspect.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let endpoint = daemon.endpoint.clone();
    daemon.stop().await;
    let Message::SessionEnd(end) = session.next().await.message.unwrap() else { panic!() };
    assert!(end.shutting_down);
    let ended = loop {
        match within(events.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if nothing were"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(!endpoint.as_path().exists());
}

#[tokio::test]
async fn an_idle_daemon_leaves_but_not_while_an_object_is_kept() {
    // A busy machine may take long until the first session is open.
    let idle = std::time::Duration::from_secs(2);
    let daemon = Daemon::with(|config| config.idle_exit = Some(idle));
    let mut session = daemon.session().await;
    let spec = v1::create::Spec::Event(v1::EventSpec {});
    let kept =
        v1::Create { name: "kept".into(), spec: Some(spec), keep: true, ..Default::default() };
    session.ask(Request::Create(kept)).await;
    session.ask(Request::Goodbye(v1::Goodbye {})).await;
    drop(session);
    tokio::time::sleep(2 * idle).await;
    let mut session = daemon.session().await;
    session.ask(Request::Unlink(v1::Unlink { name: "kept".into() })).await;
    session.ask(Request::Goodbye(v1::Goodbye {})).await;
    drop(session);
    daemon.left().await;
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_named() {
    let daemon = Daemon::with(|config| {
        config.limits.sessions = 1;
        config.limits.connections = 3;
    });
    let in_namespace = |name: &str| v1::Open { namespace: name.into(), ..open() };
    let channel = daemon.channel().await;
    let first = Session::open(channel.clone(), open()).await.unwrap();
    let refused = Session::open(channel.clone(), open()).await.err().unwrap();
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::Quota, "sessions"));
    let mut sessions = vec![first];
    let refused = loop {
        let name = format!("n{}", sessions.len());
        match Session::open(channel.clone(), in_namespace(&name)).await {
            Ok(session) => sessions.push(session),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::Quota, "namespaces"));
    assert_eq!(sessions.len(), 64);

    let _two = (daemon.channel().await, daemon.channel().await);
    let mut one_more = tokio::net::UnixStream::connect(daemon.endpoint.as_path()).await.unwrap();
    let mut said = Vec::new();
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut one_more, &mut said)).await;
    assert!(said.is_empty(), "a connection too many is closed without a word");
    sessions[0].lock("still served").await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_opened_a_session_holds_no_daemon_up() {
    let daemon = Daemon::start();
    let (_requests, mut replies) = stream(daemon.channel().await).await.unwrap();
    let told = tokio::time::Instant::now();
    daemon.stop().await;
    // The clock goes on by itself while nothing else does: it would have, to the end of a wait.
    assert!(told.elapsed() < std::time::Duration::from_secs(5));
    assert_eq!(within(replies.message()).await.unwrap_err().code(), Code::Unavailable);
}
