//! The command that starts a daemon: program, arguments, environment, and its systemd scope.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use syncd_proto::Endpoint;

use super::Daemon;

/// How long an auto-started daemon stays while it is idle.
const IDLE_EXIT: &str = "300s";

/// Tells the daemon that its starter reads its standard output, and that nobody rotates its log.
const AUTO_STARTED: (&str, &str) = ("SYNCD_AUTO_STARTED", "1");

/// One way to start a daemon.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Absolute, if it was found.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    /// Started by systemd-run, in a scope of its own.
    pub is_scoped: bool,
}

/// The ways to start a daemon, in order of preference; the last is the plain one.
pub(super) fn plans(endpoint: &Endpoint, daemon: Option<&Daemon>, log: &Path) -> Vec<Plan> {
    let (program, mut args) = match daemon {
        Some(Daemon { program, args }) => (program.clone(), args.clone()),
        None => (default_program(), Vec::new()),
    };
    args.extend(["--socket".into(), endpoint.as_path().into()]);
    args.extend(["--idle-exit".into(), IDLE_EXIT.into()]);
    let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| is_for_daemon(name)).collect();
    environment.push((AUTO_STARTED.0.into(), AUTO_STARTED.1.into()));
    if env::var_os("SYNCD_LOG_FILE").is_none() {
        environment.push(("SYNCD_LOG_FILE".into(), log.into()));
    }
    let plain = Plan { program: find(&program), args, environment, is_scoped: false };
    #[cfg(target_os = "linux")]
    if let Some(scoped) = scope::scoped(&plain) {
        return vec![scoped, plain];
    }
    vec![plain]
}

/// `$SYNCD_DAEMON`, a `syncd` beside this program, or one on the path.
fn default_program() -> OsString {
    env::var_os("SYNCD_DAEMON")
        .filter(|program| !program.is_empty())
        .or_else(|| {
            let name = format!("syncd{}", env::consts::EXE_SUFFIX);
            let beside = env::current_exe().ok()?.with_file_name(name);
            beside.is_file().then(|| beside.into_os_string())
        })
        .unwrap_or_else(|| "syncd".into())
}

/// The program's absolute path, since the daemon's working directory is `/`.
fn find(program: &OsStr) -> PathBuf {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    let found =
        env::split_paths(&on_path).map(|dir| dir.join(program)).find(|file| is_program(file));
    match found.map(std::path::absolute) {
        Some(Ok(found)) => found,
        _ => path.to_owned(),
    }
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use rustix::fs::{Access, access};
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(windows)]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

/// Whether the daemon inherits this environment variable. The daemon serves all of the user's
/// processes and outlives this one, so it gets only what it needs to run and its own settings: no
/// secrets of this process, and none of what systemd passed to it (`NOTIFY_SOCKET`).
#[cfg(not(windows))]
fn is_for_daemon(name: &OsStr) -> bool {
    /// What `syncctl run` sets for its command, and settings of clients.
    const CLIENTS: [&str; 6] = [
        "SYNCD_LOCK",
        "SYNCD_TOKEN",
        "SYNCD_ABANDONED",
        "SYNCD_NAMESPACE",
        "SYNCD_SOCKET",
        AUTO_STARTED.0,
    ];
    const NAMES: [&str; 12] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "TZ",
        "PREFIX",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "SYSTEMROOT",
        "LLVM_PROFILE_FILE",
    ];
    /// A daemon may be an interpreter's module (`python -m syncd`).
    const PREFIXES: [&str; 6] = ["SYNCD_", "LC_", "RUST_", "PYTHON", "ANDROID_", "TERMUX_"];
    let Some(name) = name.to_str() else { return false };
    if CLIENTS.contains(&name) {
        return false;
    }
    // Termux programs need its preloaded library.
    let is_needed = cfg!(target_os = "android") && name == "LD_PRELOAD";
    is_needed || NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(windows)]
fn is_for_daemon(name: &OsStr) -> bool {
    name != AUTO_STARTED.0
}

/// A systemd scope of the daemon's own. In its starter's unit it would end with that, count against
/// its limits, and be killed with it when memory is short.
#[cfg(target_os = "linux")]
mod scope {
    use std::{fs, path::Path};

    use super::Plan;

    /// Which service manager to ask.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Manager {
        System,
        User,
    }

    /// The plan that uses `systemd-run`, if this process is in a unit that may end while its user
    /// still has processes, and a service manager is available.
    pub(super) fn scoped(plain: &Plan) -> Option<Plan> {
        let user = rustix::process::geteuid().as_raw();
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        let has_manager = Path::new(&format!("/run/user/{user}/systemd/private")).exists();
        let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let manager = manager(unit_path(&cgroups)?, user, has_manager)?;
        let program = ["/usr/bin/systemd-run", "/bin/systemd-run"];
        let program = program.into_iter().map(Path::new).find(|file| file.is_file())?;
        let mut environment = plain.environment.clone();
        let mut args = Vec::new();
        if manager == Manager::User {
            args.push("--user".into());
            environment.push(("XDG_RUNTIME_DIR".into(), format!("/run/user/{user}").into()));
        }
        let description = "--description=syncd, started by a client".into();
        args.extend(["--scope".into(), "--quiet".into(), "--collect".into(), description]);
        args.extend(["--no-ask-password".into(), "--".into(), plain.program.clone().into()]);
        args.extend(plain.args.iter().cloned());
        Some(Plan { program: program.to_owned(), args, environment, is_scoped: true })
    }

    /// This process's path in systemd's tree, from `/proc/self/cgroup`.
    fn unit_path(cgroups: &str) -> Option<&str> {
        let named = |prefix: &str| cgroups.lines().find_map(|line| line.strip_prefix(prefix));
        let legacy =
            cgroups.lines().find_map(|line| line.split_once(":name=systemd:").map(|(_, p)| p));
        named("0::").filter(|path| *path != "/").or(legacy)
    }

    /// The manager for a daemon started from `unit_path`. None in a login's session scope: the
    /// user's manager ends with the last login, while processes in the scope may stay.
    fn manager(unit_path: &str, user: u32, has_user_manager: bool) -> Option<Manager> {
        let is_managed_by_user = unit_path.contains(&format!("/user@{user}.service/"));
        let is_service = unit_path.trim_end_matches('/').ends_with(".service");
        match () {
            () if is_managed_by_user && has_user_manager => Some(Manager::User),
            () if !is_service => None,
            () if user == 0 => Some(Manager::System),
            () => has_user_manager.then_some(Manager::User),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_service_and_a_users_unit_are_left_and_a_login_is_not() {
            let cases = [
                ("0::/system.slice/job.service", 0, false, Some(Manager::System)),
                ("0::/system.slice/job.service", 1000, true, Some(Manager::User)),
                ("0::/system.slice/job.service", 1000, false, None),
                ("0::/user.slice/user-1000.slice/session-3.scope", 1000, true, None),
                (
                    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-1.scope",
                    1000,
                    true,
                    Some(Manager::User),
                ),
                ("1:name=systemd:/system.slice/job.service\n0::/", 0, false, Some(Manager::System)),
                ("0::/init.scope", 0, true, None),
            ];
            for (cgroups, user, has_manager, expected) in cases {
                let found = manager(unit_path(cgroups).unwrap(), user, has_manager);
                assert_eq!(found, expected, "{cgroups} {user}");
            }
            assert_eq!(unit_path("0::/"), None, "a container");
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_gets_its_own_settings_and_no_secrets() {
        for name in ["PATH", "SYNCD_LOG", "SYNCD_GRACE", "LC_ALL", "PYTHONPATH"] {
            assert!(is_for_daemon(OsStr::new(name)), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "XDG_RUNTIME_DIR",
            "SYNCD_ABANDONED",
            "SYNCD_TOKEN",
            "LD_PRELOAD",
        ] {
            assert!(!is_for_daemon(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_program_is_found_before_the_working_directory_changes() {
        assert!(find(OsStr::new("sh")).is_absolute());
        assert!(find(OsStr::new("./syncd")).is_absolute());
        assert_eq!(find(OsStr::new("no such program")), Path::new("no such program"));
    }
}
