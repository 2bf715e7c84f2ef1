//! Namespaces at a session's opening: shared or private, refused or hinted at.

mod support;

use support::{Daemon, Session, open};
use syncd_proto::v1::{
    self, ErrorCode, Open, Opened, client_message::Request, server_message::Message,
};

fn sharing() -> Daemon {
    Daemon::with(|config| config.shared = vec!["jobs".into(), "mail".into()])
}

fn named(namespace: &str) -> Open {
    Open { namespace: namespace.into(), ..open() }
}

#[tokio::test]
async fn a_new_private_namespace_of_nearly_a_shared_ones_name_is_hinted_at() {
    let daemon = sharing();
    let opened = async |namespace: &str| -> (Session, Opened) {
        let session = Session::open(daemon.channel().await, named(namespace)).await.unwrap();
        let opened = session.opened.clone();
        (session, opened)
    };
    let (_first, slip) = opened("job").await;
    assert_eq!(slip.similar, ["jobs"]);
    // Somebody is there now: so it is meant.
    assert!(opened("job").await.1.similar.is_empty());
    for meant in ["", "jobs", "shared/jobs", "nightly"] {
        let (_session, opened) = opened(meant).await;
        assert!(opened.similar.is_empty(), "{meant}: {:?}", opened.similar);
    }
}

#[tokio::test]
async fn what_is_not_shared_is_never_made_in_its_place() {
    let daemon = sharing();
    for (namespace, code) in [
        ("shared/job", ErrorCode::NotFound),
        ("shared/", ErrorCode::NotFound),
        ("a\nb", ErrorCode::InvalidArgument),
        ("a\u{7f}", ErrorCode::InvalidArgument),
    ] {
        let refused = Session::open(daemon.channel().await, named(namespace)).await.err().unwrap();
        assert_eq!((refused.code(), &*refused.field), (code, "namespace"), "{namespace:?}");
    }
}

#[tokio::test]
async fn a_namespace_that_is_kept_counts_though_nobody_is_connected() {
    let daemon = Daemon::with(|config| config.limits.namespaces = 2);
    let mut session = Session::open(daemon.channel().await, named("a")).await.unwrap();
    let spec = v1::create::Spec::Event(v1::EventSpec {});
    let kept = v1::Create { name: "e".into(), spec: Some(spec), keep: true, ..Default::default() };
    let Message::Attached(_) = session.ask(Request::Create(kept)).await else { panic!() };
    session.ask(Request::Goodbye(v1::Goodbye {})).await;
    drop(session);
    let used = async || {
        let status = daemon.inspect().await.status(v1::StatusRequest {}).await.unwrap();
        let quotas = status.into_inner().quotas;
        quotas.iter().find(|quota| quota.field == "namespaces").unwrap().used
    };
    // Each of these is the only connection of its user, and leaves before the next one comes.
    for _ in 0..20 {
        assert_eq!(used().await, 1);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut session = Session::open(daemon.channel().await, named("a")).await.unwrap();
    session.ask(Request::Unlink(v1::Unlink { name: "e".into() })).await;
    session.ask(Request::Goodbye(v1::Goodbye {})).await;
    assert_eq!(used().await, 0);
    let _b = Session::open(daemon.channel().await, named("b")).await.unwrap();
    let _c = Session::open(daemon.channel().await, named("c")).await.unwrap();
    let refused = Session::open(daemon.channel().await, named("d")).await.err().unwrap();
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::Quota, "namespaces"));
}
