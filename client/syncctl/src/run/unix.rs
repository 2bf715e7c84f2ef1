//! The command that `run` carries, on Unix: a process group of its own that gets our signals, has
//! the terminal while it is in the foreground, and dies with us.

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

/// What the command is to hear of when we are told.
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
const MERCY: Duration = Duration::from_secs(2);

/// What a second word from the user means when the command is gone: don't wait.
const IMPATIENCE: [c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// What is made before there is a runtime.
#[derive(Debug)]
pub struct Keeper(Warden);

impl Keeper {
    /// # Errors
    /// If there can be no process more.
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
        /// The terminal was its group's, so that ours and who started us didn't hear of it.
        had_terminal: bool,
    },
}

impl Ended {
    /// Ends this process by the command's signal, as if it had been its own; else gives the exit
    /// code.
    pub fn end(self) -> u8 {
        let (number, had_terminal) = match self {
            Self::Code(code) => return code,
            Self::Signal { number, had_terminal } => (number, had_terminal),
        };
        let typed = had_terminal && matches!(number, libc::SIGINT | libc::SIGQUIT);
        // SAFETY: plain system calls on initialized values. No core is dumped for the second time.
        unsafe {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, &default, std::ptr::null_mut());
            let mut this: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut this);
            libc::sigaddset(&mut this, number);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &this, std::ptr::null_mut());
            // A key at the terminal is for the shell script around us, too.
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
    /// Whether to hand the terminal over unasked: not when another part of a pipeline has it.
    forward: bool,
    /// Whether the group has the terminal now.
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
        // SAFETY: between fork and exec it makes system calls only, all async-signal-safe.
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

    /// How it ended, once it has. Signals that we get until then are passed on.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
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

    /// Ends the group: SIGTERM, and SIGKILL for who is left when the command has exited or two
    /// seconds have passed.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.signal(libc::SIGTERM);
        self.signal(libc::SIGCONT);
        let in_time = timeout(MERCY, self.ended()).await;
        self.signal(libc::SIGKILL);
        match in_time {
            Ok(ended) => ended.map(drop),
            Err(_) => self.ended().await.map(drop),
        }
    }

    /// After the end: the next signal that tells us to leave.
    pub async fn interrupted(&mut self) -> Ended {
        loop {
            let number = self.caught().await;
            if IMPATIENCE.contains(&number) {
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

    /// What the command had as well, such as a Ctrl-C that ended it, is over with it.
    fn forget_caught(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.poll_caught(&mut cx).is_ready() {}
    }

    fn signal(&self, number: c_int) {
        // SAFETY: a plain system call. That nobody is left to hear it is no error.
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

    /// The command has stopped. At a terminal our whole job stops with it, so that the shell
    /// gets its prompt, and goes on with it. Elsewhere that is between it and who stopped it.
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

/// Whether we were started with this signal ignored, as by nohup: then so shall the command.
fn is_ignored(number: c_int) -> bool {
    // SAFETY: only reads the disposition, into zeroed memory, which is a valid value.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Stops our whole process group as Ctrl-Z would, and returns when somebody lets it go on: at
/// once where no shell is there to do so.
fn stop_our_job() {
    // SAFETY: plain system calls on an initialized (zeroed, SIG_DFL) disposition; the one that
    // was there is put back.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGTSTP, &default, &mut before);
        libc::kill(0, libc::SIGTSTP);
        libc::sigaction(libc::SIGTSTP, &before, std::ptr::null_mut());
    }
}

/// Whether our process group is the terminal's foreground.
fn has_terminal() -> bool {
    // SAFETY: plain system calls.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

fn reclaim_terminal() {
    // SAFETY: a plain system call.
    lend_terminal(unsafe { libc::getpgrp() });
}

/// Makes `group` the terminal's foreground. Async-signal-safe.
fn lend_terminal(group: pid_t) {
    // SAFETY: plain system calls on initialized signal sets. Who does this from the background
    // is stopped by SIGTTOU, unless that is blocked.
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

/// Has the kernel kill the calling process when `parent` dies, now or later.
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
