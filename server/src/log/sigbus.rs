//! What is said before SIGBUS ends the daemon: memory that is a file of the journal isn't there, most
//! likely since somebody made that file shorter. Never here: finding that out in time, which
//! `broker::lost` tries.

use std::{ffi::CString, io, mem, os::unix::ffi::OsStrExt as _, path::Path, ptr, sync::OnceLock};

const TEXT: &str = "ERROR syncd: SIGBUS: a file of the journal was cut short by somebody else while in \
                    use, or what it lies on has failed: ending. The next daemon goes on with what it \
                    can prove, and names the file\n";
static LOG_FILE: OnceLock<CString> = OnceLock::new();

/// Has it said on standard error, and in the log's file if there is one.
pub(crate) fn explain(log_file: Option<&Path>) {
    if let Some(path) = log_file.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok()) {
        let _ = LOG_FILE.set(path);
    }
    // SAFETY: an action of zeros is one without flags and without a mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = say as extern "C" fn(libc::c_int) as usize;
    // Once it has been said, the same instruction ends the process as if nobody had asked.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: `say` does only what a signal's handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "SIGBUS can't be explained");
    }
}

extern "C" fn say(_: libc::c_int) {
    let write = |to| {
        // SAFETY: the text is there as long as the process is.
        unsafe { libc::write(to, TEXT.as_ptr().cast(), TEXT.len()) };
    };
    write(libc::STDERR_FILENO);
    if let Some(path) = LOG_FILE.get() {
        let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: the path is there as long as the process is, and ends with a zero.
        let file = unsafe { libc::open(path.as_ptr(), flags) };
        if file >= 0 {
            write(file);
        }
    }
}
