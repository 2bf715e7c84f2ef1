//! Where the journals of a daemon lie: a directory of its user's own, and the files in it, which
//! have room before they are written to. Never here: what is written.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

#[cfg_attr(unix, path = "directory/unix.rs")]
#[cfg_attr(windows, path = "directory/windows.rs")]
mod place;

use super::{StoreError, format::BootId};
use crate::{numbers::write_at, panic};

/// How long a daemon may take to leave.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often files are touched that nothing is written to.
const FRESH: Duration = Duration::from_secs(3600);
/// What follows a file's name until it has room. To be killed before that is no damage.
const NAMELESS: &str = ".new";
/// Zeros are written in pieces of this size.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// A directory with journals, for one daemon at a time.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    place: place::Place,
    pub(super) user: u32,
    pub(super) boot: Option<BootId>,
    next: AtomicU64,
    standing: Mutex<Standing>,
    /// How many more bytes may be reserved.
    #[cfg(test)]
    pub(super) quota: AtomicU64,
}

#[derive(Debug)]
struct Standing {
    /// When its files were touched last.
    touched: Instant,
    /// It isn't to be locked again.
    is_given_away: bool,
}

#[cfg(test)]
impl Directory {
    /// Has no room any more.
    pub(crate) fn fill(&self) {
        self.quota.store(0, Relaxed);
    }
}

impl Directory {
    /// Opens the directory, made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// If it isn't the user's alone, or a symbolic link leads to it.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        Self::open_as(path, BootId::current())
    }

    /// As a daemon of that run of the machine; `None`: whose run nobody knows.
    pub fn open_as(path: &Path, boot: Option<BootId>) -> io::Result<Arc<Self>> {
        let (place, user) = place::Place::open(path)?;
        let directory = Self {
            path: path.to_owned(),
            place,
            user,
            boot,
            next: AtomicU64::new(1),
            standing: Mutex::new(Standing { touched: Instant::now(), is_given_away: false }),
            #[cfg(test)]
            quota: AtomicU64::new(u64::MAX),
        };
        let names = directory.names()?;
        let last = names.iter().filter_map(|name| number_and_slot(name).or(without_room(name)));
        directory.next.store(last.max().map_or(1, |(number, _)| number + 1), Relaxed);
        Ok(Arc::new(directory))
    }

    /// What tells the directory at `path` from all others.
    ///
    /// # Errors
    /// If it can't be looked at.
    #[cfg(unix)]
    pub fn identity(path: &Path) -> io::Result<(u64, u64)> {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(path)?;
        Ok((found.dev(), found.ino()))
    }

    /// Looks whether the path still leads here. If it leads elsewhere, what is there is the directory
    /// from now on, made if it is missing; none is as long as that can't be done.
    ///
    /// # Errors
    /// If it can't, be it that another daemon keeps its state there.
    pub fn look(&self) -> io::Result<()> {
        let mut standing = panic::lock(&self.standing);
        let Standing { touched, is_given_away } = &mut *standing;
        if touched.elapsed() > FRESH {
            self.place.keep_fresh()?;
            *touched = Instant::now();
        }
        self.place.look(&self.path, !*is_given_away)
    }

    /// Waits for a while until no other daemon keeps its state here: one that leaves will be gone.
    /// It is locked until [`unlock`](Self::unlock), or for as long as this is kept.
    ///
    /// # Errors
    /// If one does, or it can't be seen.
    pub async fn lock(&self) -> io::Result<()> {
        let begun = Instant::now();
        while !self.try_lock()? {
            if begun.elapsed() > PATIENCE {
                return Err(in_use());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether no other daemon keeps its state here. Then it is locked.
    ///
    /// # Errors
    /// If it can't be seen.
    pub fn try_lock(&self) -> io::Result<bool> {
        self.place.lock()
    }

    /// Another daemon may have it: nothing is written any more.
    pub fn unlock(&self) {
        // Whoever looks meanwhile has it locked before or not at all.
        panic::lock(&self.standing).is_given_away = true;
        self.place.unlock();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        self.place.names()
    }

    /// A number that no journal here has had.
    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Reads at most so much of a file, and how large it is.
    pub(super) fn read(&self, name: &OsStr, most: u64) -> io::Result<(Vec<u8>, u64)> {
        let file = self.place.open_file(name)?;
        let size = file.metadata()?.len();
        let length = size.min(most);
        let mut bytes = Vec::new();
        let wanted = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        bytes.try_reserve_exact(wanted).map_err(|_| io::ErrorKind::OutOfMemory)?;
        io::Read::read_to_end(&mut io::Read::take(file, length), &mut bytes)?;
        Ok((bytes, size))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn discard(&self, file: &Path) -> io::Result<()> {
        self.place.remove(file.file_name().unwrap_or_default())
    }

    /// Renames a file to `NAME.aside-K`, of which there was none: no daemon looks at it again.
    ///
    /// # Errors
    /// As rename(2).
    pub fn keep_aside(&self, file: &Path) -> io::Result<PathBuf> {
        let name = file.file_name().unwrap_or_default();
        let taken = self.names()?;
        let mut asides = (1..).map(|n| {
            let mut aside = name.to_owned();
            aside.push(format!(".aside-{n}"));
            aside
        });
        // Nobody else makes files here.
        let aside = asides.find(|aside| !taken.contains(aside)).expect("numbers go on");
        self.place.rename(name, &aside)?;
        Ok(self.path_of(&aside))
    }
}

/// Why a directory can't be had.
fn in_use() -> io::Error {
    let text = "another daemon keeps its state there: one directory, one daemon";
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

fn nameless(name: &OsStr) -> OsString {
    let mut nameless = name.to_owned();
    nameless.push(NAMELESS);
    nameless
}

pub(super) fn file_name(number: u64, slot: usize) -> OsString {
    format!("{number}.{slot}").into()
}

/// What a journal's file is called: `17.0`.
pub(super) fn number_and_slot(name: &OsStr) -> Option<(u64, usize)> {
    let (number, slot) = name.to_str()?.split_once('.')?;
    let found = (number.parse().ok()?, slot.parse().ok()?);
    (found.1 < 2 && file_name(found.0, found.1) == name).then_some(found)
}

/// What a file is to be called that never had room, and so has nothing in it: `17.0.new`.
pub(super) fn without_room(name: &OsStr) -> Option<(u64, usize)> {
    number_and_slot(name.to_str()?.strip_suffix(NAMELESS)?.as_ref())
}

/// One of the two files of a journal. All of its bytes are its own: no write to it, be it by a
/// mapping, needs room that a full disk doesn't have.
#[derive(Debug)]
pub(super) struct Slot {
    directory: Arc<Directory>,
    name: OsString,
    /// It has its name. It gets that with its first piece of room.
    is_named: AtomicBool,
    file: File,
    size: Mutex<u64>,
    /// How many wait for their piece.
    waiting: AtomicU64,
}

impl Slot {
    /// Makes a file, or opens one that is there.
    pub fn open(
        directory: &Arc<Directory>,
        number: u64,
        slot: usize,
        is_new: bool,
    ) -> io::Result<Self> {
        let name = file_name(number, slot);
        let file = match is_new {
            true => directory.place.create_file(&nameless(&name))?,
            false => directory.place.open_file(&name)?,
        };
        let size = Mutex::new(file.metadata()?.len());
        let (directory, is_named) = (directory.clone(), AtomicBool::new(!is_new));
        Ok(Self { directory, name, is_named, file, size, waiting: AtomicU64::new(0) })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path_of(&self.name)
    }

    /// Whether a daemon that looks for it would find it.
    pub fn is_there(&self) -> bool {
        self.directory.place.has(&self.name_now(), &self.file)
    }

    /// Whether somebody has cut off some of it: what is mapped isn't there any more.
    pub fn is_cut(&self) -> bool {
        let size = panic::lock(&self.size);
        self.file.metadata().is_ok_and(|found| found.len() < *size)
    }

    pub fn size(&self) -> u64 {
        *panic::lock(&self.size)
    }

    /// Has it so large, of zeros at its end. What others do to the file meanwhile, within its
    /// size, isn't disturbed.
    pub fn reserve(&self, to: u64) -> Result<(), StoreError> {
        loop {
            // Piece by piece in turn: a record doesn't wait for all that a compaction asks for.
            while self.waiting.load(Relaxed) > 0 {
                thread::yield_now();
            }
            self.waiting.fetch_add(1, Relaxed);
            let mut size = panic::lock(&self.size);
            self.waiting.fetch_sub(1, Relaxed);
            if *size >= to {
                return Ok(());
            }
            let piece = (to - *size).min(PIECE as u64);
            if let Err(error) = self.lengthen(*size, piece) {
                // What there was room for is given back.
                let _ = self.file.set_len(*size);
                return Err(StoreError::no_room(self.path(), error));
            }
            *size += piece;
            if !self.is_named.load(Relaxed) {
                let named = self.directory.place.rename(&nameless(&self.name), &self.name);
                named.map_err(|error| StoreError::io(self.path(), error))?;
                self.is_named.store(true, Relaxed);
            }
        }
    }

    fn lengthen(&self, from: u64, by: u64) -> io::Result<()> {
        #[cfg(test)]
        self.directory
            .quota
            .fetch_update(Relaxed, Relaxed, |quota| quota.checked_sub(by))
            .map_err(|_| io::ErrorKind::StorageFull)?;
        write_at(&self.file, &ZEROS[..by as usize], from)
    }

    /// Makes it smaller. Nobody may have it mapped.
    pub fn shrink(&self, to: u64) {
        let mut size = panic::lock(&self.size);
        if *size > to && self.file.set_len(to).is_ok() {
            #[cfg(test)]
            self.directory.quota.fetch_add(*size - to, Relaxed);
            *size = to;
        }
    }

    /// Writes to what was reserved.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        debug_assert!(at + bytes.len() as u64 <= self.size(), "no room was reserved");
        write_at(&self.file, bytes, at).map_err(|error| StoreError::io(self.path(), error))
    }

    pub fn remove(&self) -> io::Result<()> {
        self.directory.place.remove(&self.name_now())
    }

    fn name_now(&self) -> OsString {
        match self.is_named.load(Relaxed) {
            true => self.name.clone(),
            false => nameless(&self.name),
        }
    }
}
