//! Options for creating an object, and the calls that create it.

use std::sync::Arc;

use syncd_proto::v1::{
    Attached, BarrierSpec, ConditionSpec, Create, EventSpec, SemLockClass, SemLockSpec, create,
};

use crate::{
    Barrier, BoundedSemaphore, Condition, CreateError, Event, Lock, RLock, Semaphore,
    binding::{Bind, Binding},
    call::{Call, call, unless},
    client::Shared,
    condition::AnyLock,
    object::{Object, check_name},
    semlock::SemLock,
    session::CallError,
};

/// Options for getting or creating an object. Made by [`Client::object`](crate::Client::object)
/// and [`Client::anonymous`](crate::Client::anonymous).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until a constructor is called"]
pub struct ObjectOptions {
    pub(crate) client: Arc<Shared>,
    create: Create,
    /// Whether the name must not be empty.
    named: bool,
}

impl ObjectOptions {
    pub(crate) fn new(client: Arc<Shared>, name: &str) -> Self {
        let create = Create { name: name.to_owned(), ..Create::default() };
        Self { client, create, named: true }
    }

    pub(crate) fn anonymous(client: Arc<Shared>) -> Self {
        Self { client, create: Create::default(), named: false }
    }

    /// Keeps the object and its state when no session is attached, until it is unlinked.
    pub fn keep(mut self) -> Self {
        self.create.keep = true;
        self
    }

    /// Makes a Lock or an RLock robust: if an owner dies and the next owner releases it without
    /// [`mark_consistent`](Lock::mark_consistent), every acquire fails with
    /// [`Poisoned`](crate::AcquireError::Poisoned) until somebody marks it consistent.
    pub fn poison(mut self) -> Self {
        self.create.poison = true;
        self
    }

    /// Makes creation fail with [`Exists`](CreateError::Exists) if the name is taken.
    pub fn exclusive(mut self) -> Self {
        self.create.exclusive = true;
        self
    }

    /// As [`Client::lock`](crate::Client::lock).
    ///
    /// # Errors
    /// [`KindMismatch`](CreateError::KindMismatch) if the name belongs to another kind of object,
    /// [`Exists`](CreateError::Exists) if it is taken and the options are
    /// [`exclusive`](Self::exclusive), [`Invalid`](CreateError::Invalid) if it is empty or longer
    /// than 255 bytes.
    pub async fn lock(self) -> Result<Lock, CreateError> {
        self.make_lock().run().await
    }

    /// As [`Client::rlock`](crate::Client::rlock).
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn rlock(self) -> Result<RLock, CreateError> {
        self.make_rlock().run().await
    }

    /// As [`Client::semaphore`](crate::Client::semaphore).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created with another number of permits.
    pub async fn semaphore(self, permits: u32) -> Result<Semaphore, CreateError> {
        self.make_semaphore(permits).run().await
    }

    /// As [`Client::bounded_semaphore`](crate::Client::bounded_semaphore).
    ///
    /// # Errors
    /// As [`semaphore`](Self::semaphore).
    pub async fn bounded_semaphore(self, permits: u32) -> Result<BoundedSemaphore, CreateError> {
        self.make_bounded_semaphore(permits).run().await
    }

    /// As [`Client::condition`](crate::Client::condition).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created with another lock.
    pub async fn condition(self, lock: &impl AnyLock) -> Result<Condition, CreateError> {
        self.make_condition(lock.object().clone()).run().await
    }

    /// As [`Client::event`](crate::Client::event).
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn event(self) -> Result<Event, CreateError> {
        self.make_event().run().await
    }

    /// As [`Client::barrier`](crate::Client::barrier).
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and if it was created for another number of parties, or for none.
    pub async fn barrier(self, parties: u32) -> Result<Barrier, CreateError> {
        self.make_barrier(parties).run().await
    }

    pub(crate) fn make_lock(self) -> impl Call<Done = Result<Lock, CreateError>> {
        self.make_sem_lock(SemLockClass::Lock, 1, Lock)
    }

    pub(crate) fn make_rlock(self) -> impl Call<Done = Result<RLock, CreateError>> {
        self.make_sem_lock(SemLockClass::Rlock, 1, RLock)
    }

    pub(crate) fn make_semaphore(
        self,
        permits: u32,
    ) -> impl Call<Done = Result<Semaphore, CreateError>> {
        self.make_sem_lock(SemLockClass::Semaphore, permits, Semaphore)
    }

    pub(crate) fn make_bounded_semaphore(
        self,
        permits: u32,
    ) -> impl Call<Done = Result<BoundedSemaphore, CreateError>> {
        self.make_sem_lock(SemLockClass::BoundedSemaphore, permits, BoundedSemaphore)
    }

    fn make_sem_lock<T>(
        self,
        class: SemLockClass,
        value: u32,
        made: fn(SemLock) -> T,
    ) -> impl Call<Done = Result<T, CreateError>> {
        let spec = create::Spec::SemLock(SemLockSpec { class: class.into(), value, max: 0 });
        self.make(spec, None, move |object| made(SemLock::new(object)))
    }

    pub(crate) fn make_condition(
        self,
        lock: Arc<Object>,
    ) -> impl Call<Done = Result<Condition, CreateError>> {
        let spec = create::Spec::Condition(ConditionSpec { lock: 0 });
        self.make(spec, Some(lock), Condition)
    }

    pub(crate) fn make_event(self) -> impl Call<Done = Result<Event, CreateError>> {
        self.make(create::Spec::Event(EventSpec {}), None, Event)
    }

    pub(crate) fn make_barrier(
        self,
        parties: u32,
    ) -> impl Call<Done = Result<Barrier, CreateError>> {
        self.make(create::Spec::Barrier(BarrierSpec { parties }), None, Barrier)
    }

    pub(crate) fn make<T>(
        self,
        spec: create::Spec,
        lock: Option<Arc<Object>>,
        made: impl FnOnce(Arc<Object>) -> T + Send,
    ) -> impl Call<Done = Result<T, CreateError>> {
        let Self { client, mut create, named } = self;
        create.spec = Some(spec);
        let invalid = if named { check_name(&create.name).err() } else { None };
        let bind = Bind::creating(client.clone(), create.clone(), lock.clone());
        let made = move |bound: Result<(Arc<Binding>, Attached), CallError>| {
            let (binding, _) = bound?;
            create.exclusive = false;
            Ok(made(Object::bound_to(client, create, lock, binding)))
        };
        unless(invalid.map(CreateError::Invalid), call(bind, None, made))
    }
}
