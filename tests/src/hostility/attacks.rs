//! The attacks: each does one thing too much, too large, too often or not at all, until it is told
//! to stop by an error, has done all of it, or is killed. None has an opinion on what the daemon
//! answers.

use std::{path::Path, time::Duration};

use fastrand::Rng;
use syncd_proto::v1::{
    self, SemLockClass, client_message::Request, create::Spec, server_message::Message,
};
use tokio::time::sleep;
use tonic::Status;

use super::{
    bytes::{continuations, flood, half_message, large_headers, noise, resets, silence},
    peer::{Peer, acquire, channel, create, inspect, semlock},
};

/// Where attackers meet, and one of the bystanders, who shares it with them.
pub(super) const NAMESPACE: &str = "hostile";

/// By name, for the command line and for reports.
pub(super) const ATTACKS: [&str; 24] = [
    "noise",
    "silence",
    "resets",
    "continuations",
    "headers",
    "half-message",
    "huge-message",
    "unread-replies",
    "objects",
    "namespaces",
    "sessions",
    "holds",
    "event",
    "notify",
    "barrier",
    "generations",
    "chain",
    "cycle",
    "watches",
    "inspections",
    "cancels",
    "detach",
    "strange-requests",
    "forged-resumes",
];

/// How many of everything: enough to be felt, little enough for a small machine.
const MANY: u64 = 20_000;

/// Attacks the daemon at a socket. Whatever goes wrong is the attacker's business.
pub(super) async fn attack(name: &str, socket: &Path, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let outcome = match name {
        "noise" => flood(socket, |rng: &mut Rng| noise(rng, 512), &mut rng).await,
        "silence" => silence(socket).await,
        "resets" => resets(socket, &mut rng).await,
        "continuations" => continuations(socket, &mut rng).await,
        "headers" => large_headers(socket, &mut rng).await,
        "half-message" => half_message(socket).await,
        "huge-message" => huge_message(socket).await,
        _ => in_session(name, socket, &mut rng).await,
    };
    if let Err(status) = outcome {
        println!("{name}: {status}");
    }
}

async fn in_session(name: &str, socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    match name {
        "namespaces" => namespaces(socket).await,
        "sessions" => sessions(socket).await,
        "watches" => watches(socket).await,
        "inspections" => inspections(socket, rng).await,
        "forged-resumes" => forged_resumes(socket, rng).await,
        _ => {
            let mut peer = Peer::open(socket, NAMESPACE).await?;
            match name {
                "unread-replies" => unread_replies(&mut peer).await,
                "objects" => objects(&mut peer, rng).await,
                "holds" => holds(&mut peer).await,
                "event" => event(&mut peer).await,
                "notify" => notify(&mut peer).await,
                "barrier" => barrier(&mut peer, u32::MAX).await,
                "generations" => barrier(&mut peer, 1).await,
                "chain" => chain(&mut peer, false).await,
                "cycle" => chain(&mut peer, true).await,
                "cancels" => cancels(&mut peer).await,
                "detach" => detach(&mut peer).await,
                "strange-requests" => strange_requests(&mut peer, rng).await,
                _ => Err(Status::invalid_argument(format!("no attack {name}"))),
            }
        }
    }
}

async fn huge_message(socket: &Path) -> Result<(), Status> {
    for kib in [60, 70, 1_000, 16_000] {
        let mut peer = Peer::open(socket, NAMESPACE).await?;
        peer.say(create(&"x".repeat(kib << 10), Spec::Event(v1::EventSpec {}))).await;
        let _ = peer.hear().await;
    }
    Ok(())
}

async fn unread_replies(peer: &mut Peer) -> Result<(), Status> {
    let handle = peer.lock("unread").await?;
    for _ in 0..10 * MANY {
        peer.say(Request::Query(v1::Query { handle })).await;
    }
    sleep(Duration::from_secs(5)).await;
    Ok(())
}

async fn objects(peer: &mut Peer, rng: &mut Rng) -> Result<(), Status> {
    for i in 0..5 * MANY {
        let name = if rng.bool() { format!("{}{i}", "n".repeat(240)) } else { String::new() };
        peer.say(create(&name, semlock(SemLockClass::Lock, 1))).await;
        if i % 1_000 == 999 {
            for _ in 0..1_000 {
                peer.hear().await?;
            }
        }
    }
    Ok(())
}

async fn namespaces(socket: &Path) -> Result<(), Status> {
    let channel = channel(socket).await?;
    let mut held = Vec::new();
    for i in 0..200 {
        held.push(Peer::on(channel.clone(), &format!("hostile {i}")).await);
    }
    Ok(())
}

async fn sessions(socket: &Path) -> Result<(), Status> {
    let mut held = Vec::new();
    for _ in 0..20 {
        let channel = channel(socket).await?;
        for _ in 0..100 {
            held.push(Peer::on(channel.clone(), NAMESPACE).await?);
        }
    }
    Ok(())
}

async fn holds(peer: &mut Peer) -> Result<(), Status> {
    let handle = peer.object("holds", semlock(SemLockClass::Semaphore, 1 << 30)).await?;
    for owner in 0..5 * MANY {
        peer.say(acquire(handle, owner, None)).await;
        if owner % 1_000 == 999 {
            for _ in 0..1_000 {
                peer.hear().await?;
            }
        }
    }
    // All at once, of what is nobody's in particular, or by its end.
    let release = v1::Release { handle, owner: u64::MAX, token: 0, quiet: true };
    for _ in 0..MANY {
        peer.say(Request::Release(release)).await;
    }
    Ok(())
}

async fn event(peer: &mut Peer) -> Result<(), Status> {
    let handle = peer.object("event", Spec::Event(v1::EventSpec {})).await?;
    for owner in 0..MANY {
        peer.say(Request::EventWait(v1::EventWait { handle, owner, timeout_us: None })).await;
    }
    for _ in 0..100 {
        peer.say(Request::EventSet(v1::EventSet { handle })).await;
        peer.say(Request::EventClear(v1::EventClear { handle })).await;
    }
    peer.hear().await.map(drop)
}

async fn notify(peer: &mut Peer) -> Result<(), Status> {
    let lock = peer.lock("notify").await?;
    let handle = peer.object("sleepers", Spec::Condition(v1::ConditionSpec { lock })).await?;
    let mut granted = 0;
    for owner in 1..MANY {
        peer.say(acquire(lock, owner, None)).await;
        peer.say(Request::Wait(v1::Wait { handle, owner, timeout_us: None })).await;
        while granted < owner {
            granted += u64::from(matches!(peer.hear().await?.message, Some(Message::Granted(_))));
        }
    }
    peer.say(acquire(lock, 0, None)).await;
    peer.say(Request::Notify(v1::Notify { handle, owner: 0, n: 0 })).await;
    peer.hear().await.map(drop)
}

async fn barrier(peer: &mut Peer, parties: u32) -> Result<(), Status> {
    let spec = Spec::Barrier(v1::BarrierSpec { parties });
    let handle = peer.object(&format!("barrier of {parties}"), spec).await?;
    for owner in 0..5 * MANY {
        let has_action = owner == 0;
        let wait = v1::BarrierWait { handle, owner, timeout_us: None, has_action };
        peer.say(Request::BarrierWait(wait)).await;
    }
    peer.say(Request::BarrierAction(v1::BarrierAction { handle, owner: 0, ok: true })).await;
    for _ in 0..100 {
        peer.say(Request::BarrierReset(v1::BarrierReset { handle })).await;
        peer.say(Request::BarrierAbort(v1::BarrierAbort { handle })).await;
    }
    peer.hear().await.map(drop)
}

/// Each holds a lock and waits for the next one's; then many come before the first, and if
/// the chain is a cycle, many are refused, and none reads.
async fn chain(peer: &mut Peer, cycle: bool) -> Result<(), Status> {
    let length = if cycle { 200 } else { 2_000 };
    let mut handles = Vec::new();
    for owner in 0..length {
        let handle = peer.lock(&format!("link {owner}")).await?;
        peer.ask(acquire(handle, owner, None)).await?;
        handles.push(handle);
    }
    for (owner, &next) in handles[1..].iter().enumerate() {
        peer.say(acquire(next, owner as u64, None)).await;
    }
    for i in 0..MANY {
        let owner = if cycle { length - 1 } else { length + i };
        let (handle, fail_on_deadlock) = (handles[0], cycle);
        let acquire = v1::Acquire { handle, owner, fail_on_deadlock, ..Default::default() };
        peer.say(Request::Acquire(acquire)).await;
    }
    sleep(Duration::from_secs(2)).await;
    Ok(())
}

async fn watches(socket: &Path) -> Result<(), Status> {
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut inspect = inspect(socket).await?;
        for _ in 0..200 {
            let request = v1::WatchRequest { namespace: NAMESPACE.into(), ..Default::default() };
            held.push(inspect.watch(request).await);
        }
    }
    let mut peer = Peer::open(socket, NAMESPACE).await?;
    let handle = peer.lock("watched").await?;
    for owner in 0..MANY {
        peer.ask(acquire(handle, owner, None)).await?;
        let release = v1::Release { handle, owner, token: 0, quiet: true };
        peer.say(Request::Release(release)).await;
    }
    Ok(())
}

async fn inspections(socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    let mut inspect = inspect(socket).await?;
    for _ in 0..2_000 {
        let namespace = NAMESPACE.to_owned();
        let _ = match rng.u8(..4) {
            0 => {
                let list = v1::ListRequest { namespace, busy: rng.bool(), ..Default::default() };
                inspect.list(list).await.map(drop)
            }
            1 => {
                let object = ["sleepers", "holds", "link 1", "#1"][rng.usize(..4)].to_owned();
                inspect.describe(v1::DescribeRequest { namespace, object }).await.map(drop)
            }
            2 => {
                let sessions = v1::SessionsRequest { namespace, ..Default::default() };
                inspect.sessions(sessions).await.map(drop)
            }
            _ => inspect.status(v1::StatusRequest::default()).await.map(drop),
        };
    }
    Ok(())
}

async fn cancels(peer: &mut Peer) -> Result<(), Status> {
    let handle = peer.object("cancels", semlock(SemLockClass::Semaphore, 1 << 30)).await?;
    let first = peer.say(acquire(handle, 0, None)).await;
    for owner in 1..MANY {
        peer.say(acquire(handle, owner, None)).await;
    }
    for id in first..first + MANY {
        peer.say(Request::Cancel(v1::Cancel { id, give_back: true })).await;
        peer.say(Request::Cancel(v1::Cancel { id: u64::MAX - id, give_back: true })).await;
    }
    peer.hear().await.map(drop)
}

async fn detach(peer: &mut Peer) -> Result<(), Status> {
    for round in 0..20 {
        let handle =
            peer.object(&format!("left {round}"), semlock(SemLockClass::Semaphore, 0)).await?;
        for owner in 0..MANY / 4 {
            peer.say(acquire(handle, owner, None)).await;
        }
        peer.ask(Request::Detach(v1::Detach { handle, quiet: false })).await?;
    }
    Ok(())
}

/// Every kind of request, of any handle, owner and number.
async fn strange_requests(peer: &mut Peer, rng: &mut Rng) -> Result<(), Status> {
    for _ in 0..MANY {
        let any = |rng: &mut Rng| [0, 1, 2, 7, u64::from(u32::MAX), u64::MAX][rng.usize(..6)];
        let (handle, owner) = (any(rng) as u32, any(rng));
        let timeout_us = rng.bool().then(|| any(rng));
        let request = match rng.u8(..12) {
            0 => acquire(handle, owner, timeout_us.map(Duration::from_micros)),
            1 => Request::Release(v1::Release { handle, owner, token: any(rng), quiet: false }),
            2 => Request::Wait(v1::Wait { handle, owner, timeout_us }),
            3 => Request::Notify(v1::Notify { handle, owner, n: any(rng) as u32 }),
            4 => Request::EventWait(v1::EventWait { handle, owner, timeout_us }),
            5 => {
                let has_action = rng.bool();
                Request::BarrierWait(v1::BarrierWait { handle, owner, timeout_us, has_action })
            }
            6 => Request::Detach(v1::Detach { handle, quiet: rng.bool() }),
            7 => Request::Unlink(v1::Unlink { name: noise(rng, 9).escape_ascii().to_string() }),
            8 => Request::Cancel(v1::Cancel { id: any(rng), give_back: rng.bool() }),
            9 => create("strange", Spec::Barrier(v1::BarrierSpec { parties: any(rng) as u32 })),
            10 => create("", semlock(SemLockClass::Semaphore, any(rng) as u32)),
            _ => Request::Open(v1::Open::default()),
        };
        peer.say(request).await;
    }
    sleep(Duration::from_secs(1)).await;
    Ok(())
}

async fn forged_resumes(socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    let channel = channel(socket).await?;
    for _ in 0..2_000 {
        let mut peer = Peer::bare(channel.clone()).await?;
        let bytes = rng.usize(..64);
        let open = v1::Open {
            protocol: syncd_proto::PROTOCOL,
            namespace: NAMESPACE.into(),
            resume_key: noise(rng, bytes),
            resume_seq: rng.u64(..),
            attempt: rng.u64(..),
            replaces: noise(rng, bytes),
            ..Default::default()
        };
        peer.say(Request::Open(open)).await;
        let _ = peer.hear().await;
    }
    Ok(())
}
