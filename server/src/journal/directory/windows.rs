//! A directory on Windows, where what a user makes in their own is theirs. Never here: what its
//! files are called.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct Place(PathBuf);

impl Place {
    /// The directory. Users have no numbers here.
    pub fn open(path: &Path) -> io::Result<(Self, u32)> {
        fs::create_dir_all(path)?;
        Ok((Self(path.to_owned()), 0))
    }

    /// Nobody can take away what is mapped.
    pub fn look(&self, _path: &Path, _is_to_lock: bool) -> io::Result<()> {
        Ok(())
    }

    pub fn has(&self, _name: &OsStr, _file: &File) -> bool {
        true
    }

    pub fn keep_fresh(&self) -> io::Result<()> {
        Ok(())
    }

    /// Nothing is kept here that outlives a daemon.
    pub fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    pub fn unlock(&self) {}

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    pub fn create_file(&self, name: &OsStr) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(self.0.join(name))
    }

    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.0.join(name))
    }

    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }
}
