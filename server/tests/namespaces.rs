//! Namespaces at a session's opening: shared or private, refused or hinted at. Never here: what
//! other users may do.

mod support;

use support::{Daemon, Session, open};
use syncd_proto::v1::{ErrorCode, Open, Opened};

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
