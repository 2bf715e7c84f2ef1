//! Making namespaces, new or restored.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use syncd_core::{Space, Time};

use super::{Broker, Over, SHORTEST_GRACE, Settings, clock};
use crate::{
    entry::{self, Members},
    journal::{Journal, StoreError},
    namespace::{Address, Namespace},
    registry::{Gauge, QuotaError},
};

/// Why a namespace can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoNamespace {
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// Its journal can't be created.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its journal is damaged, so that more may be held in it than is known.
    #[error("{0}")]
    InDoubt(String),
    #[error("the daemon is shutting down")]
    Leaving,
}

impl Broker {
    /// The namespace at `address`, made if there is none. It may end before the caller enters it;
    /// then the caller has to call this again.
    pub fn namespace(self: &Arc<Self>, address: &Address) -> Result<Arc<Namespace>, NoNamespace> {
        let _permit = self.permit_making().map_err(|Over| NoNamespace::Leaving)?;
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

    /// A namespace with this state, not in the registry yet.
    pub fn make(&self, address: Address, space: Space, store: Option<Journal>) -> Arc<Namespace> {
        let limits = &self.settings.limits;
        let number = self.last_number.fetch_add(1, Relaxed);
        let memory = match address.owner {
            Some(owner) => self.registry.user(owner, limits).memory.clone(),
            None => Arc::new(Gauge::new("memory", limits.memory)),
        };
        Arc::new(Namespace::new(number, address, space, store, memory, limits.watch_bytes))
    }

    /// Starts the clock task of a namespace that was added to the registry.
    pub fn begin(self: &Arc<Self>, namespace: &Arc<Namespace>) {
        let (broker, timed) = (self.clone(), namespace.clone());
        self.supervise("the clock of a namespace", move || {
            clock::keep_time(broker.clone(), timed.clone())
        });
        self.registry.changed.notify_one();
    }

    /// The core's configuration for a namespace.
    pub fn core_config(&self, address: &Address) -> syncd_core::Config {
        let Settings { grace, linger, limits, .. } = &self.settings;
        syncd_core::Config {
            grace: (*grace).max(SHORTEST_GRACE),
            linger: *linger,
            limits: limits.core(address.owner.is_none()),
        }
    }
}
