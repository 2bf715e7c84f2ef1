//! A message before SIGBUS ends the daemon: a mapped journal file has no page where the daemon wrote,
//! most likely because another process made the file shorter. (`broker::lost` tries to find that out
//! in time.)

use std::{ffi::CString, io, mem, os::unix::ffi::OsStrExt as _, path::Path, ptr, sync::OnceLock};

const TEXT: &str = "ERROR syncd: SIGBUS: a file of the journal was cut short by somebody else while in \
                    use, or what it lies on has failed: ending. The next daemon goes on with what it \
                    can prove, and names the file\n";
static LOG_FILE: OnceLock<CString> = OnceLock::new();

/// Installs the handler, which writes the message to stderr, and to the log file if there is one.
pub(crate) fn explain(log_file: Option<&Path>) {
    if let Some(path) = log_file.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok()) {
        let _ = LOG_FILE.set(path);
    }
    // SAFETY: a `sigaction` of zeros is valid: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = say as extern "C" fn(libc::c_int) as usize;
    // After the handler, the same instruction faults again, with the default action: the process
    // ends.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: `say` is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "SIGBUS can't be explained");
    }
}

extern "C" fn say(_: libc::c_int) {
    let write = |to| {
        // SAFETY: the text is static.
        unsafe { libc::write(to, TEXT.as_ptr().cast(), TEXT.len()) };
    };
    write(libc::STDERR_FILENO);
    if let Some(path) = LOG_FILE.get() {
        let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: the path is static, and a C string.
        let file = unsafe { libc::open(path.as_ptr(), flags) };
        if file >= 0 {
            write(file);
        }
    }
}
