//! What Lock, RLock and the semaphores share: acquire, release, and the hold in between.

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
    binding::{BindObject, Binding, ObjectReply},
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

/// A held lock or permit. Dropping it releases it, unless its session is lost: then the hold is
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
    /// All guards of an owner's recursive hold share one token, which changes when a condition wait
    /// by one of them ends. 0 while the hold is suspended by a wait, or if the wait failed.
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

    /// Takes the token, and leaves 0.
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

    /// Acquires the lock or a permit.
    pub(crate) fn take(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> impl Call<Done = Result<Hold, AcquireError>> + '_ {
        let acquire = self.acquire(owner, timeout, false);
        call(acquire, timeout, move |granted: Result<ObjectReply, CallError>| {
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

    /// Takes an unowned permit.
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
    ) -> impl Steps<Output = ObjectReply> + Send + '_ {
        let (timeout_us, fail_on_deadlock) = (micros(timeout), self.fail_on_deadlock);
        self.object.request(true, move |handle| {
            let undo = Undo::Grant { handle, owner, unowned };
            let acquire = Acquire { handle, owner, unowned, timeout_us, fail_on_deadlock };
            (Request::Acquire(acquire), Some(undo))
        })
    }

    /// A release without a token.
    pub(crate) fn release(
        &self,
        owner: u64,
    ) -> impl Call<Done = Result<(), ReleaseError>> + use<'_> {
        let release = self.object.request(false, move |handle| {
            (Request::Release(Release { handle, owner, token: 0, quiet: false }), None)
        });
        call(release, None, done)
    }

    /// As [`release`](Self::release), but without waiting for a reply if the initial value is at
    /// most 2^30: to exceed the maximum would take 2^30 more releases than acquires.
    pub(crate) fn release_quietly(
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

/// The steps of a release without a token. A quiet one ends when it is sent.
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
            other => other.unfinished(),
        })
    }
}

impl Hold {
    /// The hold's fencing token, which rises strictly with every grant in the namespace: storage
    /// that remembers the highest token that it has seen can refuse a former holder. All levels of
    /// an RLock have the token of the first.
    pub fn fencing_token(&self) -> FencingToken {
        FencingToken::new(self.token.get())
    }

    /// How many times the owner held the object when this guard was made, including it: 1, or more
    /// for an RLock.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The former hold that ended without a release, by its process's death or otherwise: the data
    /// that the object guards may be half changed. Each abandonment is told to one owner, once.
    pub fn abandoned(&self) -> Option<&Abandonment> {
        self.abandoned.as_deref()
    }

    /// Whether the hold still exists, as far as this process knows. Reads what the daemon has sent,
    /// without waiting. False for good once the session is lost, in a forked child, and after a
    /// release by force.
    pub fn is_valid(&self) -> bool {
        self.is_held() && self.binding.session.has_hold(self.token.get())
    }

    /// None if the hold isn't [valid](Self::is_valid); else whether it can be released without
    /// waiting.
    pub(crate) fn has_room(&self) -> Option<bool> {
        if !self.is_held() {
            return None;
        }
        self.binding.session.has_room_for(self.token.get())
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.binding.session
    }

    /// False while a condition wait has suspended the hold, and if that wait failed.
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

    /// A request that ends the hold as soon as it is sent.
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

    /// How to undo a condition wait that is given up.
    pub(crate) fn undo(&self) -> Undo {
        Undo::Lock { handle: self.binding.handle, owner: self.owner }
    }

    /// Suspends the hold for a condition wait, and returns its token.
    pub(crate) fn suspend(&mut self) -> u64 {
        self.held = false;
        self.token.take()
    }

    /// Restores the hold after the daemon refused the wait.
    pub(crate) fn undo_suspend(&mut self, token: u64) {
        self.token.set(token);
        self.held = true;
    }

    /// Resumes the hold after a wait, with its new grant.
    pub(crate) fn resume(&mut self, granted: Granted) {
        self.token.set(granted.token);
        self.depth = granted.depth;
        self.abandoned = granted.abandoned.map(|left| Box::new((*left).into()));
        self.held = true;
    }
}

/// The steps of a request on a hold, in the hold's session.
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
