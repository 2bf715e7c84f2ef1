//! Handover for systems that can't pass a listener on: takes a free place only.

use std::{convert::Infallible, path::Path, sync::Arc};

use syncd_proto::{Endpoint, socket::Listener};

use super::Coming;
use crate::{ServeError, broker::Broker, instance::Instance, journal::Directory};

pub(crate) struct Successor(Infallible);
pub(crate) struct Heir(Infallible);

impl Successor {
    pub fn lead_in(
        self,
        _: &Broker,
        _: &Listener,
        _: Option<&mut Instance>,
    ) -> Result<Heir, String> {
        Ok(Heir(self.0))
    }
}

impl Heir {
    pub async fn lead_out(self, _: &Broker) -> Result<(), ServeError> {
        match self.0 {}
    }
}

pub(crate) struct Predecessor {
    never: Infallible,
    pub journal: Arc<Directory>,
    pub is_parent: bool,
}

impl Predecessor {
    pub async fn succeed(self, _: &Arc<Broker>) -> Result<(), ServeError> {
        match self.never {}
    }
}

pub(crate) fn come(
    _: &Endpoint,
    _: &Path,
    take: impl Fn() -> Result<(Instance, Listener), ServeError>,
) -> Result<Coming, ServeError> {
    let (instance, listener) = take()?;
    Ok(Coming { listener, instance: Some(instance), predecessor: None })
}
