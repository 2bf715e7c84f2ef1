//! The command of `run` on Unix: in a process group of its own, which gets our signals, has the
//! terminal while it is in the foreground, and is killed if we are.

use std::{
    ffi::OsString,
    future::poll_fn,
    io::{self, IsTerminal as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    task::{Context, Poll, Waker},
    time::Duration,
};

use libc::{c_int, pid_t};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use super::{VARIABLES, warden::Warden};

/// The signals that are passed on to the command.
const PASSED_ON: [c_int; 10] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// How long a command has between SIGTERM and SIGKILL: well within a daemon's grace.
const TERM_TO_KILL: Duration = Duration::from_secs(2);

/// The signals that end the wait for the daemon when the command has ended.
const INTERRUPTING: [c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// What must be made before the runtime: the warden.
#[derive(Debug)]
pub struct Keeper(Warden);

impl Keeper {
    /// # Errors
    /// If no process can be forked.
    pub fn new() -> io::Result<Self> {
        Warden::start().map(Self)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(u8),
    Signal {
        number: c_int,
        /// The command's group had the terminal, so that our group didn't get a typed signal.
        had_terminal: bool,
    },
}

impl Ended {
    /// Returns the exit code, or kills this process by the signal that killed the command.
    pub fn end(self) -> u8 {
        let (number, had_terminal) = match self {
            Self::Code(code) => return code,
            Self::Signal { number, had_terminal } => (number, had_terminal),
        };
        let typed = had_terminal && matches!(number, libc::SIGINT | libc::SIGQUIT);
        // SAFETY: plain system calls on initialized values.
        unsafe {
            // The command may have dumped a core; this process must not dump another.
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, &default, std::ptr::null_mut());
            let mut this: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut this);
            libc::sigaddset(&mut this, number);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &this, std::ptr::null_mut());
            // A signal typed at the terminal is meant for the shell script around us, too.
            libc::kill(if typed { 0 } else { libc::getpid() }, number);
        }
        128 + number as u8
    }
}

/// A running command.
#[derive(Debug)]
pub struct Job {
    group: pid_t,
    warden: Warden,
    signals: Vec<(c_int, Signal)>,
    /// Whether to give the command the terminal when it starts or continues: not if another part of
    /// a pipeline may use it.
    forward: bool,
    /// Whether the command's group has the terminal now.
    lent: bool,
}

impl Job {
    /// Starts `program` with `arguments`, with `environment` added to ours.
    pub fn start(
        program: &OsString,
        arguments: &[OsString],
        environment: &[(&str, String)],
        Keeper(mut warden): Keeper,
    ) -> io::Result<Self> {
        let mut signals = Vec::new();
        for number in PASSED_ON.into_iter().filter(|&n| !is_ignored(n)).chain([libc::SIGCHLD]) {
            signals.push((number, signal(SignalKind::from_raw(number))?));
        }
        let forward = io::stdin().is_terminal() && io::stdout().is_terminal();
        let lent = forward && has_terminal();
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.envs(environment.iter().map(|(k, v)| (k, v)));
        let parent = std::process::id();
        // SAFETY: between fork and exec the closure makes only async-signal-safe system calls.
        unsafe {
            command.pre_exec(move || {
                die_with(parent)?;
                if lent {
                    lend_terminal(libc::getpid());
                }
                Ok(())
            });
        }
        let started = command.spawn().map(|child: Child| child.id() as pid_t);
        if started.is_err() && lent {
            reclaim_terminal();
        }
        let group = started?;
        warden.guard(group)?;
        Ok(Self { group, warden, signals, forward, lent })
    }

    /// Waits until the command has ended. Passes signals on meanwhile.
    ///
    /// # Cancel safety
    /// Safe: it can be called again.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = self.look()? {
                self.forget_caught();
                return Ok(ended);
            }
            match self.caught().await {
                libc::SIGCHLD => {}
                libc::SIGCONT => self.go_on(self.forward),
                number => self.signal(number),
            }
        }
    }

    /// Ends the group: sends SIGTERM, and SIGKILL when the command has exited or after two seconds.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.signal(libc::SIGTERM);
        self.signal(libc::SIGCONT);
        let in_time = timeout(TERM_TO_KILL, self.ended()).await;
        self.signal(libc::SIGKILL);
        match in_time {
            Ok(ended) => ended.map(drop),
            Err(_) => self.ended().await.map(drop),
        }
    }

    /// After the command's end: waits for a signal that tells this process to end.
    pub async fn interrupted(&mut self) -> Ended {
        loop {
            let number = self.caught().await;
            if INTERRUPTING.contains(&number) {
                return Ended::Signal { number, had_terminal: false };
            }
        }
    }

    async fn caught(&mut self) -> c_int {
        poll_fn(|cx| self.poll_caught(cx)).await
    }

    fn poll_caught(&mut self, cx: &mut Context<'_>) -> Poll<c_int> {
        let ready = self
            .signals
            .iter_mut()
            .find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
        ready.map_or(Poll::Pending, Poll::Ready)
    }

    /// Discards signals that arrived before the command's end, such as the Ctrl-C that ended it.
    fn forget_caught(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.poll_caught(&mut cx).is_ready() {}
    }

    fn signal(&self, number: c_int) {
        // SAFETY: a plain system call. An empty group is no error here.
        unsafe { libc::kill(-self.group, number) };
    }

    fn look(&mut self) -> io::Result<Option<Ended>> {
        loop {
            let mut status = 0;
            // SAFETY: a plain system call on our own child.
            match unsafe { libc::waitpid(self.group, &mut status, libc::WNOHANG | libc::WUNTRACED) }
            {
                0 => return Ok(None),
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSTOPPED(status) => self.stopped(libc::WSTOPSIG(status)),
                _ => {
                    self.warden.release();
                    let had_terminal = self.lent;
                    self.take_back();
                    return Ok(Some(match libc::WIFSIGNALED(status) {
                        true => Ended::Signal { number: libc::WTERMSIG(status), had_terminal },
                        false => Ended::Code(libc::WEXITSTATUS(status) as u8),
                    }));
                }
            }
        }
    }

    /// Handles a stopped command. At a terminal our job stops, too, so that the shell shows its
    /// prompt, and both continue together. Elsewhere nothing is done.
    fn stopped(&mut self, by: c_int) {
        if !io::stdin().is_terminal() {
            return;
        }
        let wants_terminal = matches!(by, libc::SIGTTIN | libc::SIGTTOU);
        if !(wants_terminal && has_terminal()) {
            self.take_back();
            stop_our_job();
        }
        self.go_on(self.forward || wants_terminal);
    }

    fn go_on(&mut self, lend: bool) {
        if lend && has_terminal() {
            lend_terminal(self.group);
            self.lent = true;
        }
        self.signal(libc::SIGCONT);
    }

    fn take_back(&mut self) {
        if std::mem::take(&mut self.lent) {
            reclaim_terminal();
        }
    }
}

/// Whether this process was started with the signal ignored, as by nohup(1). Then it isn't caught,
/// and the command inherits the disposition.
fn is_ignored(number: c_int) -> bool {
    // SAFETY: only reads the disposition, into zeroed memory, which is a valid value.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Stops our process group as Ctrl-Z would, and returns when it is continued: at once in an
/// orphaned group, which POSIX doesn't stop.
fn stop_our_job() {
    // SAFETY: plain system calls on an initialized (zeroed: SIG_DFL) disposition; the former one is
    // restored.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGTSTP, &default, &mut before);
        libc::kill(0, libc::SIGTSTP);
        libc::sigaction(libc::SIGTSTP, &before, std::ptr::null_mut());
    }
}

/// Whether our process group is the terminal's foreground group.
fn has_terminal() -> bool {
    // SAFETY: plain system calls.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

fn reclaim_terminal() {
    // SAFETY: a plain system call.
    lend_terminal(unsafe { libc::getpgrp() });
}

/// Makes `group` the terminal's foreground group. Async-signal-safe.
fn lend_terminal(group: pid_t) {
    // SAFETY: plain system calls on initialized signal sets. SIGTTOU is blocked, since it stops a
    // background process that calls tcsetpgrp(3).
    unsafe {
        let mut quiet: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut quiet);
        libc::sigaddset(&mut quiet, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &quiet, &mut before);
        libc::tcsetpgrp(libc::STDIN_FILENO, group);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    }
}

/// Makes the kernel kill the calling process when `parent` dies; kills it if it has died already.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid() as u32 != parent {
            libc::_exit(128 + libc::SIGKILL);
        }
    }
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn die_with(_parent: u32) -> io::Result<()> {
    Ok(())
}
