//! The physical limit: 16 bytes over Unix sockets with nothing around them, as an echo and as
//! a relay from one process through a second to a third.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use crate::{
    throughput::Window,
    worker::{Worker, answer, p50},
};

type Frame = [u8; 16];

fn pass(from: &mut UnixStream, to: &mut UnixStream) -> bool {
    let mut frame = Frame::default();
    from.read_exact(&mut frame).is_ok() && to.write_all(&frame).is_ok()
}

/// Where a server can listen, whoever did before.
fn fresh(dir: &Path, server: &str) -> String {
    let path = dir.join(format!("{server}.sock"));
    let _ = std::fs::remove_file(&path);
    path.to_str().expect("a temporary directory has a plain name").into()
}

fn connect(path: &str) -> UnixStream {
    UnixStream::connect(path).expect("the other side listens before it is ready")
}

/// Processes that exchange frames.
pub struct Pair {
    driver: Worker,
    _others: Vec<Worker>,
}

impl Pair {
    /// A and D: an exchange goes there and back.
    pub fn echo(dir: &Path) -> Pair {
        Pair::through("echo", dir, 1)
    }

    /// A, D and B: an exchange goes from A through D to B, and back the same way.
    pub fn relay(dir: &Path) -> Pair {
        Pair::through("relay", dir, 2)
    }

    fn through(server: &str, dir: &Path, clients: usize) -> Pair {
        let path = fresh(dir, server);
        let server = Worker::role(server, &[&path]);
        let driver = Worker::role("driver", &[&path]);
        let mut others = vec![server];
        others.extend((1..clients).map(|_| Worker::role("returner", &[&path])));
        Pair { driver, _others: others }
    }

    /// The median time of `n` exchanges, in nanoseconds.
    pub fn p50(&mut self, n: u64) -> Vec<f64> {
        self.driver.ask(&[n])
    }

    /// The same of half an exchange, which in a relay is a hand-off.
    pub fn handoff(&mut self, n: u64) -> Vec<f64> {
        self.p50(n).iter().map(|exchange| exchange / 2.0).collect()
    }
}

/// Many processes that each have their frames echoed.
pub struct Crowd {
    pub clients: Vec<Worker>,
    _server: Worker,
}

impl Crowd {
    /// So many clients: role `raw-loop`.
    pub fn echo(dir: &Path, clients: u32) -> Crowd {
        let path = fresh(dir, "crowd");
        let _server = Worker::role("echo", &[&path]);
        let clients = (0..clients).map(|_| Worker::role("raw-loop", &[&path])).collect();
        Crowd { clients, _server }
    }
}

/// Role: gives back what it gets, with a thread for each client.
pub fn echo(path: &str) {
    let listener = UnixListener::bind(path).expect("the path is free");
    std::thread::spawn(move || {
        for from in listener.incoming() {
            let mut from = from.expect("a client connects");
            let mut to = from.try_clone().expect("a socket can be duplicated");
            std::thread::spawn(move || while pass(&mut from, &mut to) {});
        }
    });
    answer(|_| Vec::new());
}

/// Role: gives to its second client what its first one sends, and the other way round, in turn.
pub fn relay(path: &str) {
    let listener = UnixListener::bind(path).expect("the path is free");
    std::thread::spawn(move || {
        let (mut a, _) = listener.accept().expect("a first client connects");
        let (mut b, _) = listener.accept().expect("a second client connects");
        while pass(&mut a, &mut b) && pass(&mut b, &mut a) {}
    });
    answer(|_| Vec::new());
}

/// Sends, and waits until it comes back.
fn exchange(socket: &mut UnixStream) {
    let mut frame = Frame::default();
    socket.write_all(&frame).expect("the other side reads");
    socket.read_exact(&mut frame).expect("the other side writes");
}

/// Role: one exchange after the other; their median time.
pub fn driver(path: &str) {
    let mut socket = connect(path);
    answer(|n| vec![p50(n[0], || exchange(&mut socket))]);
}

/// Role: one exchange after the other; how many a second.
pub fn exchanges(path: &str) {
    let mut socket = connect(path);
    answer(|asked| {
        let window = Window::asked(asked);
        while window.count(1) {
            exchange(&mut socket);
        }
        vec![window.rate()]
    });
}

/// Role: returns through the relay what came from it.
pub fn returner(path: &str) {
    let mut from = connect(path);
    let mut to = from.try_clone().expect("a socket can be duplicated");
    std::thread::spawn(move || while pass(&mut from, &mut to) {});
    answer(|_| Vec::new());
}
