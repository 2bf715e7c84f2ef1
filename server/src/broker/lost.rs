//! Journals whose files were removed, moved or cut while in use: the daemon writes them anew from
//! its state.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::{error, warn};

use super::Broker;
use crate::{
    entry::snapshot,
    journal::Directory,
    namespace::{Namespace, State},
};

impl Broker {
    /// Checks in the background that all journals are where the next daemon looks for them, and
    /// writes missing ones anew.
    pub fn check_journals(self: &Arc<Self>) {
        let Some(directory) = self.settings.journal.clone() else { return };
        let broker = self.clone();
        self.spawn(async move {
            let _ = spawn_blocking(move || broker.renew_lost_journals(&directory)).await;
        });
    }

    fn renew_lost_journals(&self, directory: &Directory) {
        if let Err(error) = directory.look()
            && self.refusals.due().is_some()
        {
            warn!("{}: the journal's directory: {error}", directory.path().display());
        }
        for namespace in self.registry.all() {
            if self.is_closing() {
                return;
            }
            self.renew_if_lost(directory, &namespace);
        }
    }

    fn renew_if_lost(&self, directory: &Directory, namespace: &Namespace) {
        let Ok(mut state) = self.admit(namespace) else { return };
        let State { space, store, members, latest, .. } = &mut *state;
        let Some(journal) = store.as_mut().filter(|journal| journal.is_lost()) else { return };
        let (config, place) = (self.core_config(&namespace.address), directory.path().display());
        let is_known = journal.is_refusing();
        match journal.begin_anew(&snapshot(space, members, &config, *latest)) {
            Ok(()) => error!(
                namespace = %namespace.address,
                "its journal in {place} was removed, moved or cut while in use: it is written anew"
            ),
            Err(error) => {
                if !is_known {
                    error!(
                        namespace = %namespace.address,
                        "its journal in {place} was removed, moved or cut while in use, and can't be \
                            written anew: nothing more is granted until it can: {error}"
                    );
                }
            }
        }
    }
}
