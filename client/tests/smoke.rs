//! smoke
use std::time::Duration;
use syncd_client::{Client, blocking};

#[tokio::test]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: syncd_client::Endpoint = dir.path().join("s").to_str().unwrap().parse().unwrap();
    let server =
        tokio::spawn(syncd::serve(syncd::Config::new(endpoint.clone()), std::future::pending()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let client = Client::builder().endpoint(endpoint).auto_start(false).connect().await.unwrap();
    let lock = client.lock("a").await.unwrap();
    let guard = lock.acquire().await.unwrap();
    println!("{guard:?}");
    assert!(guard.is_valid());
    assert!(lock.try_acquire().await.unwrap().is_none());
    drop(guard);
    let guard = lock.try_acquire().await.unwrap().unwrap();
    guard.release().await.unwrap();
    server.abort();
}

#[test]
fn smoke_blocking() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: syncd_client::Endpoint = dir.path().join("s").to_str().unwrap().parse().unwrap();
    let e = endpoint.clone();
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    rt.spawn(syncd::serve(syncd::Config::new(e), std::future::pending()));
    std::thread::sleep(Duration::from_millis(100));
    let client = blocking::Client::builder()
        .endpoint(endpoint)
        .auto_start(false)
        .connect_blocking()
        .unwrap();
    let lock = client.lock("a").unwrap();
    for _ in 0..1000 {
        let guard = lock.acquire().unwrap();
        drop(guard);
    }
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..200 {
                    drop(lock.acquire().unwrap());
                }
            });
        }
    });
}
