//! Two users at one daemon: what each may see and change of the other's. Only root can be two users;
//! otherwise these tests pass.
#![cfg(unix)]

mod support;

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use support::{Daemon, Session, acquire, channel, open, within};
use syncd_proto::v1::{
    self, ErrorCode, client_message::Request, inspect_client::InspectClient,
    server_message::Message,
};
use tonic::Code;

const SOCKET: &str = "SYNCD_TEST_SOCKET";
const NOBODY: u32 = 65_534;

/// Runs one of the parts below as another user, against `daemon`.
async fn as_nobody(daemon: &Daemon, part: &str) {
    let dir = daemon.endpoint.directory();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    // Another user may not be able to reach this binary's directory.
    let program = dir.join("client");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", part, "--nocapture"]).current_dir("/");
    command.env(SOCKET, daemon.endpoint.to_string()).uid(NOBODY).gid(NOBODY);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = within(output).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn for_all(config: &mut syncd::Config) {
    config.mode = 0o666;
    config.shared = vec!["jobs".into()];
}

fn in_namespace(namespace: &str) -> v1::Open {
    v1::Open { namespace: namespace.into(), ..open() }
}

#[tokio::test]
async fn a_namespace_is_its_users_own_unless_it_is_shared() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::with(for_all);
    let mut own = daemon.session().await;
    let handle = own.lock("a").await;
    own.ask(acquire(handle)).await;
    let mut shared = Session::open(daemon.channel().await, in_namespace("jobs")).await.unwrap();
    let handle = shared.lock("a").await;
    shared.ask(acquire(handle)).await;
    as_nobody(&daemon, "nobodys_part").await;
    // Root sees what user nobody has left, and all namespaces.
    let mut inspect = daemon.inspect().await;
    let status = inspect.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let seen: Vec<&str> = status.namespaces.iter().map(|n| &*n.namespace).collect();
    assert!(seen.starts_with(&["shared/jobs", "0"]), "{seen:?}");
}

#[tokio::test]
async fn nobody_can_use_a_shared_namespace_up_for_the_others() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::with(|config| {
        for_all(config);
        config.limits.memory = 1 << 20;
    });
    as_nobody(&daemon, "nobodys_greed").await;
    let mut shared = Session::open(daemon.channel().await, in_namespace("jobs")).await.unwrap();
    let (created, refused) = create_until_refused(&mut shared).await;
    assert!(created > 100, "{created}: {refused:?}");
}

/// Not a test but another user's part in one.
#[tokio::test]
async fn nobodys_greed() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let connection = channel(socket.parse().unwrap()).await;
    let mut shared = Session::open(connection, in_namespace("jobs")).await.unwrap();
    let (created, refused) = create_until_refused(&mut shared).await;
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::Quota, "memory"));
    assert!(created > 400, "{created}");
}

/// Makes objects that stay.
async fn create_until_refused(session: &mut Session) -> (usize, v1::Error) {
    for created in 0.. {
        let spec = Some(v1::create::Spec::Event(v1::EventSpec {}));
        let name = format!("{}: {created}", std::process::id());
        let create = v1::Create { name, spec, keep: true, ..Default::default() };
        match session.ask(Request::Create(create)).await {
            Message::Attached(_) => {}
            Message::Error(refused) => return (created, *refused),
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

/// Not a test but another user's part in one.
#[tokio::test]
async fn nobodys_part() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let connection = channel(socket.parse().unwrap()).await;
    let mut own = Session::open(connection.clone(), open()).await.unwrap();
    assert_eq!(own.opened.namespace, NOBODY.to_string());
    let handle = own.lock("a").await;
    let Message::Granted(_) = own.ask(acquire(handle)).await else { panic!("root's is another") };

    let refused = Session::open(connection.clone(), in_namespace("0")).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    let mut shared = Session::open(connection.clone(), in_namespace("jobs")).await.unwrap();
    let handle = shared.lock("a").await;
    let tried = v1::Acquire { handle, owner: 1, timeout_us: Some(0), ..Default::default() };
    let Message::Error(refused) = shared.ask(Request::Acquire(tried)).await else { panic!() };
    let holder = refused.holders[0].process.clone().unwrap();
    assert_eq!(holder.uid, 0, "shared with root");

    let mut inspect = InspectClient::new(connection);
    let status = inspect.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let seen: Vec<&str> = status.namespaces.iter().map(|n| &*n.namespace).collect();
    assert_eq!(seen, ["shared/jobs", "65534"]);
    let denied = [
        inspect.list(v1::ListRequest { namespace: "0".into(), ..Default::default() }).await.err(),
        inspect
            .kick(v1::KickRequest { namespace: "jobs".into(), session: holder.session })
            .await
            .err(),
        inspect
            .force_release(v1::ForceReleaseRequest { namespace: "jobs".into(), object: "a".into() })
            .await
            .err(),
    ];
    for status in denied {
        assert_eq!(status.unwrap().code(), Code::PermissionDenied);
    }
    // A user with many holds of their own may not release another user's among them.
    let spec = v1::SemLockSpec { class: 3, value: 5000, max: 5000 };
    let spec = Some(v1::create::Spec::SemLock(spec));
    let create = v1::Create { name: "many".into(), spec, ..Default::default() };
    let Message::Attached(many) = shared.ask(Request::Create(create)).await else { panic!() };
    for _ in 0..1500 {
        shared.ask(acquire(many.handle)).await;
    }
    let force = v1::ForceReleaseRequest { namespace: "jobs".into(), object: "many".into() };
    assert_eq!(inspect.force_release(force).await.unwrap_err().code(), Code::PermissionDenied);

    let own = v1::KickRequest { namespace: "jobs".into(), session: shared.opened.session };
    inspect.kick(own).await.unwrap();
}
