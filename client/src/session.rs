//! A session with the daemon: requests go in, replies come out, whoever waits does the I/O.
//! It outlives a broken connection within its grace, and is void in a forked child. Never
//! here: objects, guards, or opening another session in a lost one's place.

mod driver;
mod link;
mod outlet;
pub mod protocol;
mod relay;
mod requests;
mod seat;
#[cfg(unix)]
mod tap;
mod thread;
mod wait;

use std::{
    future::Future,
    mem::ManuallyDrop,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use syncd_proto::{
    Endpoint,
    v1::{self, Open, Opened, client_message::Request},
};
use tokio::time::{Instant, sleep, timeout};

use self::{
    driver::{Driver, Posting},
    link::Resume,
    thread::{Place, Post},
    wait::{Attendant, Phase, Reply, Wait},
};
pub(crate) use link::LinkError;
pub(crate) use thread::{Patience, Reactor};

use crate::{
    error::{SessionError, SessionLost},
    fork,
};

/// How long a dropped guard of the blocking client waits for room in the socket.
const FLUSH: Duration = Duration::from_secs(1);

/// Whose thread does the waiting.
#[derive(Clone, Debug)]
pub(crate) enum Runtime {
    /// That of the caller's tasks.
    Tasks(tokio::runtime::Handle),
    /// The calling thread.
    Blocking(Reactor),
}

#[derive(Debug)]
pub(crate) struct Session {
    generation: u32,
    identity: Arc<Identity>,
    inner: ManuallyDrop<Inner>,
}

struct Inner {
    driver: Mutex<Driver>,
    runtime: Runtime,
    attended: AtomicBool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

/// What stays the same over a session's connections, and what can be known without its mutex.
#[derive(Debug)]
struct Identity {
    endpoint: Endpoint,
    /// With the key, to resume.
    open: Open,
    opened: Opened,
    blocking: bool,
    lost: AtomicBool,
    descriptor: Arc<AtomicI32>,
}

/// What a grant needs to be undone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    pub handle: u32,
    pub owner: u64,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum CallError {
    Refused(Box<v1::Error>),
    Session(SessionError),
}

impl Session {
    /// Opens a session. Its socket is noted in `descriptor`, so that a forked child can close it.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        mut open: Open,
        runtime: Runtime,
        descriptor: Arc<AtomicI32>,
    ) -> Result<Arc<Self>, LinkError> {
        fork::watch();
        let generation = fork::generation();
        let blocking = matches!(runtime, Runtime::Blocking(_));
        let (link, opened) = link::establish(endpoint, open.clone(), blocking).await?;
        descriptor.store(link.outlet().descriptor(), Relaxed);
        open.resume_key = opened.resume_key.clone();
        let lost = AtomicBool::new(false);
        let identity = Arc::new(Identity {
            endpoint: endpoint.clone(),
            open,
            opened,
            blocking,
            lost,
            descriptor,
        });
        let driver = Mutex::new(Driver::new(link, identity.clone(), blocking));
        let inner = Inner { driver, runtime, attended: AtomicBool::new(false) };
        Ok(Arc::new(Self { generation, identity, inner: ManuallyDrop::new(inner) }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.identity.opened.session
    }

    /// False: everything that it held is gone, as far as this process goes.
    pub(crate) fn is_usable(&self) -> bool {
        self.is_ours() && !self.identity.lost.load(Relaxed)
    }

    fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Looks whether anything came, without waiting; then as [`is_usable`](Self::is_usable).
    pub(crate) fn check(self: &Arc<Self>) -> bool {
        if self.is_usable() {
            self.with(Driver::look);
        }
        self.is_usable()
    }

    /// Whether the hold is still there, as far as is known.
    pub(crate) fn has_hold(self: &Arc<Self>, token: u64) -> bool {
        self.check() && !self.with(|driver| driver.is_taken(token))
    }

    /// Sends a request, when first polled. Dropping the future withdraws it: `undo` says of
    /// what grants, for a request that waits.
    pub(crate) fn call(self: &Arc<Self>, request: Request, undo: Option<Undo>) -> Reply<'_> {
        Reply { session: self, phase: Phase::New(Some(request)), undo }
    }

    /// Sends a request to which no reply is wanted, before it returns if the socket has room.
    pub(crate) fn send(self: &Arc<Self>, request: Request) {
        if !self.is_usable() {
            return;
        }
        let unsent = self.with(|driver| {
            if let Request::Release(release) = &request
                && driver.forget_taken(release.token)
            {
                return false;
            }
            driver.enqueue_quiet(request);
            driver.drive();
            driver.is_unsent()
        });
        // Within somebody's runtime a thread can't run another; the next call sends the rest.
        if unsent
            && let Runtime::Blocking(reactor) = &self.inner.runtime
            && tokio::runtime::Handle::try_current().is_err()
        {
            let sent = pin!(self.wait(|driver| (!driver.is_unsent()).then_some(())));
            reactor.run(sent, Patience::Until(Instant::now() + FLUSH));
        }
    }

    pub(crate) fn why_lost(self: &Arc<Self>) -> Option<SessionLost> {
        match self.is_ours() {
            true => self.with(|driver| driver.lost().cloned()),
            false => Some(SessionLost::forked()),
        }
    }

    /// Drives a blocking client's connection, as if something were waited for, so long unless
    /// the session is lost before.
    pub(crate) fn stand_by(self: &Arc<Self>, limit: Duration) {
        if let Runtime::Blocking(reactor) = &self.inner.runtime
            && self.is_ours()
        {
            reactor.run(pin!(self.lost()), Patience::Until(Instant::now() + limit));
        }
    }

    /// Waits until the session is lost.
    pub(crate) async fn lost(self: &Arc<Self>) -> SessionLost {
        if !self.is_ours() {
            return SessionLost::forked();
        }
        self.wait(|driver| driver.lost().cloned()).await
    }

    /// Says goodbye: what the session holds is released as abandoned by who left.
    pub(crate) async fn close(self: &Arc<Self>) {
        if self.is_usable() {
            let _ = self.call(Request::Goodbye(v1::Goodbye {}), None).await;
            self.with(|driver| driver.lose(SessionLost::closed()));
        }
    }

    /// Runs a call of the blocking client in this thread.
    pub(crate) fn block_on<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, E>
    where
        E: From<SessionError>,
    {
        match &self.inner.runtime {
            Runtime::Blocking(reactor) if self.is_ours() => reactor.block_on(call),
            _ => Err(SessionError::from(SessionLost::forked()).into()),
        }
    }

    /// The socket, to be watched for its end; -1 if there is none just now.
    #[cfg(unix)]
    pub(crate) fn descriptor(&self) -> i32 {
        self.identity.descriptor.load(Relaxed)
    }

    fn with<R>(self: &Arc<Self>, act: impl FnOnce(&mut Driver) -> R) -> R {
        let mut driver = self.inner.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut driver);
        let after = std::mem::take(&mut driver.after);
        after.post.into_iter().for_each(|posting| self.post(&driver, posting));
        drop(driver);
        after.wake.into_iter().for_each(Waker::wake);
        if after.attend
            && let Runtime::Tasks(handle) = &self.inner.runtime
            && !self.inner.attended.swap(true, Relaxed)
        {
            // The runtime of the session's first task may be gone by now.
            let handle = tokio::runtime::Handle::try_current().unwrap_or_else(|_| handle.clone());
            handle.spawn(Attendant::new(self.clone()));
        }
        result
    }

    /// Tells the thread where to wait.
    fn post(self: &Arc<Self>, driver: &Driver, posting: Posting) {
        match posting {
            Posting::Leave(id) => Post::leave(id),
            Posting::Wait(id, leads) => {
                let at = Place::of(&driver.state, leads);
                Post { session: self.clone(), id, at }.take_up();
            }
        }
    }

    /// The thread of that waker isn't polled for some time.
    fn step_aside(self: &Arc<Self>, thread: &Waker) {
        if self.is_ours() {
            self.with(|driver| driver.step_aside(thread));
        }
    }

    fn wait<T, F: FnMut(&mut Driver) -> Option<T> + Unpin>(
        self: &Arc<Self>,
        until: F,
    ) -> Wait<'_, F> {
        Wait { session: self, id: self.with(Driver::draw_id), until }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_ours() {
            // The reactor is shared with the parent: to deregister here would deafen it there.
            return close_inherited(&self.identity.descriptor);
        }
        // SAFETY: it is used no more.
        let Inner { driver, runtime, .. } = unsafe { ManuallyDrop::take(&mut self.inner) };
        let mut driver = driver.into_inner().unwrap_or_else(PoisonError::into_inner);
        if driver.lost().is_none() {
            driver.enqueue(Request::Goodbye(v1::Goodbye {}));
            driver.drive();
        }
        self.identity.set_descriptor(-1);
        drop(driver);
        drop(runtime);
    }
}

/// Closes a forked child's copy of its parent's socket. The parent's is another, and stays.
pub(crate) fn close_inherited(descriptor: &AtomicI32) {
    let inherited = descriptor.swap(-1, Relaxed);
    #[cfg(unix)]
    if inherited >= 0 {
        // SAFETY: only this process's copy is closed, whose owners were forgotten.
        unsafe { libc::close(inherited) };
    }
    #[cfg(windows)]
    let _ = inherited;
}

impl Identity {
    fn set_lost(&self) {
        self.lost.store(true, Relaxed);
        self.set_descriptor(-1);
    }

    fn set_descriptor(&self, descriptor: i32) {
        self.descriptor.store(descriptor, Relaxed);
    }

    /// Resumes, by new attempts until the grace is over. `seq` is the last message that the
    /// daemon may forget.
    fn resume(self: Arc<Self>, seq: u64) -> Resume {
        Box::pin(async move {
            let open = Open { resume_seq: seq, ..self.open.clone() };
            // Ours ends before the daemon's, so that whoever must stop what a lock guards can do
            // so before somebody else gets it.
            let grace = Duration::from_micros(self.opened.grace_us) * 3 / 4;
            let end = Instant::now() + grace;
            let mut pause = Duration::from_millis(2);
            loop {
                let resumed = link::establish(&self.endpoint, open.clone(), self.blocking);
                match timeout(grace, resumed).await {
                    Ok(Ok(resumed)) => return Ok(resumed),
                    Ok(Err(error)) if error.is_final() => return Err(SessionLost::by_link(&error)),
                    Ok(Err(error)) if Instant::now() + pause >= end => {
                        return Err(SessionLost::disconnected(&error.to_string()));
                    }
                    Err(_) => return Err(SessionLost::disconnected("the daemon doesn't answer")),
                    Ok(Err(_)) => {}
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
        })
    }
}
