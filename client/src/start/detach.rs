//! Starts a process that inherits nothing of its starter: no descriptor, working directory,
//! session, parent, signal disposition or umask.
//!
//! `std::process::Command` can't be used: it must reap its child, and where SIGCHLD is ignored the
//! kernel does that, so that `Command` panics.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    ptr,
};

use libc::{c_char, c_int};

use super::command::Plan;

/// A daemon that was started, and the pipe from its standard output.
pub(super) struct Detached {
    stdout: File,
    is_busy: bool,
}

/// What the daemon has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    /// Another daemon has the place.
    Busy,
    Exited,
}

/// The line by which the daemon says that another has the place.
const BUSY: &[u8] = b"busy\n";

impl Detached {
    pub(super) fn said(&mut self) -> Said {
        let mut bytes = [0; 256];
        loop {
            match self.stdout.read(&mut bytes) {
                Ok(0) if self.is_busy => return Said::Busy,
                Ok(0) => return Said::Exited,
                Ok(length) => self.is_busy |= bytes[..length].ends_with(BUSY),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Said::Nothing,
            }
        }
    }
}

/// Everything that the child needs, made before the fork: after it, allocating isn't safe.
struct Image {
    program: CString,
    args: Strings,
    environment: Strings,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    /// The pipe to which the child writes errno if it fails before execve(2).
    failure: OwnedFd,
    /// The highest descriptor that the child may inherit, for systems without close_range(2).
    last_descriptor: RawFd,
}

/// Starts the daemon with `log` as its standard error, and returns when its program runs.
pub(super) fn spawn(plan: &Plan, log: &File) -> io::Result<Detached> {
    let (said, stdout) = pipe()?;
    let (failed, failure) = pipe()?;
    rustix::io::ioctl_fionbio(&said, true)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let program = c_string(plan.program.as_os_str().as_bytes())?;
    let mut args = vec![program.clone()];
    for arg in &plan.args {
        args.push(c_string(arg.as_bytes())?);
    }
    let mut environment = Vec::new();
    for (name, value) in &plan.environment {
        environment.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    let image = Image {
        program,
        args: Strings::new(args),
        environment: Strings::new(environment),
        stdin: beyond_standard(null.as_fd())?,
        stdout: beyond_standard(stdout.as_fd())?,
        stderr: beyond_standard(log.as_fd())?,
        failure: beyond_standard(failure.as_fd())?,
        last_descriptor: last_descriptor(),
    };
    drop((null, stdout, failure));
    let between = fork(&image)?;
    drop(image);
    wait_for(between)?;
    // Empty after a successful execve(2), which closed the other end.
    let mut why = Vec::new();
    File::from(failed).read_to_end(&mut why)?;
    match <[u8; 4]>::try_from(&*why) {
        Ok(errno) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        Err(_) => Ok(Detached { stdout: said.into(), is_busy: false }),
    }
}

/// Forks a child that forks the daemon and exits, so that the daemon isn't this process's child.
fn fork(image: &Image) -> io::Result<libc::pid_t> {
    // SAFETY: the signal sets are initialized. All signals are blocked, so that no handler of this
    // process runs in the child.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let forked = match libc::fork() {
            0 => be_between(image),
            pid => pid,
        };
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        if forked < 0 { Err(error) } else { Ok(forked) }
    }
}

/// The intermediate child: leaves the session and forks the daemon.
///
/// # Safety
/// Only in a child of fork. Makes only async-signal-safe calls.
unsafe fn be_between(image: &Image) -> ! {
    // SAFETY: plain system calls.
    unsafe {
        libc::setsid();
        match libc::fork() {
            0 => be_daemon(image),
            -1 => fail(image),
            _ => libc::_exit(0),
        }
    }
}

/// # Safety
/// As `be_between`.
unsafe fn be_daemon(image: &Image) -> ! {
    /// Above the highest signal number of any system.
    const SIGNALS: c_int = 128;
    // SAFETY: plain system calls on initialized values; an invalid signal number is refused.
    unsafe {
        let default: libc::sigaction = mem::zeroed();
        for signal in 1..SIGNALS {
            libc::sigaction(signal, &default, ptr::null_mut());
        }
        libc::umask(0o077);
        for (descriptor, standard) in [(&image.stdin, 0), (&image.stdout, 1), (&image.stderr, 2)] {
            if libc::dup2(descriptor.as_raw_fd(), standard) < 0 {
                fail(image);
            }
        }
        if libc::chdir(c"/".as_ptr()) != 0 {
            fail(image);
        }
        close_at_exec(3, image.last_descriptor);
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::execve(image.program.as_ptr(), image.args.as_ptr(), image.environment.as_ptr());
        fail(image)
    }
}

/// # Safety
/// As `be_between`.
unsafe fn fail(image: &Image) -> ! {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: plain system calls.
    unsafe {
        libc::write(image.failure.as_raw_fd(), errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

/// # Safety
/// As `be_between`.
unsafe fn close_at_exec(first: c_int, last: c_int) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
        let all = libc::c_uint::MAX;
        // SAFETY: a plain system call; a kernel before 5.11 refuses it.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, all, CLOSE_RANGE_CLOEXEC) };
        if done == 0 {
            return;
        }
    }
    for descriptor in first..=last {
        // SAFETY: as above; fcntl refuses a number that isn't a descriptor.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// The highest open descriptor, plus a margin for those that other threads open before the fork.
fn last_descriptor() -> RawFd {
    const MARGIN: RawFd = 256;
    let numbers = fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    numbers.max().unwrap_or(1024) + MARGIN
}

/// Reaps the intermediate child, which exits at once. A signal handler may have reaped it, or the
/// kernel where SIGCHLD is ignored.
fn wait_for(pid: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: a plain system call.
        if unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            error => return Err(error),
        }
    }
}

/// A pipe's read end and write end, both close-on-exec.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    #[cfg(not(target_vendor = "apple"))]
    return Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?);
    #[cfg(target_vendor = "apple")]
    {
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok((read, write))
    }
}

/// A duplicate whose number is above 2: the child replaces 0 to 2, any of which may be this
/// descriptor if they were closed in this process.
fn beyond_standard(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call, which returns a new descriptor.
    unsafe {
        match libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) {
            -1 => Err(io::Error::last_os_error()),
            copy => Ok(OwnedFd::from_raw_fd(copy)),
        }
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A null-terminated array of C strings, for execve(2).
struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = owned.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { _owned: owned, pointers }
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, thread::sleep, time::Duration};

    use super::*;

    fn shell(script: &str) -> Plan {
        Plan {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            environment: vec![("GIVEN".into(), "yes".into())],
            is_scoped: false,
        }
    }

    fn run(script: &str) -> (Said, String) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut detached = spawn(&shell(script), &file).unwrap();
        let said = loop {
            match detached.said() {
                Said::Nothing => sleep(Duration::from_millis(1)),
                said => break said,
            }
        };
        (said, fs::read_to_string(log).unwrap())
    }

    #[test]
    fn the_daemon_inherits_nothing() {
        // Not close-on-exec, and high, so that a short loop would miss it.
        let inherited = File::open("/dev/null").unwrap();
        // SAFETY: a plain system call that makes a new descriptor.
        let high = unsafe { libc::fcntl(inherited.as_raw_fd(), libc::F_DUPFD, 900) };
        assert!(high >= 900);
        let script = "pwd; umask; echo ${GIVEN-no} ${HOME-none}; ls /dev/fd/ | tr '\\n' ' '; \
                      ps -o sid=,pid= -p $$ >&2 || true";
        let (said, words) = run(&format!("{{ {script}; }} >&2"));
        // SAFETY: the descriptor is this test's.
        unsafe { libc::close(high) };
        assert_eq!(said, Said::Exited);
        let lines: Vec<&str> = words.lines().collect();
        assert_eq!(lines[0], "/");
        assert_eq!(lines[1], "0077");
        assert_eq!(lines[2], "yes none");
        assert!(!lines[3].contains("900"), "{words}");
        assert!(lines[3].starts_with("0 1 2"), "{words}");
    }

    #[test]
    fn the_daemon_reports_that_the_place_is_taken() {
        assert_eq!(run("echo busy").0, Said::Busy);
        assert_eq!(run("exit 1").0, Said::Exited);
    }

    #[test]
    fn a_program_that_cannot_be_run_is_an_error() {
        let mut plan = shell("");
        plan.program = Path::new("/no/such/program").to_owned();
        let log = File::open("/dev/null").unwrap();
        assert_eq!(spawn(&plan, &log).err().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
