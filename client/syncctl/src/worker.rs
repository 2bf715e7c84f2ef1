//! The processes of demo and bench: small programs that use the blocking client. They write files,
//! which the demo checks.

use std::{
    fmt::Display,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    thread::sleep,
    time::Duration,
};

use clap::{Args, ValueEnum};
use syncd_client::blocking::Client;

use crate::{cli::Global, failure::Failure, text::span};

/// The counter's lock, and its file.
pub const COUNTER: &str = "counter";
/// The semaphore of two permits, and the file in which each process writes `+` when it has acquired
/// a permit and `-` before it releases it.
pub const DESK: &str = "desk";
/// The lock of the producer's file, and that file, with one item per line.
pub const SHELF: &str = "shelf";
/// The condition that the producer notifies.
pub const NEW_ITEM: &str = "new-item";
/// The file with the consumed items, in order.
pub const CONSUMED: &str = "consumed";
/// The lock whose holder is killed.
pub const VAULT: &str = "vault";
/// The file with abandonments, and who was told of them: `name: pid cause`.
pub const TOLD: &str = "told";
/// The semaphore that the bench releases.
pub const PING: &str = "syncctl-bench/ping";
/// The semaphore that its partner releases.
pub const PONG: &str = "syncctl-bench/pong";

/// The last item that is produced.
const LAST_ITEM: u32 = 4;

/// The arguments of a process.
#[derive(Debug, Args)]
pub struct Worker {
    #[arg(value_enum)]
    role: Role,
    /// The process's label.
    name: String,
    /// The directory of the files.
    dir: PathBuf,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Role {
    /// Adds one to the counter.
    Count,
    /// Works on an item, two at a time.
    Work,
    /// Appends items to the shelf.
    Produce,
    /// Removes items from the shelf.
    Consume,
    /// Acquires the vault and keeps it.
    Hold,
    /// Acquires the vault, and prints the abandonment.
    Inherit,
    /// Echoes messages of 16 bytes.
    Echo,
    /// Answers each ping.
    Pong,
}

impl Role {
    /// The role as an argument.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Worker {
    /// Runs the process's role.
    pub fn work(&self, global: &Global) -> Result<(), Failure> {
        if let Role::Echo = self.role {
            return Ok(echo()?);
        }
        let builder = Client::builder().endpoint(global.endpoint()?).namespace(&*global.namespace);
        let client =
            builder.label(&*self.name).auto_start(false).connect_blocking().map_err(failed)?;
        let worked = match self.role {
            Role::Count => self.count(&client),
            Role::Work => self.work_on_item(&client),
            Role::Produce => self.produce(&client),
            Role::Consume => self.consume(&client),
            Role::Hold => self.hold(&client),
            Role::Inherit => self.inherit(&client),
            Role::Pong => pong(&client),
            Role::Echo => unreachable!("has no client"),
        };
        client.close();
        worked
    }

    fn count(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(COUNTER).map_err(failed)?;
        let _guard = lock.acquire().map_err(failed)?;
        let value: u32 = self.read(COUNTER)?.trim().parse().unwrap_or(0);
        say(format_args!("acquired the lock, value: {value}"));
        // Between the read and the write: without the lock, increments would be lost.
        sleep(Duration::from_millis(250));
        fs::write(self.dir.join(COUNTER), (value + 1).to_string())?;
        say(format_args!("releasing the lock, value: {}", value + 1));
        Ok(())
    }

    fn work_on_item(&self, client: &Client) -> Result<(), Failure> {
        let semaphore = client.semaphore(DESK, 2).map_err(failed)?;
        let _permit = semaphore.acquire().map_err(failed)?;
        self.append(DESK, "+")?;
        say(format_args!("working"));
        let number = u64::from(self.name.bytes().last().unwrap_or(0) % 5);
        sleep(Duration::from_millis(300 + 70 * number));
        say(format_args!("finished"));
        Ok(self.append(DESK, "-")?)
    }

    fn produce(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(SHELF).map_err(failed)?;
        let new_item = client.condition(NEW_ITEM, &lock).map_err(failed)?;
        for item in 0..=LAST_ITEM {
            let guard = lock.acquire().map_err(failed)?;
            say(format_args!("producing item: {item}"));
            self.append(SHELF, &format!("{item}\n"))?;
            new_item.notify(&guard, 1).map_err(failed)?;
            drop(guard);
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn consume(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(SHELF).map_err(failed)?;
        let new_item = client.condition(NEW_ITEM, &lock).map_err(failed)?;
        loop {
            let mut guard = lock.acquire().map_err(failed)?;
            let mut shelf = self.read(SHELF)?;
            while shelf.is_empty() {
                new_item.wait(&mut guard).map_err(failed)?;
                shelf = self.read(SHELF)?;
            }
            let (item, rest) = shelf.split_once('\n').unwrap_or((&shelf, ""));
            say(format_args!("consuming item: {item}"));
            fs::write(self.dir.join(SHELF), rest)?;
            self.append(CONSUMED, &format!("{item}\n"))?;
            sleep(Duration::from_millis(100));
            if item == LAST_ITEM.to_string() {
                return Ok(());
            }
        }
    }

    fn hold(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(VAULT).map_err(failed)?;
        let _guard = lock.acquire().map_err(failed)?;
        say(format_args!("acquired the lock, and keeps it"));
        io::copy(&mut io::stdin(), &mut io::sink())?;
        Ok(())
    }

    fn inherit(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(VAULT).map_err(failed)?;
        let guard = lock.acquire().map_err(failed)?;
        match guard.abandoned() {
            None => say(format_args!("acquired the lock; no abandonment")),
            Some(left) => {
                let (by, cause, held) = (&left.process, left.cause, span(left.held));
                say(format_args!(
                    "acquired the lock; abandoned: {by} {cause} after holding it for {held}"
                ));
                self.append(TOLD, &format!("{}: {} {cause}\n", self.name, by.pid))?;
            }
        }
        sleep(Duration::from_millis(200));
        Ok(())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        match fs::read_to_string(self.dir.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }

    fn append(&self, file: &str, text: &str) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true).open(self.dir.join(file))?.write_all(text.as_bytes())
    }
}

/// Answers pings until the bench closes.
fn pong(client: &Client) -> Result<(), Failure> {
    let ping = client.semaphore(PING, 0).map_err(failed)?;
    let pong = client.semaphore(PONG, 0).map_err(failed)?;
    loop {
        ping.acquire_unowned().map_err(failed)?;
        pong.release().map_err(failed)?;
    }
}

/// Echoes on standard input, which is one end of a socket pair, until the other end closes.
#[cfg(unix)]
fn echo() -> io::Result<()> {
    use std::{
        io::Read as _,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut message = [0; 16];
    while socket.read_exact(&mut message).is_ok() {
        socket.write_all(&message)?;
    }
    Ok(())
}

#[cfg(windows)]
fn echo() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Prints a line; ignores a closed standard output.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The failure for any error of a client's call in demo and bench.
pub fn failed(error: impl Display) -> Failure {
    Failure::Unmet(error.to_string())
}
