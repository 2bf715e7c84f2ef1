//! What Lock, RLock and the semaphores have in common: taking, giving back, and the hold in
//! between. Never here: which of these a kind of lock lets its users do.

use std::{
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use syncd_proto::v1::{
    Acquire, ErrorCode, Forget, Granted, MarkConsistent, Release, client_message::Request,
    server_message::Message,
};

use crate::{
    Abandonment, AcquireError, Holder, ReleaseError, SessionError,
    error::SessionLost,
    object::{Binding, Object, micros},
    owner,
    session::{CallError, Session, Undo},
};

#[derive(Clone, Debug)]
pub(crate) struct SemLock {
    pub(crate) object: Arc<Object>,
    fail_on_deadlock: bool,
}

/// Something that is held. Dropping it gives it back, unless its session is lost: then it is
/// void, and stays so.
#[derive(Debug)]
pub struct Hold {
    binding: Arc<Binding>,
    owner: u64,
    token: HoldToken,
    depth: u32,
    abandoned: Option<Box<Abandonment>>,
    held: bool,
}

/// A hold's fencing token.
#[derive(Debug)]
enum HoldToken {
    Sole(u64),
    /// The guards of one owner's recursive hold are of one hold, and get another token together
    /// when one of them is lent to a wait. 0 while, and if ever after, it isn't held.
    Shared(Arc<AtomicU64>),
}

impl HoldToken {
    fn of(object: &Object, binding: &Binding, owner: u64, granted: &Granted) -> Self {
        if !object.is_recursive() {
            return Self::Sole(granted.token);
        }
        let mut holds = binding.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.depth > 1
            && let Some(hold) = holds.get(&owner).and_then(Weak::upgrade)
        {
            return Self::Shared(hold);
        }
        holds.retain(|_, hold| hold.strong_count() > 0);
        let hold = Arc::new(AtomicU64::new(granted.token));
        holds.insert(owner, Arc::downgrade(&hold));
        Self::Shared(hold)
    }

    fn get(&self) -> u64 {
        match self {
            Self::Sole(token) => *token,
            Self::Shared(token) => token.load(Relaxed),
        }
    }

    fn set(&mut self, renewed: u64) {
        match self {
            Self::Sole(token) => *token = renewed,
            Self::Shared(token) => token.store(renewed, Relaxed),
        }
    }
}

impl SemLock {
    pub(crate) fn new(object: Arc<Object>) -> Self {
        Self { object, fail_on_deadlock: false }
    }

    pub(crate) fn fail_on_deadlock(self) -> Self {
        Self { fail_on_deadlock: true, ..self }
    }

    pub(crate) async fn take(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> Result<Hold, AcquireError> {
        let (binding, granted) = self.acquire(owner, timeout, false).await?;
        Ok(Hold {
            token: HoldToken::of(&self.object, &binding, owner, &granted),
            binding,
            owner,
            depth: granted.depth,
            abandoned: granted.abandoned.map(|left| Box::new(left.into())),
            held: true,
        })
    }

    pub(crate) async fn try_take(&self, owner: u64) -> Result<Option<Hold>, AcquireError> {
        none_if_busy(self.take(owner, Some(Duration::ZERO)).await)
    }

    /// Takes a permit that will be nobody's.
    pub(crate) async fn take_loose(&self, timeout: Option<Duration>) -> Result<(), AcquireError> {
        self.acquire(owner::current(), timeout, true).await.map(drop)
    }

    pub(crate) async fn try_take_loose(&self) -> Result<bool, AcquireError> {
        none_if_busy(self.take_loose(Some(Duration::ZERO)).await).map(|taken| taken.is_some())
    }

    async fn acquire(
        &self,
        owner: u64,
        timeout: Option<Duration>,
        loose: bool,
    ) -> Result<(Arc<Binding>, Granted), AcquireError> {
        let (timeout_us, fail_on_deadlock) = (micros(timeout), self.fail_on_deadlock);
        let request = |handle| {
            Request::Acquire(Acquire { handle, owner, loose, timeout_us, fail_on_deadlock })
        };
        match self.object.call(true, owner, request).await? {
            (binding, Message::Granted(granted)) => Ok((binding, granted)),
            _ => Err(CallError::from(SessionLost::nonsense()).into()),
        }
    }

    /// Gives back whatever a bare release does.
    pub(crate) async fn release(&self) -> Result<(), ReleaseError> {
        let owner = owner::current();
        let release = |handle| Request::Release(Release { handle, owner, token: 0, quiet: false });
        self.object.call(false, owner, release).await?;
        Ok(())
    }

    /// As [`release`](Self::release), but not waited for where it can't be one too many: where
    /// that takes a thousand million releases more than acquires.
    pub(crate) async fn release_unasked(&self) -> Result<(), ReleaseError> {
        if self.object.initial_value() > 1 << 30 {
            return self.release().await;
        }
        let binding = self.object.binding().await?;
        let (handle, owner) = (binding.handle, owner::current());
        binding.session.send(Request::Release(Release { handle, owner, token: 0, quiet: true }));
        Ok(())
    }

    pub(crate) async fn mark_consistent(&self) -> Result<(), ReleaseError> {
        let owner = owner::current();
        let mark = |handle| Request::MarkConsistent(MarkConsistent { handle, owner });
        self.object.call(true, owner, mark).await?;
        Ok(())
    }

    pub(crate) async fn holders(&self) -> Result<Vec<Holder>, SessionError> {
        Ok(self.object.query().await?.holders.into_iter().map(Holder::from).collect())
    }
}

fn none_if_busy<T>(taken: Result<T, AcquireError>) -> Result<Option<T>, AcquireError> {
    match taken {
        Ok(taken) => Ok(Some(taken)),
        Err(AcquireError::TimedOut { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Hold {
    /// Rises strictly with every grant of the namespace: storage that remembers the highest
    /// token it has seen can refuse a holder from the past. An RLock that is taken again has
    /// the token of its first grant.
    pub fn fencing_token(&self) -> u64 {
        self.token.get()
    }

    /// How often its owner holds the object, this time included: 1, or more for an RLock.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Who held it before and died, or lost it otherwise, without having released it. Told to
    /// one owner, once: what the object guards may be half changed.
    pub fn abandoned(&self) -> Option<&Abandonment> {
        self.abandoned.as_deref()
    }

    /// Whether it is still held, as far as this process can know: looks, without waiting, for
    /// news from the daemon. False for good once its session is lost, in a forked child, and
    /// after somebody took it by force.
    pub fn is_valid(&self) -> bool {
        self.is_held() && self.binding.session.has_hold(self.token.get())
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.binding.session
    }

    /// Not lent to a wait that never came back.
    pub(crate) fn is_held(&self) -> bool {
        self.held && self.token.get() != 0
    }

    pub(crate) fn owner(&self) -> u64 {
        self.owner
    }

    pub(crate) async fn release(mut self) -> Result<(), ReleaseError> {
        let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
        let release = Request::Release(Release { handle, owner, token, quiet: false });
        self.call(release, true).await
    }

    pub(crate) async fn forget(mut self) -> Result<(), ReleaseError> {
        let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
        let forget = Request::Forget(Forget { handle, owner, token, quiet: false });
        self.call(forget, true).await
    }

    pub(crate) async fn mark_consistent(&mut self) -> Result<(), ReleaseError> {
        let (handle, owner) = (self.binding.handle, self.owner);
        self.call(Request::MarkConsistent(MarkConsistent { handle, owner }), false).await
    }

    /// A request that may end the hold, as soon as it is sent.
    async fn call(&mut self, request: Request, ends: bool) -> Result<(), ReleaseError> {
        self.call_held(request, ends).await.map(drop).map_err(ReleaseError::from)
    }

    async fn call_held(&mut self, request: Request, ends: bool) -> Result<Message, CallError> {
        let Self { binding, owner, held, .. } = self;
        let undo = Undo { handle: binding.handle, owner: *owner };
        let mut reply = std::pin::pin!(binding.session.call(request, Some(undo)));
        std::future::poll_fn(|cx| {
            let polled = reply.as_mut().poll(cx);
            if ends && reply.is_sent() {
                *held = false;
            }
            polled
        })
        .await
    }

    /// Lets go of the lock for a request at whose end it is held again.
    pub(crate) async fn lend(&mut self, request: Request) -> Result<bool, CallError> {
        let lent = self.token.get();
        self.token.set(0);
        let returned = match self.call_held(request, true).await {
            Err(CallError::Refused(error)) => {
                use ErrorCode::{Cancelled, NotOwner, Poisoned};
                // Refused at once, it is held as before; these ends come without the lock.
                if !matches!(error.code(), Cancelled | NotOwner | Poisoned) {
                    self.token.set(lent);
                    self.held = true;
                }
                return Err(CallError::Refused(error));
            }
            returned => returned?,
        };
        match returned {
            Message::Woken(woken) => {
                let granted = woken.granted.unwrap_or_default();
                self.token.set(granted.token);
                self.depth = granted.depth;
                self.abandoned = granted.abandoned.map(|left| Box::new(left.into()));
                self.held = true;
                Ok(woken.notified)
            }
            _ => Err(SessionLost::nonsense().into()),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_held() {
            let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
            let release = Release { handle, owner, token, quiet: true };
            self.binding.session.send(Request::Release(release));
        }
    }
}
