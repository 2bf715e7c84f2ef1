//! The namespace of a new session: shared or private, refused, or with a hint at a similar name.

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
async fn a_new_private_namespace_with_a_name_like_a_shared_one_is_pointed_out() {
    let daemon = sharing();
    let opened = async |namespace: &str| -> (Session, Opened) {
        let session = Session::open(daemon.channel().await, named(namespace)).await.unwrap();
        let opened = session.opened.clone();
        (session, opened)
    };
    let (_first, slip) = opened("job").await;
    assert_eq!(slip.similar, ["jobs"]);
    // It is no longer empty: so it is intended.
    assert!(opened("job").await.1.similar.is_empty());
    for meant in ["", "jobs", "shared/jobs", "nightly"] {
        let (_session, opened) = opened(meant).await;
        assert!(opened.similar.is_empty(), "{meant}: {:?}", opened.similar);
    }
}

#[tokio::test]
async fn an_unknown_shared_namespace_is_not_made() {
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
async fn a_kept_namespace_counts_without_a_connection() {
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
    // Each of these is its user's only connection, and closed before the next one.
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
