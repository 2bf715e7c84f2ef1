//! Makes the recording of a journal that later versions must be able to read.

use std::{fs, path::Path};

use syncd_proto::v1::{self, client_message::Request, server_message::Message};

use super::{
    Daemon, files,
    support::{acquire, granted, release},
};

/// Records what `entry.rs` must be able to read for ever: something of each kind, in a snapshot and
/// after it. `SYNCD_RECORD=DIR cargo test -p syncd --test restart -- --exact record::record::record`, when the format
/// has a new number.
#[tokio::test]
async fn record() {
    let Some(to) = std::env::var_os("SYNCD_RECORD") else { return };
    let mut daemon = Daemon::start(&[]).await;
    let (mut a, mut b) = (daemon.session().await, daemon.session().await);
    let create = |name: &str, spec| {
        Request::Create(v1::Create { name: name.into(), spec: Some(spec), ..Default::default() })
    };
    let sem = |class: v1::SemLockClass, value| {
        let max = if class == v1::SemLockClass::BoundedSemaphore { value } else { 0 };
        v1::create::Spec::SemLock(v1::SemLockSpec { class: class.into(), value, max })
    };
    let mut handles = Vec::new();
    for session in [&mut a, &mut b] {
        handles.clear();
        for (name, spec) in [
            ("lock", sem(v1::SemLockClass::Lock, 1)),
            ("rlock", sem(v1::SemLockClass::Rlock, 1)),
            ("semaphore", sem(v1::SemLockClass::Semaphore, 2)),
            ("bounded", sem(v1::SemLockClass::BoundedSemaphore, 3)),
            ("event", v1::create::Spec::Event(v1::EventSpec {})),
            ("barrier", v1::create::Spec::Barrier(v1::BarrierSpec { parties: 3 })),
        ] {
            match session.ask(create(name, spec)).await {
                Message::Attached(attached) => handles.push(attached.handle),
                other => panic!("{other:?}"),
            }
        }
        let condition = v1::create::Spec::Condition(v1::ConditionSpec { lock: handles[1] });
        session.ask(create("condition", condition)).await;
    }
    let condition = handles[5] + 1;
    // Enough for several snapshots.
    for _ in 0..2000 {
        let grant = granted(&mut a, acquire(handles[0])).await;
        release(&mut a, handles[0], grant.token).await;
    }
    granted(&mut a, acquire(handles[0])).await;
    granted(&mut a, acquire(handles[1])).await;
    granted(&mut a, acquire(handles[1])).await;
    a.send(Request::Wait(v1::Wait { handle: condition, owner: 1, timeout_us: None })).await;
    let patient = v1::Acquire {
        handle: handles[0],
        owner: 1,
        timeout_us: Some(3_600_000_000),
        ..Default::default()
    };
    b.send(Request::Acquire(patient)).await;
    let unowned = v1::Acquire { handle: handles[2], owner: 2, unowned: true, ..Default::default() };
    b.ask(Request::Acquire(unowned)).await;
    granted(&mut b, acquire(handles[3])).await;
    b.send(Request::EventWait(v1::EventWait { handle: handles[4], owner: 3, timeout_us: None }))
        .await;
    b.send(Request::BarrierWait(v1::BarrierWait {
        handle: handles[5],
        owner: 4,
        ..Default::default()
    }))
    .await;
    b.ask(Request::Query(v1::Query { handle: handles[0] })).await;
    daemon.end(libc::SIGKILL);
    fs::create_dir_all(&to).unwrap();
    for file in files(&daemon.journal()) {
        fs::copy(&file, Path::new(&to).join(file.file_name().unwrap())).unwrap();
    }
}
