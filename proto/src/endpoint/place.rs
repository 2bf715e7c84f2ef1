//! The path of a user's own socket on Unix, which depends on the user id alone, and the check of
//! who could have put a directory there.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// The most symbolic links on one path.
const MAX_LINKS: usize = 16;

/// The user's default socket. No environment variable changes it, since a login shell and cron have
/// different ones and must find the same daemon.
pub(super) fn default_socket(uid: u32) -> PathBuf {
    shared_parent(uid).join(format!("syncd-{uid}")).join("syncd.sock")
}

/// The directory that all processes of a user see, and in which each user can make one.
///
/// Not `/run/user/UID`: it is made at a user's first login and removed with its contents at the last
/// logout, while the user's cron jobs go on. Root has `/run`, which other users can't write to and
/// `PrivateTmp=` doesn't hide.
fn shared_parent(uid: u32) -> &'static Path {
    let run = Path::new("/run");
    if cfg!(target_os = "linux") && uid == 0 && is_roots_alone(run) {
        return run;
    }
    Path::new(if cfg!(target_os = "android") {
        // Android has no /tmp; Termux is one user, with a directory of its own.
        "/data/data/com.termux/files/usr/tmp"
    } else if cfg!(target_vendor = "apple") {
        "/private/tmp"
    } else {
        "/tmp"
    })
}

fn is_roots_alone(dir: &Path) -> bool {
    fs::symlink_metadata(dir)
        .is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
}

/// Whether this process has a private `/tmp`, as a systemd unit with `PrivateTmp=` has, whose files
/// the user's other processes don't see.
#[cfg(target_os = "linux")]
pub(super) fn is_hidden(socket: &Path) -> bool {
    socket.starts_with("/tmp")
        && fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| is_tmp_private(&mounts))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_hidden(_socket: &Path) -> bool {
    false
}

/// Whether the last mount on `/tmp` is a private one. `mounts` is `/proc/self/mountinfo`
/// (proc_pid_mountinfo(5)): fields 4 and 5 are the mounted directory and the mount point.
#[cfg(any(target_os = "linux", test))]
fn is_tmp_private(mounts: &str) -> bool {
    let mut on_tmp = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (point == "/tmp").then_some(root)
    });
    on_tmp.next_back().is_some_and(|root| root.contains("/systemd-private-"))
}

/// Verifies that `dir` is private: a directory, not a link to one, owned by the user, closed to
/// others, and in a place where only root and the user could have put it.
pub(super) fn verify_private(dir: &Path, user: u32) -> io::Result<()> {
    // Without a trailing slash, which would make the system follow a link.
    let dir: PathBuf = dir.components().collect();
    let found = fs::symlink_metadata(&dir)?;
    let fault = if found.is_symlink() {
        "is a symbolic link".to_owned()
    } else if !found.is_dir() {
        "is not a directory".to_owned()
    } else if found.uid() != user {
        format!("belongs to user {}", found.uid())
    } else if found.mode() & 0o077 != 0 {
        "is open to other users (chmod 700 it)".to_owned()
    } else {
        return trace(&dir, &|uid| is_trusted(uid, user)).map(drop);
    };
    Err(denied(format!(
        "{} {fault}: correct that, or set SYNCD_SOCKET to a socket elsewhere",
        dir.display()
    )))
}

/// The owner of `dir`, if nobody but root, `user` and that owner could have put it there.
pub(super) fn owner(dir: &Path, user: u32) -> io::Result<u32> {
    let owner = fs::metadata(dir)?.uid();
    let found = trace(dir, &|uid| uid == owner || is_trusted(uid, user))?;
    // Compared again, since a link may have been changed meanwhile.
    match found.uid() == owner {
        true => Ok(owner),
        false => Err(denied(format!("the owner of {} has changed", dir.display()))),
    }
}

fn is_trusted(uid: u32, user: u32) -> bool {
    uid == 0 || uid == user || is_unmapped(uid)
}

/// Whether `uid` is the overflow user: in a user namespace, files of users that it doesn't map, root
/// among them, appear to belong to it (user_namespaces(7)).
#[cfg(target_os = "linux")]
fn is_unmapped(uid: u32) -> bool {
    const OVERFLOW: u32 = 65534;
    let is_in = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((first..first + count).contains(&u64::from(uid)))
    };
    uid == OVERFLOW
        && fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| !map.lines().any(|line| is_in(line).unwrap_or(true)))
}

#[cfg(not(target_os = "linux"))]
fn is_unmapped(_uid: u32) -> bool {
    false
}

/// Follows `dir` from the root, component by component and link by link, and verifies that each
/// was put there by a trusted user: no other user can write to its parent directory, unless that is
/// sticky and the entry belongs to a trusted user.
fn trace(dir: &Path, is_trusted: &dyn Fn(u32) -> bool) -> io::Result<Metadata> {
    let names = |path: &Path| -> Vec<OsString> {
        let is_name =
            |part: &Component<'_>| !matches!(part, Component::RootDir | Component::CurDir);
        path.components().filter(is_name).map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut walked = PathBuf::from("/");
    let mut found = fs::symlink_metadata(&walked)?;
    let mut ahead: VecDeque<OsString> = names(dir).into();
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            // `walked` has no links, so its parent is the right one.
            walked.pop();
            found = fs::symlink_metadata(&walked)?;
            continue;
        }
        let entry = fs::symlink_metadata(walked.join(&name))?;
        let is_open = found.mode() & 0o022 != 0;
        let is_sticky = found.mode() & 0o1000 != 0;
        if !is_trusted(found.uid()) || is_open && !(is_sticky && is_trusted(entry.uid())) {
            return Err(denied(format!(
                "another user could have put {} there: correct its permissions, or set \
                 SYNCD_SOCKET to a socket elsewhere",
                walked.join(&name).display()
            )));
        }
        if entry.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(denied(format!("{} has too many symbolic links", dir.display())));
            }
            let target = fs::read_link(walked.join(&name))?;
            if target.is_absolute() {
                walked = PathBuf::from("/");
                found = fs::symlink_metadata(&walked)?;
            }
            for name in names(&target).into_iter().rev() {
                ahead.push_front(name);
            }
            continue;
        }
        if !entry.is_dir() {
            return Err(denied(format!("{} is not a directory", walked.join(&name).display())));
        }
        walked.push(name);
        found = entry;
    }
    Ok(found)
}

fn denied(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn is_denied<T: std::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    fn dir_in(base: &Path, name: &str, mode: u32) -> PathBuf {
        let dir = base.join(name);
        fs::create_dir(&dir).unwrap();
        set_mode(&dir, mode);
        dir
    }

    #[test]
    fn every_user_has_a_default_socket_of_their_own() {
        assert_ne!(default_socket(7), default_socket(8));
        assert_eq!(default_socket(7), default_socket(7));
        #[cfg(target_os = "linux")]
        assert_eq!(default_socket(1000), Path::new("/tmp/syncd-1000/syncd.sock"));
    }

    #[test]
    fn a_directory_open_to_others_or_reached_by_a_link_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir_in(base.path(), "d", 0o755);
        is_denied(verify_private(&dir, me()));
        set_mode(&dir, 0o700);
        verify_private(&dir, me()).unwrap();

        let link = base.path().join("link");
        symlink(&dir, &link).unwrap();
        is_denied(verify_private(&link, me()));
        let slash = PathBuf::from(format!("{}/", link.display()));
        is_denied(verify_private(&slash, me()));
        let absent = verify_private(&base.path().join("absent"), me()).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_that_others_could_replace_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let open = dir_in(base.path(), "open", 0o777);
        let dir = dir_in(&open, "d", 0o700);
        is_denied(verify_private(&dir, me()));
        let beneath = dir_in(&dir, "beneath", 0o700);
        is_denied(verify_private(&beneath, me()));
        set_mode(&open, 0o1777);
        verify_private(&dir, me()).unwrap();
        verify_private(&beneath, me()).unwrap();
    }

    #[test]
    fn a_link_on_the_way_is_followed_if_nobody_else_could_have_made_it() {
        let base = tempfile::tempdir().unwrap();
        let real = dir_in(base.path(), "real", 0o700);
        let dir = dir_in(&real, "d", 0o700);
        let open = dir_in(base.path(), "open", 0o777);
        symlink("../real", open.join("link")).unwrap();
        is_denied(verify_private(&open.join("link/d"), me()));
        set_mode(&open, 0o700);
        verify_private(&open.join("link/d"), me()).unwrap();
        assert_eq!(owner(&open.join("link/d"), me()).unwrap(), me());
        symlink("circle", open.join("circle")).unwrap();
        assert!(owner(&open.join("circle"), me()).is_err());
        fs::write(dir.join("file"), "").unwrap();
        is_denied(trace(&dir.join("file"), &|_| true));
    }

    /// Runs only as root, which alone can change a file's owner.
    #[test]
    fn another_users_directory_is_theirs_and_only_where_no_third_could_have_put_it() {
        const STRANGER: u32 = 54_321;
        const THIRD: u32 = 54_322;
        if me() != 0 {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        set_mode(base.path(), 0o755);
        let theirs = dir_in(base.path(), "theirs", 0o700);
        chown(&theirs, Some(STRANGER), None).unwrap();
        is_denied(verify_private(&theirs, 0));
        is_denied(verify_private(&dir_in(&theirs, "mine", 0o700), 0));
        assert_eq!(owner(&theirs, 0).unwrap(), STRANGER);

        let open = dir_in(base.path(), "open", 0o1777);
        let link = open.join("link");
        symlink(&theirs, &link).unwrap();
        assert_eq!(owner(&link, 0).unwrap(), STRANGER, "by a link of our own");
        std::os::unix::fs::lchown(&link, Some(THIRD), None).unwrap();
        is_denied(owner(&link, 0));
        let slash = PathBuf::from(format!("{}/", link.display()));
        is_denied(owner(&slash, 0));
    }

    #[test]
    fn a_private_tmp_is_recognised_by_its_mount() {
        let usual = "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 24 0:27 / /tmp rw - tmpfs tmpfs rw\n";
        let private = "90 24 8:1 /tmp/systemd-private-5c1-job.service-Xa/tmp /tmp rw - ext4 x rw\n";
        assert!(!is_tmp_private(usual));
        assert!(is_tmp_private(&[usual, private].concat()));
        assert!(!is_tmp_private(&[private, usual].concat()), "something else is on top of it");
        assert!(!is_hidden(Path::new("/run/syncd-0/syncd.sock")));
    }
}
