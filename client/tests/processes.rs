//! What takes a process of its own: forking with a session open, and starting a daemon. Run with
//! `--socket` it is that daemon.

#[cfg(unix)]
#[path = "processes/edges.rs"]
mod edges;
#[cfg(unix)]
#[path = "processes/unix.rs"]
mod unix;

fn main() {
    #[cfg(unix)]
    unix::main();
}
