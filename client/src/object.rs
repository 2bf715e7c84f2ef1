//! An object of a client. Its handle in the current session is in [`binding`](crate::binding).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use syncd_proto::v1::{
    Attached, Create, Notify, Query, SemLockClass, SemLockSpec, State, attach, attached,
    client_message::Request, create, server_message::Message,
};

use crate::{
    ConditionError, CreateError, SessionError, Token,
    binding::{Bind, Binding, ObjectCall, ObjectReply},
    call::{Call, call, unless},
    client::Shared,
    error::check_length,
    fork::PerProcess,
    session::{CallError, protocol::Undo},
};

/// A type of object that [`Client::attach`](crate::Client::attach) can return: all of them.
pub trait Attachable: sealed::Attachable {}

pub(crate) mod sealed {
    use super::{Arc, Kind, Object};

    pub trait Attachable: Sized {
        const KIND: Kind;
        fn from_object(object: Arc<Object>) -> Self;
    }
}

/// The kind of an object, as the daemon's `Attached` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SemLock(SemLockClass),
    Condition,
    Event,
    Barrier,
}

pub struct Object {
    pub(crate) client: Arc<Shared>,
    pub(crate) create: Create,
    /// A Condition's lock.
    pub(crate) lock: Option<Arc<Object>>,
    bound: PerProcess<Bound>,
}

struct Bound {
    /// The key of the first binding, by which a forked child attaches.
    key: Arc<str>,
    binding: Mutex<Option<Arc<Binding>>>,
}

impl fmt::Debug for Object {
    /// Omits the key: whoever knows it can attach.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("create", &self.create).finish_non_exhaustive()
    }
}

/// Checks the name of a named object.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("the name is empty: use `anonymous` to make an object without a name".to_owned()),
        name => check_length("the name", name),
    }
}

impl Object {
    pub(crate) fn bound_to(
        client: Arc<Shared>,
        create: Create,
        lock: Option<Arc<Object>>,
        binding: Arc<Binding>,
    ) -> Arc<Self> {
        let bound = Bound { key: binding.key.clone(), binding: Mutex::new(Some(binding)) };
        Arc::new(Self { client, create, lock, bound: PerProcess::new(bound) })
    }

    pub(crate) fn attach(
        client: &Arc<Shared>,
        token: &Token,
        kind: Option<Kind>,
    ) -> impl Call<Done = Result<Arc<Self>, CreateError>> + use<> {
        let is_elsewhere =
            (&token.endpoint, &token.namespace) != (&client.endpoint, &client.namespace);
        let place = |namespace: &str, endpoint| match namespace {
            "" => format!("{endpoint}"),
            namespace => format!("namespace {namespace:?} at {endpoint}"),
        };
        let elsewhere = is_elsewhere.then(|| CreateError::Elsewhere {
            token: place(&token.namespace, &token.endpoint),
            client: place(&client.namespace, &client.endpoint),
        });
        unless(elsewhere, Self::attach_by(client, attach::By::Key(token.key.clone()), kind))
    }

    pub(crate) fn find(
        client: &Arc<Shared>,
        name: &str,
    ) -> impl Call<Done = Result<Arc<Self>, CreateError>> + use<> {
        let invalid = check_name(name).err().map(CreateError::Invalid);
        unless(invalid, Self::attach_by(client, attach::By::Name(name.to_owned()), None))
    }

    /// Attaches to an object; if `kind` is given, it must be of that kind.
    fn attach_by(
        client: &Arc<Shared>,
        by: attach::By,
        kind: Option<Kind>,
    ) -> impl Call<Done = Result<Arc<Self>, CreateError>> + use<> {
        let client = client.clone();
        let bind = Bind::attaching(client.clone(), by);
        call(bind, None, move |bound: Result<(Arc<Binding>, Attached), CallError>| {
            let (binding, attached) = bound?;
            if kind.is_some_and(|kind| Kind::of(&attached) != Some(kind)) {
                let text = format!("the token names another kind of object: {:?}", attached.spec);
                return Err(CreateError::KindMismatch(text));
            }
            // Enough to create it again by name if a new daemon doesn't know the key.
            let spec = attached.spec.and_then(|spec| match spec {
                attached::Spec::SemLock(spec) => Some(create::Spec::SemLock(spec)),
                attached::Spec::Event(spec) => Some(create::Spec::Event(spec)),
                attached::Spec::Barrier(spec) => Some(create::Spec::Barrier(spec)),
                attached::Spec::Condition(_) => None,
            });
            let name = if spec.is_some() { attached.name } else { String::new() };
            let create = Create { name, spec, ..Create::default() };
            Ok(Self::bound_to(client, create, None, binding))
        })
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

    /// Whether the object is an RLock.
    pub(crate) fn is_recursive(&self) -> bool {
        self.sem_lock().is_some_and(|spec| spec.class() == SemLockClass::Rlock)
    }

    /// The number of permits that it was created with.
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

    /// The key by which a new session attaches.
    pub(crate) fn key(&self) -> &str {
        &self.bound().key
    }

    /// The binding in the current session, if there is one.
    pub(crate) fn binding(&self) -> Option<Arc<Binding>> {
        self.bound().get().filter(|binding| binding.session.is_usable())
    }

    pub(crate) fn bind(&self, binding: Arc<Binding>) {
        let mut bound = self.bound().binding.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = bound.replace(binding);
        drop(bound);
        drop(replaced);
    }

    /// A request on the object. If `repeatable`, it is made again, once, in a new session if the
    /// old one was lost with its daemon or connection.
    pub(crate) fn request<R>(&self, repeatable: bool, request: R) -> ObjectCall<'_, R>
    where
        R: Fn(u32) -> (Request, Option<Undo>) + Send,
    {
        ObjectCall::new(self, repeatable, request)
    }

    /// Notifies waiters of a Condition. The daemon checks that `owner` holds the lock.
    pub(crate) fn notify(
        &self,
        owner: u64,
        n: u32,
    ) -> impl Call<Done = Result<u32, ConditionError>> + '_ {
        let notify =
            self.request(false, move |handle| (Request::Notify(Notify { handle, owner, n }), None));
        call(notify, None, |done: Result<ObjectReply, CallError>| match done?.1 {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        })
    }

    pub(crate) fn query(&self) -> impl Call<Done = Result<State, SessionError>> + '_ {
        self.query_as(|state| state)
    }

    /// Queries the object's state and maps it.
    pub(crate) fn query_as<T>(
        &self,
        seen: impl FnOnce(State) -> T + Send,
    ) -> impl Call<Done = Result<T, SessionError>> {
        let query = self.request(true, |handle| (Request::Query(Query { handle }), None));
        call(query, None, |state: Result<ObjectReply, CallError>| match state?.1 {
            Message::State(state) => Ok(seen(state)),
            _ => Ok(seen(State::default())),
        })
    }
}

impl Bound {
    fn get(&self) -> Option<Arc<Binding>> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A time-out in microseconds, rounded up. Zero means a try.
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
