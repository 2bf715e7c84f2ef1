//! How a namespace comes to be: new, or restored.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use syncd_core::{Space, Time};

use super::{Broker, Over, SHORTEST_GRACE, Settings, clock};
use crate::{
    entry::{self, Members},
    journal::{Journal, StoreError},
    namespace::{Address, Namespace},
    registry::{Gauge, QuotaError},
};

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoNamespace {
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// More may be held in it than is known.
    #[error("{0}")]
    InDoubt(String),
    #[error("the daemon is shutting down")]
    Leaving,
}

impl Broker {
    /// The namespace at `address`, made if it isn't there. It may be over by the time that it is
    /// entered; then its caller comes here again.
    pub fn namespace(self: &Arc<Self>, address: &Address) -> Result<Arc<Namespace>, NoNamespace> {
        let _leave = self.leave_to_make().map_err(|Over| NoNamespace::Leaving)?;
        self.doubts.settle(self, address).map_err(NoNamespace::InDoubt)?;
        let make = || {
            let config = self.core_config(address);
            let space = Space::new(config.clone(), self.numbers.begin());
            let store = match &self.settings.journal {
                Some(directory) => {
                    let empty =
                        entry::snapshot(&space, &Members::default(), &config, Time::default());
                    Some(Journal::create(directory, &address.to_string(), None, &empty)?)
                }
                None => None,
            };
            Ok(self.make(address.clone(), space, store))
        };
        let (namespace, is_new) = self.registry.namespace(address, &self.settings.limits, make)?;
        if is_new {
            self.begin(&namespace);
        }
        Ok(namespace)
    }

    /// A namespace of that state, which isn't in the registry yet.
    pub fn make(&self, address: Address, space: Space, store: Option<Journal>) -> Arc<Namespace> {
        let limits = &self.settings.limits;
        let number = self.last_number.fetch_add(1, Relaxed);
        let memory = match address.owner {
            Some(owner) => self.registry.user(owner, limits).memory.clone(),
            None => Arc::new(Gauge::new("memory", limits.memory)),
        };
        Arc::new(Namespace::new(number, address, space, store, memory, limits.watch_bytes))
    }

    /// Keeps the time of a namespace that has come into the registry.
    pub fn begin(self: &Arc<Self>, namespace: &Arc<Namespace>) {
        let (broker, timed) = (self.clone(), namespace.clone());
        self.supervise("the clock of a namespace", move || {
            clock::keep_time(broker.clone(), timed.clone())
        });
        self.registry.changed.notify_one();
    }

    /// How each namespace's core is configured.
    pub fn core_config(&self, address: &Address) -> syncd_core::Config {
        let Settings { grace, linger, limits, .. } = &self.settings;
        syncd_core::Config {
            grace: (*grace).max(SHORTEST_GRACE),
            linger: *linger,
            limits: limits.core(address.owner.is_none()),
        }
    }
}
