//! A log that can't be written loses its lines, and nothing else.
#![cfg(target_os = "linux")]

mod support;

use std::{
    fs::OpenOptions,
    io::Read as _,
    process::{Child, Command, Stdio},
};

use support::{Session, channel, open, within};
use syncd_proto::{
    Endpoint,
    v1::{self, inspect_client::InspectClient},
};

struct Daemon {
    endpoint: Endpoint,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Daemon {
    async fn start(stderr: impl Into<Stdio>, log: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
        command.env_clear().args(["--socket", &endpoint.to_string(), "--log", log]);
        let child = command.stderr(stderr).spawn().unwrap();
        let listens = async {
            while tokio::net::UnixStream::connect(endpoint.as_path()).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(listens).await;
        Self { endpoint, child, _dir: dir }
    }

    async fn session(&self) -> Session {
        Session::open(channel(self.endpoint.clone()).await, open()).await.unwrap()
    }

    async fn status(&self) -> v1::StatusReply {
        let mut inspect = InspectClient::new(channel(self.endpoint.clone()).await);
        inspect.status(v1::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Asserts that the daemon serves, time-outs included, and has lost lines without a panic.
    async fn serves_though_lines_are_lost(&self) {
        for _ in 0..20 {
            let mut session = self.session().await;
            let handle = session.lock("a").await;
            for timeout_us in [Some(0), Some(1000)] {
                let acquire = v1::Acquire { handle, owner: 1, timeout_us, ..Default::default() };
                session.ask(v1::client_message::Request::Acquire(acquire)).await;
            }
            let bye = v1::client_message::Request::Goodbye(v1::Goodbye {});
            session.ask(bye).await;
        }
        let lost = async {
            while self.status().await.log_lines_lost == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(lost).await;
        assert_eq!(self.status().await.panics, 0);
    }

    /// Ends the daemon with SIGTERM, and returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut daemon = Daemon::start(full, "info").await;
    daemon.serves_though_lines_are_lost().await;
    assert_eq!(daemon.stop(), Some(0));
}

#[tokio::test]
async fn a_closed_pipe_costs_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut daemon = Daemon::start(writer, "info").await;
    drop(reader);
    daemon.serves_though_lines_are_lost().await;
    assert_eq!(daemon.stop(), Some(0));
}

#[tokio::test]
async fn a_full_pipe_costs_lines_whose_number_is_reported() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Every frame is logged: the pipe is soon full, and so is what waits for it.
    let mut daemon = Daemon::start(writer, "trace").await;
    daemon.serves_though_lines_are_lost().await;
    let (tell, told) = tokio::sync::oneshot::channel();
    let read = std::thread::spawn(move || {
        let (mut tell, mut text, mut bytes) = (Some(tell), Vec::<u8>::new(), vec![0; 65_536]);
        while let Ok(length @ 1..) = reader.read(&mut bytes) {
            text.extend(&bytes[..length]);
            if tell.is_some() && text.windows(9).any(|window| window == b"were lost") {
                let _ = tell.take().unwrap().send(());
            }
            let keep = text.len().saturating_sub(64);
            text.drain(..keep);
        }
    });
    within(told).await.unwrap();
    assert_eq!(daemon.stop(), Some(0));
    within(tokio::task::spawn_blocking(|| read.join())).await.unwrap().unwrap();
}
