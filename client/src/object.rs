//! An object as a client knows it. The handle that it has in the session of the moment is in
//! [`binding`](crate::binding).

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
    binding::{Bind, Binding, ObjectCall, ObjectRequest},
    call::{Call, call, unless},
    client::Shared,
    error::check_length,
    fork::PerProcess,
    session::{CallError, protocol::Undo},
};

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

pub struct Object {
    pub(crate) client: Arc<Shared>,
    pub(crate) create: Create,
    /// A Condition's.
    pub(crate) lock: Option<Arc<Object>>,
    bound: PerProcess<Bound>,
}

struct Bound {
    /// By which it was first attached to; so will be a forked child.
    key: Arc<str>,
    binding: Mutex<Option<Arc<Binding>>>,
}

impl fmt::Debug for Object {
    /// Without the key, which is as good as the object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("create", &self.create).finish_non_exhaustive()
    }
}

/// Says what is wrong with the name of an object that is to have one.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("the name is empty: an object without one is made by `anonymous`".to_owned()),
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

    /// Attaches to what may have to be of a kind.
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

    /// By which it is attached to in a new session.
    pub(crate) fn key(&self) -> &str {
        &self.bound().key
    }

    /// Its binding in the session of the moment, if it has one.
    pub(crate) fn binding(&self) -> Option<Arc<Binding>> {
        self.bound().get().filter(|binding| binding.session.is_usable())
    }

    pub(crate) fn bind(&self, binding: Arc<Binding>) {
        let mut bound = self.bound().binding.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = bound.replace(binding);
        drop(bound);
        drop(replaced);
    }

    /// A request on the object. Where `repeatable` is true, it is made again in a new session if
    /// the old one turns out to have gone with its daemon or connection.
    pub(crate) fn request<R>(&self, repeatable: bool, request: R) -> ObjectCall<'_, R>
    where
        R: Fn(u32) -> (Request, Option<Undo>) + Send,
    {
        ObjectCall::new(self, repeatable, request)
    }

    /// Wakes the waiters of a Condition, for an owner that should hold its lock.
    pub(crate) fn notify(
        &self,
        owner: u64,
        n: u32,
    ) -> impl Call<Done = Result<u32, ConditionError>> + '_ {
        let notify =
            self.request(false, move |handle| (Request::Notify(Notify { handle, owner, n }), None));
        call(notify, None, |done: Result<ObjectRequest, CallError>| match done?.1 {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        })
    }

    pub(crate) fn query(&self) -> impl Call<Done = Result<State, SessionError>> + '_ {
        self.query_as(|state| state)
    }

    /// What its numbers say.
    pub(crate) fn query_as<T>(
        &self,
        seen: impl FnOnce(State) -> T + Send,
    ) -> impl Call<Done = Result<T, SessionError>> {
        let query = self.request(true, |handle| (Request::Query(Query { handle }), None));
        call(query, None, |state: Result<ObjectRequest, CallError>| match state?.1 {
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
