//! What Lock, RLock and the semaphores have in common: taking, giving back, and the hold in
//! between.

use std::{
    borrow::BorrowMut,
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use syncd_proto::v1::{
    Acquire, Forget, Granted, MarkConsistent, Release, client_message::Request,
    server_message::Message,
};

use crate::{
    Abandonment, AcquireError, FencingToken, Holder, ReleaseError, SessionError,
    binding::{BindObject, Binding, ObjectRequest},
    call::{Call, Input, Step, Steps, call, done},
    client::Shared,
    error::SessionLost,
    object::{Object, micros},
    session::{CallError, Session, protocol::Undo},
};

#[derive(Clone, Debug)]
pub(crate) struct SemLock {
    pub(crate) object: Arc<Object>,
    fail_on_deadlock: bool,
}

/// Something that is held. Dropping it gives it back, unless its session is lost: then it is
/// void, and stays so.
pub struct Hold {
    client: Arc<Shared>,
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

    /// As of a hold that is none for the time.
    fn take(&mut self) -> u64 {
        let token = self.get();
        self.set(0);
        token
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

    /// Takes the lock or a permit.
    pub(crate) fn take(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> impl Call<Done = Result<Hold, AcquireError>> + '_ {
        let acquire = self.acquire(owner, timeout, false);
        call(acquire, timeout, move |granted: Result<ObjectRequest, CallError>| {
            let (binding, message) = granted?;
            let Message::Granted(granted) = message else {
                return Err(CallError::from(SessionLost::nonsense()).into());
            };
            Ok(Hold {
                client: self.object.client.clone(),
                token: HoldToken::of(&self.object, &binding, owner, &granted),
                binding,
                owner,
                depth: granted.depth,
                abandoned: granted.abandoned.map(|left| Box::new((*left).into())),
                held: true,
            })
        })
    }

    /// Takes a permit that will be nobody's.
    pub(crate) fn take_unowned(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> impl Call<Done = Result<(), AcquireError>> + '_ {
        let acquire = self.acquire(owner, timeout, true);
        call(acquire, timeout, done)
    }

    fn acquire(
        &self,
        owner: u64,
        timeout: Option<Duration>,
        unowned: bool,
    ) -> impl Steps<Output = ObjectRequest> + Send + '_ {
        let (timeout_us, fail_on_deadlock) = (micros(timeout), self.fail_on_deadlock);
        self.object.request(true, move |handle| {
            let undo = Undo::Grant { handle, owner, unowned };
            let acquire = Acquire { handle, owner, unowned, timeout_us, fail_on_deadlock };
            (Request::Acquire(acquire), Some(undo))
        })
    }

    /// Gives back whatever a bare release does.
    pub(crate) fn release(
        &self,
        owner: u64,
    ) -> impl Call<Done = Result<(), ReleaseError>> + use<'_> {
        let release = self.object.request(false, move |handle| {
            (Request::Release(Release { handle, owner, token: 0, quiet: false }), None)
        });
        call(release, None, done)
    }

    /// As [`release`](Self::release), but not waited for where it can't be one too many: where
    /// that takes a thousand million releases more than acquires.
    pub(crate) fn release_unasked(
        &self,
        owner: u64,
    ) -> impl Call<Done = Result<(), ReleaseError>> + use<'_> {
        let quiet = self.object.initial_value() <= 1 << 30;
        call(BareRelease::new(&self.object, owner, quiet), None, |done: Result<(), CallError>| {
            done.map_err(ReleaseError::from)
        })
    }

    pub(crate) fn mark_consistent(
        &self,
        owner: u64,
    ) -> impl Call<Done = Result<(), ReleaseError>> + use<'_> {
        let mark = self.object.request(true, move |handle| {
            (Request::MarkConsistent(MarkConsistent { handle, owner }), None)
        });
        call(mark, None, done)
    }

    pub(crate) fn holders(&self) -> impl Call<Done = Result<Vec<Holder>, SessionError>> + '_ {
        self.object.query_as(|state| state.holders.into_iter().map(Holder::from).collect())
    }
}

pub(crate) fn none_if_busy<T>(taken: Result<T, AcquireError>) -> Result<Option<T>, AcquireError> {
    match taken {
        Ok(taken) => Ok(Some(taken)),
        Err(AcquireError::TimedOut { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A release of whatever a bare release gives back. Quiet, it is done when it is sent.
struct BareRelease<'a> {
    bind: BindObject<'a>,
    owner: u64,
    quiet: bool,
    asked: bool,
}

impl<'a> BareRelease<'a> {
    fn new(object: &'a Object, owner: u64, quiet: bool) -> Self {
        Self { bind: BindObject::new(object), owner, quiet, asked: false }
    }
}

impl Steps for BareRelease<'_> {
    type Output = ();

    fn client(&self) -> &Arc<Shared> {
        self.bind.client()
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<()>, CallError> {
        if self.asked {
            return input.map(|_| Step::Done(()));
        }
        Ok(match self.bind.next(input)? {
            Step::Done(binding) => {
                let (handle, owner, quiet) = (binding.handle, self.owner, self.quiet);
                let request = Request::Release(Release { handle, owner, token: 0, quiet });
                let session = binding.session.clone();
                self.asked = true;
                match quiet {
                    true => Step::Post { session, request },
                    false => Step::Request { session, request, undo: None },
                }
            }
            other => other.without_end(),
        })
    }
}

impl Hold {
    /// Rises strictly with every grant of the namespace: storage that remembers the highest
    /// token it has seen can refuse a holder from the past. An RLock that is taken again has
    /// the token of its first grant.
    pub fn fencing_token(&self) -> FencingToken {
        FencingToken::new(self.token.get())
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

    /// None if it isn't [valid](Self::is_valid); else whether it can be released without waiting.
    pub(crate) fn has_room(&self) -> Option<bool> {
        if !self.is_held() {
            return None;
        }
        self.binding.session.has_room_for(self.token.get())
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

    pub(crate) fn release(self) -> impl Call<Done = Result<(), ReleaseError>> {
        let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
        self.end(Request::Release(Release { handle, owner, token, quiet: false }))
    }

    pub(crate) fn forget(self) -> impl Call<Done = Result<(), ReleaseError>> {
        let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
        self.end(Request::Forget(Forget { handle, owner, token, quiet: false }))
    }

    /// A request that ends the hold, as soon as it is sent.
    fn end(self, request: Request) -> impl Call<Done = Result<(), ReleaseError>> {
        let end = HoldCall { hold: self, request: Some(request), ends: true };
        call(end, None, done)
    }

    pub(crate) fn mark_consistent(&mut self) -> impl Call<Done = Result<(), ReleaseError>> + '_ {
        let (handle, owner) = (self.binding.handle, self.owner);
        let request = Request::MarkConsistent(MarkConsistent { handle, owner });
        let mark = HoldCall { hold: self, request: Some(request), ends: false };
        call(mark, None, done)
    }

    /// What a wait that is given up leaves to be undone.
    pub(crate) fn undo(&self) -> Undo {
        Undo::Lock { handle: self.binding.handle, owner: self.owner }
    }

    /// Lets go of the lock for the time of a wait, and tells by what token it was held.
    pub(crate) fn lend(&mut self) -> u64 {
        self.held = false;
        self.token.take()
    }

    /// The wait was refused, and nothing has changed.
    pub(crate) fn keep(&mut self, lent: u64) {
        self.token.set(lent);
        self.held = true;
    }

    /// The wait is over, and the lock held again.
    pub(crate) fn regain(&mut self, granted: Granted) {
        self.token.set(granted.token);
        self.depth = granted.depth;
        self.abandoned = granted.abandoned.map(|left| Box::new((*left).into()));
        self.held = true;
    }
}

/// A request on a hold, in its session.
struct HoldCall<H> {
    hold: H,
    request: Option<Request>,
    ends: bool,
}

impl<H: BorrowMut<Hold>> Steps for HoldCall<H> {
    type Output = Message;

    fn client(&self) -> &Arc<Shared> {
        &self.hold.borrow().client
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Message>, CallError> {
        match (input?, self.request.take()) {
            (Input::Reply(message), _) => Ok(Step::Done(message)),
            (_, Some(request)) => {
                let session = self.hold.borrow().binding.session.clone();
                Ok(Step::Request { session, request, undo: None })
            }
            (_, None) => Err(SessionLost::nonsense().into()),
        }
    }

    fn on_sent(&mut self) {
        if self.ends {
            self.hold.borrow_mut().held = false;
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("binding", &self.binding)
            .field("owner", &self.owner)
            .field("token", &self.token.get())
            .field("depth", &self.depth)
            .field("abandoned", &self.abandoned)
            .field("held", &self.is_held())
            .finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_held() {
            let (handle, owner, token) = (self.binding.handle, self.owner, self.token.get());
            let release = Release { handle, owner, token, quiet: true };
            self.binding.session.post(Request::Release(release));
        }
    }
}
