//! What ends the command when `syncctl run` itself is killed: a process of its own that waits for
//! the other end of a pipe to close, and kills the command's group then.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    ptr,
};

use libc::pid_t;

/// A watching process. When this is dropped, or we are killed, it kills the group that it
/// guards, if it guards one.
#[derive(Debug)]
pub struct Warden {
    process: pid_t,
    /// It is told by this whom to kill: 0 is nobody. The kernel closes it, however we end.
    group: Option<File>,
}

impl Warden {
    /// Starts watching, with nobody to kill yet.
    ///
    /// # Errors
    /// If there can be no pipe, or no process.
    pub fn start() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), File::from(OwnedFd::from(writer)));
        // SAFETY: this process has one thread (the promise of `run`'s caller), so that its child
        // may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(writer);
                watch(reader.into())
            }
            process => Ok(Self { process, group: Some(writer) }),
        }
    }

    /// Has it guard that process group from now on.
    pub fn guard(&mut self, group: pid_t) -> io::Result<()> {
        self.group.as_mut().expect("open until dropped").write_all(&group.to_ne_bytes())
    }

    /// The command is over: what is left of its group is nobody's concern.
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

/// Holds nothing that somebody may wait for the end of: no descriptor, directory or terminal.
fn watch(mut told: File) -> ! {
    // SAFETY: plain system calls on an initialized (filled) set. Blocked are the signals that are
    // for all of a session or a service: it must outlive the others.
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
    // SAFETY: plain system calls. Never of group 0, which would be ours, nor 1, which is all.
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
        // SAFETY: nobody in this process uses it; that it is closed already is no harm.
        unsafe { libc::close(descriptor) };
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for standard in 0..3 {
            // SAFETY: a plain system call.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
}
