//! A directory of the user's own on Unix. Its files are opened from its descriptor, following no
//! link. Never here: what they are called.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat},
    io::Errno,
    process::geteuid,
};

use crate::instance::open_own;

#[derive(Debug)]
pub(super) struct Place(OwnedFd);

impl Place {
    /// The directory, and the user.
    pub fn open(path: &Path) -> io::Result<(Self, u32)> {
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
            Ok((Self(directory), user))
        }
    }

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            names.push(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
        }
        Ok(names)
    }

    pub fn create_file(&self, name: &OsStr) -> io::Result<File> {
        open_own(&self.0, name, OFlags::CREATE | OFlags::EXCL).map(|(file, _)| file)
    }

    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        open_own(&self.0, name, OFlags::empty()).map(|(file, _)| file)
    }

    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::empty())?)
    }

    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }
}

fn denied(path: &Path, fault: &str) -> io::Error {
    let text = format!("{} {fault}: put it right, or choose another directory", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}
