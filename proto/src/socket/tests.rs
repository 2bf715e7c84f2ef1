//! Both ends of a connection, on Unix.

use std::os::unix::net::UnixListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn endpoint_in(dir: &tempfile::TempDir) -> Endpoint {
    dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
}

async fn pair(listener: &Listener, endpoint: &Endpoint) -> (Socket, Socket) {
    let (client, server) = tokio::join!(connect(endpoint), listener.accept());
    (client.unwrap(), server.unwrap())
}

#[tokio::test]
async fn each_end_knows_the_other_and_bytes_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let listener = Listener::bind(&endpoint, 0o600).unwrap();
    let (mut client, mut server) = pair(&listener, &endpoint).await;
    assert_eq!(server.peer(), client.peer());
    assert_eq!(server.peer().pid, Some(std::process::id()));
    #[cfg(target_os = "linux")]
    server.peer_pidfd().unwrap();

    client.write_all(b"to the server").await.unwrap();
    let mut got = [0; 13];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"to the server");
    drop(client);
    assert_eq!(server.read(&mut got).await.unwrap(), 0);
}

#[tokio::test]
async fn a_writer_waits_for_a_slow_reader_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let listener = Listener::bind(&endpoint, 0o600).unwrap();
    let (mut client, mut server) = pair(&listener, &endpoint).await;
    let sent: Vec<u8> = (0..4 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move { client.write_all(&sent).await });
    let mut got = vec![0; expected.len()];
    server.read_exact(&mut got).await.unwrap();
    assert!(got == expected);
    writer.await.unwrap().unwrap();
}

#[tokio::test]
async fn no_socket_is_told_from_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    assert_eq!(connect(&endpoint).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    drop(UnixListener::bind(endpoint.as_path()).unwrap());
    assert_eq!(connect(&endpoint).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(Listener::bind(&endpoint, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn more_clients_than_the_queue_holds_all_connect() {
    const CLIENTS: usize = 20;

    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let listener = UnixListener::bind(endpoint.as_path()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let listener = Listener::from_fd(listener.into()).unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { connect(&endpoint).await })
        })
        .collect();
    // All of them try to connect before the first is accepted.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    for _ in 0..CLIENTS {
        listener.accept().await.unwrap();
    }
    for client in clients {
        client.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_inherited_listener_serves_and_keeps_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let listener =
        Listener::from_fd(UnixListener::bind(endpoint.as_path()).unwrap().into()).unwrap();
    pair(&listener, &endpoint).await;
    drop(listener);
    assert!(endpoint.as_path().exists());
}

#[tokio::test]
async fn the_socket_file_has_its_mode_and_outlives_the_listener() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let listener = Listener::bind(&endpoint, 0o600).unwrap();
    let mode = std::fs::metadata(endpoint.as_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(endpoint.as_path().exists());
}

#[tokio::test]
async fn connections_are_refused_until_the_socket_file_is_prepared() {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};

    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&dir);
    let (listener, prepared) = Listener::bind_prepared(&endpoint, || {
        let refused = UnixStream::connect(endpoint.as_path()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let mode = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(endpoint.as_path(), mode)?;
        Ok(true)
    })
    .unwrap();
    assert!(prepared);
    let _client = UnixStream::connect(endpoint.as_path()).unwrap();
    listener.accept().await.unwrap();
}
