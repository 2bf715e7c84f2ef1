//! The warden: a process that kills the command's group if `syncctl run` itself is killed, which it
//! notices by the end of a pipe.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    ptr,
};

use libc::pid_t;

/// The warden process. When this is dropped, or this process is killed, it kills the group that it
/// guards, if any.
#[derive(Debug)]
pub struct Warden {
    process: pid_t,
    /// The pipe that tells the warden which group to kill; 0 means none. The kernel closes it,
    /// however this process ends.
    group: Option<File>,
}

impl Warden {
    /// Starts a warden that guards no group yet.
    ///
    /// # Errors
    /// If the pipe or the process can't be created.
    pub fn start() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), File::from(OwnedFd::from(writer)));
        // SAFETY: this process has one thread (see `crate::run`), so that the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(writer);
                watch(reader.into())
            }
            process => Ok(Self { process, group: Some(writer) }),
        }
    }

    /// Makes the warden guard this process group.
    pub fn guard(&mut self, group: pid_t) -> io::Result<()> {
        self.group.as_mut().expect("open until dropped").write_all(&group.to_ne_bytes())
    }

    /// The command has ended: the warden leaves the rest of its group alone.
    pub fn release(&mut self) {
        let _ = self.guard(0);
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.group = None;
        // SAFETY: a plain system call on our own child, which exits at once.
        unsafe { libc::waitpid(self.process, ptr::null_mut(), 0) };
    }
}

/// The warden process. Keeps no descriptor, working directory or terminal, whose end somebody may
/// wait for.
fn watch(mut told: File) -> ! {
    // SAFETY: plain system calls on an initialized (filled) set. All signals are blocked: the warden
    // must outlive the others when a whole session or service is signalled.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, ptr::null_mut());
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        #[cfg(any(target_os = "linux", target_os = "android"))]
        libc::prctl(libc::PR_SET_NAME, c"syncctl-warden".as_ptr());
    }
    close_all_but(told.as_raw_fd());
    let mut group: pid_t = 0;
    let mut bytes = [0; size_of::<pid_t>()];
    while told.read_exact(&mut bytes).is_ok() {
        group = pid_t::from_ne_bytes(bytes);
    }
    // SAFETY: plain system calls. kill(-0) would signal our own group, kill(-1) all processes.
    unsafe {
        if group > 1 {
            libc::kill(-group, libc::SIGKILL);
        }
        libc::_exit(0)
    }
}

fn close_all_but(kept: RawFd) {
    let open = fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> =
        open.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|&descriptor| descriptor > 2 && descriptor != kept) {
        // SAFETY: nothing in this process uses the descriptor; closing it twice is harmless.
        unsafe { libc::close(descriptor) };
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for standard in 0..3 {
            // SAFETY: a plain system call.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
}
