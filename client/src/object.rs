//! An object as a client knows it: how to get or create it, and the handle that it has in the
//! session of the moment. Never here: what one can do with it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
    time::Duration,
};

use syncd_proto::v1::{
    Attach, Attached, BarrierSpec, ConditionSpec, Create, Detach, ErrorCode, EventSpec, Query,
    SemLockClass, SemLockSpec, State, attach, attached, client_message::Request, create,
    server_message::Message,
};

use crate::{
    Barrier, BoundedSemaphore, Condition, CreateError, Event, Lock, RLock, Semaphore, SessionError,
    Token,
    client::Shared,
    condition::AnyLock,
    fork::PerProcess,
    semlock::SemLock,
    session::{CallError, Session, Undo},
};

/// How an object is to be created, if it isn't there yet. Made by
/// [`Client::object`](crate::Client::object) and [`Client::anonymous`](crate::Client::anonymous).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until a constructor is called"]
pub struct ObjectOptions {
    client: Arc<Shared>,
    create: Create,
}

/// What can be attached to by its token: every kind of object here.
pub trait Attachable: sealed::Attachable {}

pub(crate) mod sealed {
    use super::{Arc, Kind, Object};

    pub trait Attachable: Sized {
        const KIND: Kind;
        fn from_object(object: Arc<Object>) -> Self;
    }
}

/// The kinds of objects, by what Attached says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SemLock(SemLockClass),
    Condition,
    Event,
    Barrier,
}

#[derive(Debug)]
pub struct Object {
    client: Arc<Shared>,
    create: Create,
    /// A Condition's.
    lock: Option<Arc<Object>>,
    bound: PerProcess<Bound>,
}

#[derive(Debug)]
struct Bound {
    /// By which it was first attached to; so will be a forked child.
    key: Arc<str>,
    binding: Mutex<Option<Arc<Binding>>>,
}

/// A reference to an object, in one session.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) session: Arc<Session>,
    pub(crate) handle: u32,
    key: Arc<str>,
    /// The recursive holds that there are, by owner: their tokens.
    pub(crate) holds: Mutex<HashMap<u64, Weak<AtomicU64>>>,
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.session.send(Request::Detach(Detach { handle: self.handle, quiet: true }));
    }
}

impl ObjectOptions {
    pub(crate) fn new(client: Arc<Shared>, name: &str) -> Self {
        Self { client, create: Create { name: name.to_owned(), ..Create::default() } }
    }

    /// It stays, with its state, when nobody is attached any more; until it is unlinked.
    pub fn keep(mut self) -> Self {
        self.create.keep = true;
        self
    }

    /// After an owner's death and a next owner that doesn't mark it consistent, nobody gets it
    /// until somebody does. For a Lock or an RLock.
    pub fn poison(mut self) -> Self {
        self.create.poison = true;
        self
    }

    /// Fail if the name is taken already.
    pub fn exclusive(mut self) -> Self {
        self.create.exclusive = true;
        self
    }

    /// As [`Client::lock`](crate::Client::lock).
    ///
    /// # Errors
    /// If the name is taken by another kind of object, if it is taken at all and the options
    /// say [`exclusive`](Self::exclusive), or if it is longer than 255 bytes.
    pub async fn lock(self) -> Result<Lock, CreateError> {
        Ok(Lock(self.sem_lock(SemLockClass::Lock, 1).await?))
    }

    /// As [`Client::rlock`](crate::Client::rlock).
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn rlock(self) -> Result<RLock, CreateError> {
        Ok(RLock(self.sem_lock(SemLockClass::Rlock, 1).await?))
    }

    /// As [`Client::semaphore`](crate::Client::semaphore).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created with another number of permits.
    pub async fn semaphore(self, permits: u32) -> Result<Semaphore, CreateError> {
        Ok(Semaphore(self.sem_lock(SemLockClass::Semaphore, permits).await?))
    }

    /// As [`Client::bounded_semaphore`](crate::Client::bounded_semaphore).
    ///
    /// # Errors
    /// As [`semaphore`](Self::semaphore).
    pub async fn bounded_semaphore(self, permits: u32) -> Result<BoundedSemaphore, CreateError> {
        let sem_lock = self.sem_lock(SemLockClass::BoundedSemaphore, permits).await?;
        Ok(BoundedSemaphore(sem_lock))
    }

    /// As [`Client::condition`](crate::Client::condition).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created with another lock.
    pub async fn condition(self, lock: &impl AnyLock) -> Result<Condition, CreateError> {
        let lock = lock.object().clone();
        let spec = create::Spec::Condition(ConditionSpec { lock: 0 });
        Ok(Condition(self.create(spec, Some(lock)).await?))
    }

    /// As [`Client::event`](crate::Client::event).
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn event(self) -> Result<Event, CreateError> {
        Ok(Event(self.create(create::Spec::Event(EventSpec {}), None).await?))
    }

    /// As [`Client::barrier`](crate::Client::barrier).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created for another number of parties, or for none.
    pub async fn barrier(self, parties: u32) -> Result<Barrier, CreateError> {
        Ok(Barrier(self.create(create::Spec::Barrier(BarrierSpec { parties }), None).await?))
    }

    async fn sem_lock(self, class: SemLockClass, value: u32) -> Result<SemLock, CreateError> {
        let spec = SemLockSpec { class: class.into(), value, max: 0 };
        Ok(SemLock::new(self.create(create::Spec::SemLock(spec), None).await?))
    }

    pub(crate) async fn create(
        self,
        spec: create::Spec,
        lock: Option<Arc<Object>>,
    ) -> Result<Arc<Object>, CreateError> {
        let Self { client, create } = self;
        let mut create = Create { spec: Some(spec), ..create };
        let binding = create_in(&client, &create, lock.as_deref()).await?;
        create.exclusive = false;
        Ok(Object::new(client, create, lock, binding))
    }
}

async fn create_in(
    client: &Shared,
    create: &Create,
    lock: Option<&Object>,
) -> Result<Arc<Binding>, CallError> {
    let mut create = create.clone();
    let session = match lock {
        None => client.session().await?,
        Some(lock) => {
            let lock = lock.binding().await?;
            create.spec = Some(create::Spec::Condition(ConditionSpec { lock: lock.handle }));
            lock.session.clone()
        }
    };
    bind(session, Request::Create(create)).await.map(|(binding, _)| binding)
}

async fn bind(
    session: Arc<Session>,
    request: Request,
) -> Result<(Arc<Binding>, Attached), CallError> {
    let attached = expect_attached(session.call(request, None).await?);
    let key = attached.key.as_str().into();
    let (handle, holds) = (attached.handle, Mutex::default());
    Ok((Arc::new(Binding { session, handle, key, holds }), attached))
}

/// A daemon that answers with something else is as good as one that answers nothing: the
/// handle 0 and an empty key lead nowhere.
fn expect_attached(message: Message) -> Attached {
    match message {
        Message::Attached(attached) => attached,
        _ => Attached::default(),
    }
}

fn by_key(key: &str) -> Request {
    Request::Attach(Attach { by: Some(attach::By::Key(key.to_owned())) })
}

impl Object {
    fn new(
        client: Arc<Shared>,
        create: Create,
        lock: Option<Arc<Object>>,
        binding: Arc<Binding>,
    ) -> Arc<Self> {
        let bound = Bound { key: binding.key.clone(), binding: Mutex::new(Some(binding)) };
        Arc::new(Self { client, create, lock, bound: PerProcess::new(bound) })
    }

    pub(crate) async fn attach(
        client: Arc<Shared>,
        token: &Token,
        kind: Option<Kind>,
    ) -> Result<Arc<Self>, CreateError> {
        if (&token.endpoint, &token.namespace) != (&client.endpoint, &client.namespace) {
            let place = |namespace: &str, endpoint| match namespace {
                "" => format!("{endpoint}"),
                namespace => format!("namespace {namespace:?} at {endpoint}"),
            };
            return Err(CreateError::Elsewhere {
                token: place(&token.namespace, &token.endpoint),
                client: place(&client.namespace, &client.endpoint),
            });
        }
        Self::attach_by(client, attach::By::Key(token.key.clone()), kind).await
    }

    /// Attaches to what may have to be of a kind.
    pub(crate) async fn attach_by(
        client: Arc<Shared>,
        by: attach::By,
        kind: Option<Kind>,
    ) -> Result<Arc<Self>, CreateError> {
        let request = Request::Attach(Attach { by: Some(by) });
        let (binding, attached) = bind(client.session().await?, request).await?;
        if kind.is_some_and(|kind| Kind::of(&attached) != Some(kind)) {
            let text = format!("the token is of another kind of object: {:?}", attached.spec);
            return Err(CreateError::KindMismatch(text));
        }
        // Enough to get it back by its name, should the daemon have forgotten the key.
        let spec = attached.spec.and_then(|spec| match spec {
            attached::Spec::SemLock(spec) => Some(create::Spec::SemLock(spec)),
            attached::Spec::Event(spec) => Some(create::Spec::Event(spec)),
            attached::Spec::Barrier(spec) => Some(create::Spec::Barrier(spec)),
            attached::Spec::Condition(_) => None,
        });
        let name = if spec.is_some() { attached.name } else { String::new() };
        let create = Create { name, spec, ..Create::default() };
        Ok(Self::new(client, create, None, binding))
    }

    pub(crate) fn client(&self) -> &Shared {
        &self.client
    }

    pub(crate) fn name(&self) -> &str {
        &self.create.name
    }

    pub(crate) fn spec(&self) -> Option<&create::Spec> {
        self.create.spec.as_ref()
    }

    fn sem_lock(&self) -> Option<&SemLockSpec> {
        match &self.create.spec {
            Some(create::Spec::SemLock(spec)) => Some(spec),
            _ => None,
        }
    }

    /// It is an RLock.
    pub(crate) fn is_recursive(&self) -> bool {
        self.sem_lock().is_some_and(|spec| spec.class() == SemLockClass::Rlock)
    }

    /// With how many permits it began.
    pub(crate) fn initial_value(&self) -> u32 {
        self.sem_lock().map_or(0, |spec| spec.value)
    }

    pub(crate) fn token(&self) -> Token {
        let Shared { endpoint, namespace, .. } = &*self.client;
        let bound = self.bound();
        let key = bound.get().map_or_else(|| bound.key.clone(), |binding| binding.key.clone());
        Token { endpoint: endpoint.clone(), namespace: namespace.clone(), key: key.to_string() }
    }

    fn bound(&self) -> &Bound {
        let renew = |old: &Bound| Bound { key: old.key.clone(), binding: Mutex::new(None) };
        self.bound.get(renew)
    }

    /// The handle in the current session: attaches again if that is a new one.
    pub(crate) async fn binding(&self) -> Result<Arc<Binding>, CallError> {
        let bound = self.bound();
        match bound.get() {
            Some(binding) if binding.session.is_usable() => Ok(binding),
            _ => Box::pin(self.rebind(bound)).await,
        }
    }

    async fn rebind(&self, bound: &Bound) -> Result<Arc<Binding>, CallError> {
        let session = self.client.session().await?;
        let binding = match bind(session, by_key(&bound.key)).await {
            Err(CallError::Refused(error))
                if error.code() == ErrorCode::NotFound && !self.create.name.is_empty() =>
            {
                create_in(&self.client, &self.create, self.lock.as_deref()).await?
            }
            attached => attached?.0,
        };
        let mut current = bound.binding.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(current.insert(binding).clone())
    }

    /// A request on the object. Where `repeatable` is true, it is made again in a new session if
    /// the old one turns out to have gone with its daemon or connection.
    pub(crate) async fn call(
        &self,
        repeatable: bool,
        owner: u64,
        request: impl Fn(u32) -> Request,
    ) -> Result<(Arc<Binding>, Message), CallError> {
        let mut first = repeatable;
        loop {
            let binding = self.binding().await?;
            let undo = Undo { handle: binding.handle, owner };
            let replied = binding.session.call(request(binding.handle), Some(undo)).await;
            match replied {
                Err(CallError::Session(SessionError::Lost(why))) if first && why.is_accident() => {
                    first = false;
                }
                Err(error) => return Err(error),
                Ok(message) => return Ok((binding, message)),
            }
        }
    }

    pub(crate) async fn query(&self) -> Result<State, SessionError> {
        match self.call(true, 0, |handle| Request::Query(Query { handle })).await?.1 {
            Message::State(state) => Ok(state),
            _ => Ok(State::default()),
        }
    }
}

impl Bound {
    fn get(&self) -> Option<Arc<Binding>> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A time-out as the wire has it, rounded up; zero tries.
pub(crate) fn micros(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|timeout| u64::try_from(timeout.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX))
}

impl Kind {
    fn of(attached: &Attached) -> Option<Self> {
        Some(match attached.spec.as_ref()? {
            attached::Spec::SemLock(spec) => Self::SemLock(spec.class()),
            attached::Spec::Condition(_) => Self::Condition,
            attached::Spec::Event(_) => Self::Event,
            attached::Spec::Barrier(_) => Self::Barrier,
        })
    }
}
