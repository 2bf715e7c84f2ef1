//! Processes that go their own way: one that toils at a fenced file, one that forks while it holds
//! a lock.

use std::{env, fs, io::Read as _, path::PathBuf, process, thread, time::Duration};

use syncd_client::{Client, blocking};
use syncd_proto::v1::{
    self, broker_client::BrokerClient, client_message::Request, server_message::Message,
};
use syncd_tests::{daemon::connect, faults::read_fenced};

use super::{pids, say};

fn client(namespace: String) -> blocking::Client {
    let builder = Client::builder().namespace(namespace).auto_start(false);
    builder.connect_blocking().expect("a session")
}

/// Takes turns at a file: reads it, and writes its token and the count. Exits with failure if
/// the file has seen a higher token, or changed under the lock.
pub fn toil(namespace: String) {
    let mut arguments = env::args().skip(3);
    let file = PathBuf::from(arguments.next().expect("a file"));
    let turns: u32 = arguments.next().and_then(|turns| turns.parse().ok()).expect("turns");
    let lock = client(namespace).lock("toil").expect("a lock");
    for _ in 0..turns {
        let guard = lock.acquire().expect("granted");
        let token = guard.fencing_token().get();
        // A file that its last writer left half written was left by a death, which is told.
        let (last, count) = match (read_fenced(&file), guard.abandoned()) {
            (Ok(found), _) => found,
            (Err(why), _) => panic!("{why}"),
        };
        assert!(token > last, "token {token} after {last}");
        let draft = file.with_extension(process::id().to_string());
        fs::write(&draft, format!("{token} {}", count + 1)).expect("written");
        thread::yield_now();
        assert_eq!(read_fenced(&file).expect("whole"), (last, count), "under the lock");
        fs::rename(&draft, &file).expect("renamed");
    }
    process::exit(0);
}

/// Takes an RLock and forks; the child tells what it can do with what it has inherited.
pub fn fork(namespace: String) {
    let lock = client(namespace).rlock("door").expect("a lock");
    let guard = lock.acquire().expect("granted");
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            say(1, if guard.is_valid() { "valid" } else { "invalid" });
            say(1, &lock.release().map_or_else(|error| not_owner(&error), |()| "ok".into()));
            let tried = lock.acquire_timeout(Duration::ZERO);
            say(
                1,
                &match &tried {
                    Ok(_) => "granted".into(),
                    Err(error) => {
                        let holders = error.held_by().iter().map(|holder| holder.process.pid);
                        format!("timed out{}", pids(" held by", holders))
                    }
                },
            );
            drop(guard);
            say(1, "dropped");
            // Outlives its parent, until nobody can tell it anything any more.
            let _ = std::io::stdin().read(&mut [0]);
            process::exit(0);
        }
        _ => {
            say(0, &format!("granted @{}", guard.fencing_token()));
            loop {
                thread::sleep(Duration::from_secs(3600));
            }
        }
    }
}

/// Shows the key of another process's session, in hexadecimal, and says what it hears.
pub fn reclaim(namespace: String) {
    let key = env::args().nth(3).expect("a key");
    let byte = |at| u8::from_str_radix(&key[at..at + 2], 16).expect("hexadecimal");
    let resume_key = (0..key.len()).step_by(2).map(byte).collect();
    let protocol = syncd_proto::PROTOCOL;
    let open = v1::Open { protocol, namespace, resume_key, attempt: 99, ..v1::Open::default() };
    let first = v1::ClientMessage { request: Some(Request::Open(open)), ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.expect("a runtime").block_on(async {
        let socket = env::var_os("SYNCD_SOCKET").expect("SYNCD_SOCKET");
        let channel = connect(socket.as_ref()).await.expect("a daemon");
        let stream = futures_util::stream::iter([first]);
        let replies = BrokerClient::new(channel).session(stream).await.expect("a stream");
        replies.into_inner().message().await.expect("an answer").and_then(|reply| reply.message)
    });
    match answer {
        Some(Message::Error(error)) => println!("refused {:?}", error.code()),
        other => println!("{other:?}"),
    }
}

fn not_owner(error: &syncd_client::ReleaseError) -> String {
    match error {
        syncd_client::ReleaseError::NotOwner(_) => "not owner".into(),
        other => other.to_string(),
    }
}
