//! A release that was sent before its process exited counts, although the daemon reads it after the
//! exit (R64).

use std::process::{Command, Stdio};

use syncd_client::{Endpoint, blocking::Client};

const SOCKET: &str = "SYNCD_TEST_SOCKET";
const CLIENTS: u32 = 60;
const PERMITS: u32 = 20;

/// The client process, not a test: acquires, releases and exits.
#[test]
fn the_client() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let endpoint: Endpoint = socket.parse().unwrap();
    let client = Client::builder().endpoint(endpoint).auto_start(false).connect_blocking().unwrap();
    let lock = client.lock("a").unwrap();
    let items = client.semaphore("items", PERMITS).unwrap();
    let guards: Vec<_> = (0..PERMITS).map(|_| items.acquire().unwrap()).collect();
    let guard = lock.acquire().unwrap();
    drop(guards);
    drop(guard);
    // SAFETY: ends the process at once, as a kill would.
    unsafe { libc::_exit(0) }
}

#[test]
fn a_release_counts_although_its_process_has_exited() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server =
        runtime.block_on(async { syncd::Server::bind(syncd::Config::new(endpoint.clone())) });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = runtime.spawn(server.unwrap().run(async { drop(stopped.await) }));

    let client =
        Client::builder().endpoint(endpoint.clone()).auto_start(false).connect_blocking().unwrap();
    let lock = client.lock("a").unwrap();
    let items = client.semaphore("items", PERMITS).unwrap();
    for round in 0..CLIENTS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "the_client", "--test-threads=1"]);
        child.env(SOCKET, endpoint.to_string()).stdout(Stdio::null());
        assert!(child.status().unwrap().success());
        let guard = lock.acquire().unwrap();
        assert!(guard.abandoned().is_none(), "round {round}: {:?}", guard.abandoned());
        let permits: Vec<_> = (0..PERMITS).map(|_| items.acquire().unwrap()).collect();
        let abandoned = permits.iter().filter_map(|permit| permit.abandoned()).count();
        assert_eq!(abandoned, 0, "round {round}");
    }
    drop(client);
    stop.send(()).unwrap();
    runtime.block_on(running).unwrap().unwrap();
}
