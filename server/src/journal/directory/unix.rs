//! A directory of the user's own on Unix. Its files are opened from its descriptor, following no
//! link. Never here: what they are called.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    sync::{Arc, Mutex},
};

use rustix::{
    fs::{
        Access, AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW,
        accessat, flock, fstat, mkdirat, openat, renameat, statat, unlinkat, utimensat,
    },
    io::Errno,
    process::geteuid,
};

use super::in_use;
use crate::{instance::open_own, panic};

/// The directory that the path led to when somebody looked; `None`: to none.
#[derive(Debug)]
pub(super) struct Place(Mutex<Option<Arc<OwnedFd>>>);

impl Place {
    /// The directory, and the user.
    pub fn open(path: &Path) -> io::Result<(Self, u32)> {
        let (directory, user) = open(path)?;
        Ok((Self(Mutex::new(Some(Arc::new(directory)))), user))
    }

    /// Whether it is this process's; another one's directory isn't.
    pub fn lock(&self) -> io::Result<bool> {
        Ok(lock(&*self.directory()?))
    }

    pub fn unlock(&self) {
        if let Ok(directory) = self.directory() {
            let _ = flock(directory, FlockOperation::Unlock);
        }
    }

    fn directory(&self) -> io::Result<Arc<OwnedFd>> {
        panic::lock(&self.0).clone().ok_or_else(|| Errno::NOENT.into())
    }

    /// If the path leads elsewhere now, opens what is there, made if it is missing. `is_to_lock`: and
    /// locks it.
    pub fn look(&self, path: &Path, is_to_lock: bool) -> io::Result<()> {
        let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
        let mut place = panic::lock(&self.0);
        let ours = place.as_ref().and_then(|directory| fstat(directory).ok());
        match (found, ours) {
            (Ok(found), Some(ours))
                if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) => {}
            (Ok(_) | Err(Errno::NOENT), _) => {
                *place = None;
                let (directory, _) = open(path)?;
                if is_to_lock && !lock(&directory) {
                    return Err(in_use());
                }
                *place = Some(Arc::new(directory));
            }
            // Nobody knows where it leads.
            (Err(error), _) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether this is the file of that name.
    pub fn has(&self, name: &OsStr, file: &File) -> bool {
        let Ok(directory) = self.directory() else { return false };
        let named = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        match (named, fstat(file)) {
            (Ok(named), Ok(file)) => (named.st_dev, named.st_ino) == (file.st_dev, file.st_ino),
            // Nobody knows: it isn't gone.
            (Err(error), _) => error != Errno::NOENT,
            (_, Err(_)) => true,
        }
    }

    /// Who cleans `/tmp` takes files for abandoned that nobody has touched for some days.
    pub fn keep_fresh(&self) -> io::Result<()> {
        let directory = self.directory()?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        for name in self.names()? {
            // It may be gone by now.
            let _ = utimensat(&directory, &*name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.directory()?)? {
            names.push(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
        }
        Ok(names)
    }

    pub fn create_file(&self, name: &OsStr) -> io::Result<File> {
        open_own(&*self.directory()?, name, OFlags::CREATE | OFlags::EXCL).map(|(file, _)| file)
    }

    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        open_own(&*self.directory()?, name, OFlags::empty()).map(|(file, _)| file)
    }

    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(self.directory()?, name, AtFlags::empty())?)
    }

    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(self.directory()?, from, self.directory()?, to)?)
    }
}

/// Whether nobody else has locked it.
fn lock(directory: &OwnedFd) -> bool {
    // A filesystem may have no locks: then it is as good as can be.
    flock(directory, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

fn open(path: &Path) -> io::Result<(OwnedFd, u32)> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // Without a slash at its end, by which the system would follow a link.
    let path: std::path::PathBuf = path.components().collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(CWD, &path, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(denied(&path, "is no directory")),
        opened => opened?,
    };
    let (found, user) = (fstat(&directory)?, geteuid().as_raw());
    if found.st_uid != user {
        Err(denied(&path, &format!("belongs to user {}", found.st_uid)))
    } else if found.st_mode & 0o077 != 0 {
        Err(denied(&path, "is open to other users (chmod 700 it)"))
    } else {
        // A daemon that can't write there would have to tell everybody that all is lost.
        accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
        Ok((directory, user))
    }
}

fn denied(path: &Path, fault: &str) -> io::Error {
    let text = format!("{} {fault}: put it right, or choose another directory", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}
