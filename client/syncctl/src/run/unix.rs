//! The command that `run` carries, on Unix: a process group of its own that gets our signals,
//! has the terminal while it is in the foreground, and dies with us. Never here: the lock.

use std::{
    ffi::OsString,
    future::poll_fn,
    io::{self, IsTerminal as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    task::Poll,
    time::Duration,
};

use libc::{c_int, pid_t};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

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

/// A running command.
#[derive(Debug)]
pub struct Job {
    group: pid_t,
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
    ) -> io::Result<Self> {
        let mut signals = Vec::new();
        for number in PASSED_ON.into_iter().filter(|&n| !is_ignored(n)).chain([libc::SIGCHLD]) {
            signals.push((number, signal(SignalKind::from_raw(number))?));
        }
        let forward = io::stdin().is_terminal() && io::stdout().is_terminal();
        let lent = forward && has_terminal();
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().map(|(k, v)| (k, v))).process_group(0);
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
        Ok(Self { group: started?, signals, forward, lent })
    }

    /// Its exit code once it has exited, or 128 + the signal that ended it. Signals that we get
    /// until then are passed on.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ended(&mut self) -> io::Result<u8> {
        loop {
            if let Some(code) = self.look()? {
                return Ok(code);
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

    async fn caught(&mut self) -> c_int {
        poll_fn(|cx| {
            let ready = self
                .signals
                .iter_mut()
                .find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn signal(&self, number: c_int) {
        // SAFETY: a plain system call. That nobody is left to hear it is no error.
        unsafe { libc::kill(-self.group, number) };
    }

    fn look(&mut self) -> io::Result<Option<u8>> {
        loop {
            let mut status = 0;
            // SAFETY: a plain system call on our own child.
            match unsafe { libc::waitpid(self.group, &mut status, libc::WNOHANG | libc::WUNTRACED) }
            {
                0 => return Ok(None),
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSTOPPED(status) => self.stopped(libc::WSTOPSIG(status)),
                _ => {
                    self.take_back();
                    return Ok(Some(match libc::WIFSIGNALED(status) {
                        true => 128 + libc::WTERMSIG(status) as u8,
                        false => libc::WEXITSTATUS(status) as u8,
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
