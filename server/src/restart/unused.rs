//! An old journal beside the socket of a daemon that keeps its state elsewhere, or nowhere. From now
//! on it is out of date, so a later daemon must not restore it: it is renamed.

use std::path::Path;

use tracing::{debug, warn};

use super::keep_aside;
use crate::{broker::Settings, journal::Directory};

pub(super) fn set_aside(settings: &Settings) {
    let (path, journal) = (&settings.beside, &settings.journal);
    let is_used = |used: &Path| used == path || is_same(used, path);
    if !path.is_dir() || journal.as_ref().is_some_and(|directory| is_used(directory.path())) {
        return;
    }
    let loaded = Directory::open(path).and_then(|directory| {
        let is_ours = directory.try_lock()?;
        Ok((directory.load()?, directory, is_ours))
    });
    match loaded {
        Ok((_, _, false)) => debug!("{}: another daemon keeps its state there", path.display()),
        Ok((loaded, directory, true)) => {
            let found = loaded.found.iter().flat_map(|found| found.files());
            let unusable = loaded.unusable.iter().map(|unusable| &unusable.file);
            let files: Vec<_> = found.chain(unusable).cloned().collect();
            if !files.is_empty() {
                warn!(
                    "{}: a previous daemon kept its state there, which this one doesn't restore: what \
                        was held is granted to others",
                    path.display()
                );
                keep_aside(&directory, &files);
            }
        }
        Err(error) => {
            warn!("{}: state that may be kept there isn't restored: {error}", path.display())
        }
    }
}

#[cfg(unix)]
fn is_same(one: &Path, other: &Path) -> bool {
    Directory::identity(one).is_ok_and(|one| Directory::identity(other).is_ok_and(|o| o == one))
}

#[cfg(not(unix))]
fn is_same(_: &Path, _: &Path) -> bool {
    false
}
