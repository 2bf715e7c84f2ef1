//! The processes of a measurement: how they are started, pinned, asked and ended. What they
//! measure never lies here.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The hidden first argument that makes this program one of its own workers.
pub const ROLE: &str = "--role";

/// Which CPUs the processes of a measurement may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// One for all of them: no idle CPU has to be woken, so figures repeat.
    Pinned,
    /// All that this program was given.
    Free,
}

impl Cpus {
    /// Binds this process, and so all that it starts from now on.
    pub fn bind(self) {
        static ALL: LazyLock<CpuSet> =
            LazyLock::new(|| sched_getaffinity(None).expect("this process has an affinity"));
        let mut cpus = *ALL;
        if self == Cpus::Pinned {
            let first = (0..CpuSet::MAX_CPU).find(|&cpu| ALL.is_set(cpu)).unwrap_or(0);
            cpus.clear();
            cpus.set(first);
        }
        sched_setaffinity(None, &cpus).expect("CPUs that were given can be used");
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Cpus::Pinned => "pinned",
            Cpus::Free => "unpinned",
        }
    }
}

/// A process that says when it is ready, and then answers lines of numbers with lines of
/// numbers until its standard input ends. So nobody outlives the benchmark, however it ends.
pub struct Worker {
    child: Child,
    asks: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program as one of its own workers.
    pub fn role(role: &str, args: &[&str]) -> Worker {
        let program = env::current_exe().expect("this program has a path");
        Worker::start(Command::new(program).args([ROLE, role]).args(args)).expect("a worker starts")
    }

    /// Starts Python's own primitives; `None` without a python3 that has them.
    pub fn python(rival: &str, work: &str) -> Option<Worker> {
        let script = include_str!("rivals.py");
        Worker::start(Command::new("python3").args(["-c", script, rival, work])).ok()
    }

    fn start(command: &mut Command) -> io::Result<Worker> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let replies = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut worker = Worker { asks: child.stdin.take(), child, replies };
        worker.line().map(|_| worker)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is a child of this process");
        self.child.wait().expect("it is a child of this process");
    }

    /// Waits until it has ended by itself.
    pub fn end(mut self) {
        self.child.wait().expect("it is a child of this process");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks, without waiting for the answer.
    pub fn tell(&mut self, numbers: &[u64]) {
        let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
        let asks = self.asks.as_mut().expect("it is open until the worker is dropped");
        writeln!(asks, "{}", words.join(" ")).expect("a worker listens");
    }

    pub fn answer(&mut self) -> Vec<f64> {
        let line = self.line().expect("a worker answers");
        line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
    }

    pub fn ask(&mut self, numbers: &[u64]) -> Vec<f64> {
        self.tell(numbers);
        self.answer()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.replies.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.asks.take());
        let patience = Instant::now() + Duration::from_secs(10);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > patience {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The worker's side: is ready, and answers until nobody asks any more.
pub fn answer(mut reply: impl FnMut(&[u64]) -> Vec<f64>) {
    println!("ready");
    for line in io::stdin().lines() {
        let line = line.expect("standard input is text");
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let words: Vec<_> = reply(&numbers).iter().map(f64::to_string).collect();
        println!("{}", words.join(" "));
    }
}

/// The median time of `n` calls, in nanoseconds.
pub fn p50(n: u64, mut step: impl FnMut()) -> f64 {
    let mut times: Vec<u64> = (0..n)
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed().as_nanos() as u64
        })
        .collect();
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1 as f64
}
