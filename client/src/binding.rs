//! An object's binding: its handle in the current session, how a session attaches to the object,
//! and requests on the object.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak, atomic::AtomicU64},
};

use syncd_proto::v1::{
    Attach, Attached, ConditionSpec, Create, Detach, ErrorCode, attach, client_message::Request,
    create, server_message::Message,
};

use crate::{
    SessionError,
    call::{Input, Step, Steps},
    client::Shared,
    error::SessionLost,
    object::Object,
    session::{CallError, Session, protocol::Undo},
};

/// A reference to an object, in one session.
pub(crate) struct Binding {
    pub(crate) session: Arc<Session>,
    pub(crate) handle: u32,
    pub(crate) key: Arc<str>,
    /// The fencing tokens of recursive holds, by owner.
    pub(crate) holds: Mutex<HashMap<u64, Weak<AtomicU64>>>,
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.session.post(Request::Detach(Detach { handle: self.handle, quiet: true }));
    }
}

impl fmt::Debug for Binding {
    /// Omits the key: whoever knows it can attach.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, handle, .. } = self;
        f.debug_struct("Binding").field("session", session).field("handle", handle).finish()
    }
}

/// The steps to a new binding: attaches by key or name if one is known; creates the object if none
/// is, or if it is not found.
pub(crate) struct Bind {
    client: Arc<Shared>,
    attach: Option<attach::By>,
    create: Option<Create>,
    /// A condition's lock, which must be bound first: Create names its handle, in the same session.
    lock: Option<(Arc<Object>, Box<Bind>)>,
    start: bool,
    stage: Stage,
}

enum Stage {
    Begin,
    Lock,
    Session,
    Attaching(Arc<Session>),
    Creating(Arc<Session>),
}

impl Bind {
    pub(crate) fn creating(client: Arc<Shared>, create: Create, lock: Option<Arc<Object>>) -> Self {
        Self::new(client, None, Some(create), lock)
    }

    /// Attaches to an object that exists. Doesn't start a daemon.
    pub(crate) fn attaching(client: Arc<Shared>, by: attach::By) -> Self {
        Self::new(client, Some(by), None, None)
    }

    /// Binds an object of a former session again.
    pub(crate) fn again(object: &Object) -> Self {
        let by = attach::By::Key(object.key().to_owned());
        let create = (!object.create.name.is_empty()).then(|| object.create.clone());
        Self::new(object.client.clone(), Some(by), create, object.lock.clone())
    }

    fn new(
        client: Arc<Shared>,
        attach: Option<attach::By>,
        create: Option<Create>,
        lock: Option<Arc<Object>>,
    ) -> Self {
        let lock = lock.map(|lock| {
            let bind = Box::new(Self::again(&lock));
            (lock, bind)
        });
        // A new daemon has no objects, so starting one helps only if the object can be created.
        let start = create.is_some();
        Self { client, attach, create, lock, start, stage: Stage::Begin }
    }

    /// The next request: Attach first, then Create.
    fn ask(&mut self, session: Arc<Session>) -> Result<Step<(Arc<Binding>, Attached)>, CallError> {
        let (request, stage): (_, fn(_) -> _) = match self.attach.take() {
            Some(by) => (Request::Attach(Attach { by: Some(by) }), Stage::Attaching),
            None => match self.create.take() {
                Some(create) => (Request::Create(create), Stage::Creating),
                None => return Err(SessionLost::nonsense().into()),
            },
        };
        self.stage = stage(session.clone());
        Ok(Step::Request { session, request, undo: None })
    }

    fn with_lock(&mut self, lock: &Binding) {
        if let Some(create) = &mut self.create {
            create.spec = Some(create::Spec::Condition(ConditionSpec { lock: lock.handle }));
        }
    }

    fn next_lock(
        &mut self,
        input: Result<Input, CallError>,
    ) -> Result<Step<(Arc<Binding>, Attached)>, CallError> {
        let Some((lock, bind)) = &mut self.lock else { return Err(SessionLost::nonsense().into()) };
        let binding = match bind.next(input)? {
            Step::Done((binding, _)) => binding,
            other => return Ok(other),
        };
        lock.bind(binding.clone());
        self.with_lock(&binding);
        self.ask(binding.session.clone())
    }
}

impl Steps for Bind {
    type Output = (Arc<Binding>, Attached);

    fn client(&self) -> &Arc<Shared> {
        &self.client
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Self::Output>, CallError> {
        match std::mem::replace(&mut self.stage, Stage::Session) {
            Stage::Begin => match &self.lock {
                None => Ok(Step::Session { start: self.start }),
                Some((lock, _)) => match lock.binding() {
                    Some(binding) => {
                        self.with_lock(&binding);
                        self.ask(binding.session.clone())
                    }
                    None => {
                        self.stage = Stage::Lock;
                        self.next_lock(input)
                    }
                },
            },
            Stage::Lock => {
                self.stage = Stage::Lock;
                self.next_lock(input)
            }
            Stage::Session => match input? {
                Input::Session(session) => self.ask(session),
                _ => Err(SessionLost::nonsense().into()),
            },
            Stage::Attaching(session) => match input {
                Err(CallError::Refused(error))
                    if error.code() == ErrorCode::NotFound && self.create.is_some() =>
                {
                    self.ask(session)
                }
                input => bound(session, input?),
            },
            Stage::Creating(session) => bound(session, input?),
        }
    }
}

fn bound(session: Arc<Session>, input: Input) -> Result<Step<(Arc<Binding>, Attached)>, CallError> {
    let Input::Reply(Message::Attached(attached)) = input else {
        return Err(SessionLost::nonsense().into());
    };
    let (handle, key) = (attached.handle, attached.key.as_str().into());
    let binding = Binding { session, handle, key, holds: Mutex::default() };
    Ok(Step::Done((Arc::new(binding), attached)))
}

/// The steps to an object's binding in the current session.
pub(crate) struct BindObject<'a> {
    object: &'a Object,
    bind: Option<Box<Bind>>,
}

impl<'a> BindObject<'a> {
    pub(crate) fn new(object: &'a Object) -> Self {
        Self { object, bind: None }
    }
}

impl Steps for BindObject<'_> {
    type Output = Arc<Binding>;

    fn client(&self) -> &Arc<Shared> {
        &self.object.client
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<Arc<Binding>>, CallError> {
        if matches!(input, Ok(Input::Begin))
            && let Some(binding) = self.object.binding()
        {
            return Ok(Step::Done(binding));
        }
        let bind = self.bind.get_or_insert_with(|| Box::new(Bind::again(self.object)));
        Ok(match bind.next(input)? {
            Step::Done((binding, _)) => {
                self.object.bind(binding.clone());
                Step::Done(binding)
            }
            other => other.unfinished(),
        })
    }
}

/// A reply, and the binding that the request used.
pub(crate) type ObjectReply = (Arc<Binding>, Message);

/// The steps of a request on an object. `request` makes it, and its [`Undo`], from the handle.
pub(crate) struct ObjectCall<'a, R> {
    bind: BindObject<'a>,
    asked: Option<Arc<Binding>>,
    /// Whether to repeat the request in a new session if the daemon or connection failed.
    again: bool,
    request: R,
}

impl<'a, R> ObjectCall<'a, R> {
    pub(crate) fn new(object: &'a Object, repeatable: bool, request: R) -> Self {
        Self { bind: BindObject::new(object), asked: None, again: repeatable, request }
    }
}

impl<R: Fn(u32) -> (Request, Option<Undo>)> Steps for ObjectCall<'_, R> {
    type Output = ObjectReply;

    fn client(&self) -> &Arc<Shared> {
        self.bind.client()
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<ObjectReply>, CallError> {
        let input = match (self.asked.take(), input) {
            (Some(binding), Ok(Input::Reply(message))) => {
                return Ok(Step::Done((binding, message)));
            }
            (Some(_), Err(CallError::Session(SessionError::Lost(why))))
                if self.again && why.is_accident() && why.undelivered == 0 =>
            {
                self.again = false;
                self.bind.bind = None;
                Ok(Input::Begin)
            }
            (Some(_), Err(error)) => return Err(error),
            (_, input) => input,
        };
        Ok(match self.bind.next(input)? {
            Step::Done(binding) => {
                let (request, undo) = (self.request)(binding.handle);
                let session = binding.session.clone();
                self.asked = Some(binding);
                Step::Request { session, request, undo }
            }
            other => other.unfinished(),
        })
    }
}
