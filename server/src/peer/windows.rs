//! The end of a process on Windows: its handle is signalled, which the system's thread pool waits
//! for.

use std::{
    ffi::c_void,
    io,
    os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle},
    ptr,
    sync::Arc,
};

use syncd_proto::socket::Socket;
use tokio::sync::Notify;
use windows_sys::Win32::{
    Foundation::{HANDLE, INVALID_HANDLE_VALUE, WAIT_OBJECT_0},
    System::Threading::{
        INFINITE, OpenProcess, PROCESS_SYNCHRONIZE, RegisterWaitForSingleObject, UnregisterWaitEx,
        WT_EXECUTEONLYONCE, WaitForSingleObject,
    },
};

pub(super) struct Watch {
    process: OwnedHandle,
    wait: HANDLE,
    ended: Arc<Notify>,
}

// SAFETY: a wait's handle belongs to the process, not to a thread.
unsafe impl Send for Watch {}
// SAFETY: as above; it is used only in Drop.
unsafe impl Sync for Watch {}

unsafe extern "system" fn signal(ended: *mut c_void, _: bool) {
    // SAFETY: `ended` is the Notify of a Watch, which waits for this to return in its Drop.
    unsafe { &*ended.cast::<Notify>() }.notify_one();
}

impl Watch {
    /// Watches the process that has the PID now; `None` if there is none.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::open(pid).ok()
    }

    pub(super) fn new(_: &Socket, pid: u32) -> io::Result<Self> {
        Self::open(pid)
    }

    fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: no pointers.
        let process = unsafe { OpenProcess(PROCESS_SYNCHRONIZE, 0, pid) };
        if process.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is a new handle, owned by this function.
        let process = unsafe { OwnedHandle::from_raw_handle(process) };
        let ended = Arc::new(Notify::new());
        let mut wait = ptr::null_mut();
        // SAFETY: the handle and the Notify live until the wait is unregistered, in Drop.
        let registered = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                process.as_raw_handle(),
                Some(signal),
                Arc::as_ptr(&ended).cast(),
                INFINITE,
                WT_EXECUTEONLYONCE,
            )
        };
        if registered == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { process, wait, ended })
    }

    pub(super) fn has_exited(&self) -> bool {
        // SAFETY: the handle is open.
        unsafe { WaitForSingleObject(self.process.as_raw_handle(), 0) == WAIT_OBJECT_0 }
    }

    pub(super) async fn exited(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: registered in `open`; this returns when no call of `signal` is running.
        unsafe { UnregisterWaitEx(self.wait, INVALID_HANDLE_VALUE) };
    }
}

/// Not implemented: a process that the previous daemon knew has the grace.
pub(super) fn started(_: u32) -> Option<u64> {
    None
}
