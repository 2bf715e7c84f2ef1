//! The default place of a user's programs: the rows of `docs/PLACES.md`, with real users and their
//! environments. Only root can be several users; otherwise only this user's place is tested, and no
//! daemon is started there.
#![cfg(target_os = "linux")]

mod support;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use support::{code, end_daemon, eventually};

fn is_root() -> bool {
    // SAFETY: a plain system call.
    unsafe { libc::geteuid() == 0 }
}

/// A user whom this machine doesn't know, with a copy of the program where they can run it.
struct User {
    number: u32,
    dir: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = 1_000_000 + std::process::id() * 16 + NEXT.fetch_add(1, Relaxed);
        // Not in /tmp, which some of these tests hide.
        let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_syncctl"), dir.path().join("syncctl")).unwrap();
        Self { number, dir }
    }

    fn place(&self) -> PathBuf {
        format!("/tmp/syncd-{}", self.number).into()
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("syncctl")
    }

    /// A command as from the user's cron: with almost no environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.uid(self.number).gid(self.number);
        command
    }

    fn directory(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        chown(&dir, Some(self.number), Some(self.number)).unwrap();
        dir
    }
}

impl Drop for User {
    fn drop(&mut self) {
        end_daemon(&self.place().join("syncd.sock"));
        let _ = fs::remove_dir_all(self.place());
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn wait(mut holder: Child) {
    // SAFETY: a plain system call on a process of this test.
    unsafe { libc::kill(holder.id() as libc::pid_t, libc::SIGTERM) };
    holder.wait().unwrap();
}

#[test]
fn a_users_programs_meet_whatever_their_environment() {
    if !is_root() {
        return;
    }
    let user = User::new();
    let holder = user.command(&["run", "job", "--", "sleep", "60"]).spawn().unwrap();
    let busy = || text(&user.command(&["ls", "--busy"]).output().unwrap()).contains("job");
    eventually("it is held", busy);
    let own = user.directory("own");
    for names in [
        &["XDG_RUNTIME_DIR"][..],
        &["TMPDIR"],
        &["HOME"],
        &["XDG_RUNTIME_DIR", "TMPDIR", "HOME", "XDG_STATE_HOME", "TMP", "TEMP"],
    ] {
        for slash in ["", "/"] {
            let mut command = user.command(&["run", "job", "--no-wait", "--", "true"]);
            let value = format!("{}{slash}", own.display());
            command.envs(names.iter().map(|name| (name, &value)));
            let output = command.output().unwrap();
            assert_eq!(code(&output), Some(75), "{names:?} {}", text(&output));
        }
    }
    assert!(user.place().join("syncd.sock").exists());
    assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
    wait(holder);
}

/// For any user: the place is the same in all environments, with or without a daemon.
#[test]
fn the_environment_does_not_change_the_place() {
    let place = |names: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncctl"));
        command.args(["--json", "status"]).env_remove("SYNCD_SOCKET");
        command.envs(names.iter().map(|name| (name, "/nowhere")));
        let said = text(&command.output().unwrap());
        let begin = said.find("/").unwrap_or_else(|| panic!("no place in {said}"));
        let end = said.find("syncd.sock").unwrap_or_else(|| panic!("no socket in {said}"));
        said[begin..end].to_owned()
    };
    let environments: [&[&str]; 4] = [&[], &["XDG_RUNTIME_DIR"], &["TMPDIR"], &["HOME"]];
    let places: BTreeSet<String> = environments.map(place).into();
    assert_eq!(places.len(), 1, "{places:?}");
}

#[test]
fn root_has_a_place_of_its_own() {
    if !is_root() {
        return;
    }
    let status = Command::new(env!("CARGO_BIN_EXE_syncctl"))
        .arg("status")
        .env_remove("SYNCD_SOCKET")
        .env("XDG_RUNTIME_DIR", "/run/user/1000")
        .output()
        .unwrap();
    assert!(text(&status).contains("/run/syncd-0/syncd.sock"), "{}", text(&status));
}

#[test]
fn a_place_made_by_another_user_is_refused_and_the_user_named() {
    if !is_root() {
        return;
    }
    let (user, stranger) = (User::new(), User::new());
    fs::create_dir(user.place()).unwrap();
    fs::set_permissions(user.place(), Permissions::from_mode(0o755)).unwrap();
    chown(user.place(), Some(stranger.number), Some(stranger.number)).unwrap();
    // Another user's daemon, open to all, in the user's place.
    let socket = user.place().join("syncd.sock");
    let mut daemon = stranger.command(&["daemon", "--mode", "666", "--socket"]);
    let mut daemon = daemon.arg(&socket).spawn().unwrap();
    eventually("it listens", || socket.exists());
    let output = user.command(&["run", "job", "--", "true"]).output().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(code(&output), Some(69), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains(&format!("belongs to user {}", stranger.number)), "{said}");
}

#[test]
fn in_a_private_tmp_no_daemon_is_started_and_the_error_says_why() {
    if !is_root() {
        return;
    }
    let user = User::new();
    let private = user.dir.path().join("systemd-private-5c1-job.service-Xa/tmp");
    fs::create_dir_all(&private).unwrap();
    fs::set_permissions(&private, Permissions::from_mode(0o1777)).unwrap();
    let service = |arguments: &str| {
        let id = user.number;
        let script = format!(
            "mount --bind \"$0\" /tmp && exec setpriv --reuid {id} --regid {id} --clear-groups \
             \"$1\" {arguments}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(&private).arg(user.program());
        command.env_remove("SYNCD_SOCKET").env_remove("SYNCD_NO_AUTOSTART").current_dir("/");
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = service("run job -- true");
    let said = text(&refused);
    if said.contains("Operation not permitted") {
        // A container without the capability to mount.
        return;
    }
    assert_eq!(code(&refused), Some(69), "{said}");
    assert!(said.contains("PrivateTmp") && said.contains("SYNCD_SOCKET"), "{said}");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 0);
    // With SYNCD_SOCKET a daemon is started.
    let chosen = service("--socket /tmp/own/syncd.sock run job -- true");
    assert_eq!(code(&chosen), Some(0), "{}", text(&chosen));
    end_by_lock_file(&private.join("own"));
}

/// A daemon in a container and a client outside; and the other way round, where the daemon can see
/// the client.
#[test]
fn a_daemon_that_cannot_see_a_client_says_why() {
    let house = support::House::new();
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).stdin(Stdio::null());
        if !is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.env_remove("SYNCD_NO_AUTOSTART").arg(env!("CARGO_BIN_EXE_syncctl"));
        command
    };
    let mut inside = unshare();
    inside.arg("--socket").arg(support::socket(house.dir.path()));
    let inside = inside.args(["run", "job", "--", "true"]).output().unwrap();
    if text(&inside).contains("unshare:") {
        // It isn't allowed here.
        return;
    }
    assert_eq!(code(&inside), Some(0), "{}", text(&inside));

    let dir = tempfile::tempdir().unwrap();
    let socket = support::socket(dir.path());
    let mut daemon = unshare();
    let daemon = daemon.args(["daemon", "--socket"]).arg(&socket).stderr(Stdio::null()).spawn();
    let mut daemon = daemon.unwrap();
    eventually("it listens", || socket.exists());
    for arguments in [&["run", "job", "--", "true"][..], &["ls"], &["status"]] {
        let refused = support::syncctl(&socket).args(arguments).output().unwrap();
        let said = text(&refused);
        assert_eq!(code(&refused), Some(69), "{arguments:?}: {said}");
        assert!(said.contains("process namespace") && said.contains("SYNCD_SOCKET"), "{said}");
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// In a user namespace with one user, its root: that isn't the machine's root and hasn't its place,
/// and all parent directories appear to belong to user nobody.
#[test]
fn in_a_user_namespace_the_place_is_of_the_user_as_seen_inside() {
    let place = Path::new("/tmp/syncd-0");
    if !is_root() || place.exists() {
        return;
    }
    let user = User::new();
    let program = user.program();
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user"])
        .arg(&program)
        .args(["run", "job", "--", "id", "-u"]);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    let output = command.uid(user.number).gid(user.number).output().unwrap();
    if text(&output).contains("unshare:") {
        // It isn't allowed here.
        return;
    }
    let said = text(&output);
    let found = fs::read_to_string(place.join("syncd.sock.pid")).is_ok();
    if found {
        end_by_lock_file(place);
        fs::remove_dir_all(place).unwrap();
    }
    assert_eq!((code(&output), &*said, found), (Some(0), "0\n", true));
}

/// For a daemon whose socket can't be reached from here.
fn end_by_lock_file(dir: &Path) {
    let pid = fs::read_to_string(dir.join("syncd.sock.pid")).unwrap();
    // SAFETY: a plain system call on a process of this test.
    unsafe { libc::kill(pid.trim().parse().unwrap(), libc::SIGTERM) };
    eventually("it has left", || !support::is_alive(pid.trim()));
}
