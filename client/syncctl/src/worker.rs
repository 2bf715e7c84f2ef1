//! The processes that demo and bench are made of: small programs on the blocking client, as anybody
//! would write them. Each leaves evidence in files, which the demo checks.

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

/// The lock around the counter, and the file that is the counter.
pub const COUNTER: &str = "counter";
/// The semaphore of two, and the file where each writes `+` when it comes and `-` when it goes.
pub const DESK: &str = "desk";
/// The lock around the producer's file, and that file: an item a line.
pub const SHELF: &str = "shelf";
/// The condition that tells of a new item.
pub const NEW_ITEM: &str = "new-item";
/// The file with the items in the order in which they were consumed.
pub const CONSUMED: &str = "consumed";
/// The lock whose holder is killed.
pub const VAULT: &str = "vault";
/// The file with who was told of whom: `name: pid cause`.
pub const TOLD: &str = "told";
/// The semaphores of the bench's ping-pong.
pub const PING: &str = "syncctl-bench/ping";
/// The other one.
pub const PONG: &str = "syncctl-bench/pong";

/// The last item that is produced.
const LAST_ITEM: u32 = 4;

/// One process.
#[derive(Debug, Args)]
pub struct Worker {
    #[arg(value_enum)]
    role: Role,
    /// What to be called.
    name: String,
    /// Where the files are.
    dir: PathBuf,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Role {
    /// Adds one to the counter.
    Count,
    /// Works on an item, two at a time.
    Work,
    /// Puts items on the shelf.
    Produce,
    /// Takes them off.
    Consume,
    /// Takes the vault and keeps it.
    Hold,
    /// Takes the vault, and tells what it is told.
    Inherit,
    /// Sends back what it is sent, 16 bytes at a time.
    Echo,
    /// Answers each ping.
    Pong,
}

impl Role {
    /// As an argument.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Worker {
    /// Does it.
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
        // Read here, written there: without the lock, some of it would be lost.
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
        say(format_args!("acquired the lock, and won't let go of it"));
        io::copy(&mut io::stdin(), &mut io::sink())?;
        Ok(())
    }

    fn inherit(&self, client: &Client) -> Result<(), Failure> {
        let lock = client.lock(VAULT).map_err(failed)?;
        let guard = lock.acquire().map_err(failed)?;
        match guard.abandoned() {
            None => say(format_args!("acquired the lock; nothing to be told")),
            Some(left) => {
                let (by, cause, held) = (&left.process, left.cause, span(left.held));
                say(format_args!(
                    "acquired the lock; told: {by} {cause} after holding it for {held}"
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

/// Until the bench goes away.
fn pong(client: &Client) -> Result<(), Failure> {
    let ping = client.semaphore(PING, 0).map_err(failed)?;
    let pong = client.semaphore(PONG, 0).map_err(failed)?;
    loop {
        ping.acquire_unowned().map_err(failed)?;
        pong.release().map_err(failed)?;
    }
}

/// On standard input, which is one end of a socket pair, until the other one is closed.
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

/// A line to whoever listens; that nobody does is no reason to stop.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// What any call on the broker can end with, here.
pub fn failed(error: impl Display) -> Failure {
    Failure::Unmet(error.to_string())
}
