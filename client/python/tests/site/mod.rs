//! The package as a wheel would install it, made from what cargo built, and the interpreter.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

/// This crate's directory.
pub fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A directory with the package in it, as a wheel would put it into site-packages.
pub fn site() -> &'static Path {
    static SITE: OnceLock<TempDir> = OnceLock::new();
    let site = SITE.get_or_init(|| {
        let site = TempDir::new().unwrap();
        let package = site.path().join("syncd");
        fs::create_dir(&package).unwrap();
        for entry in fs::read_dir(here().join("syncd")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, package.join(path.file_name().unwrap())).unwrap();
            }
        }
        fs::copy(here().join("wheel/purelib/syncd.pth"), site.path().join("syncd.pth")).unwrap();
        // In deps/, beside this test's executable: `cargo test` puts it nowhere else.
        let built = env::current_exe().unwrap();
        let built = built.parent().unwrap();
        let library = format!("{}_native{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        std::os::unix::fs::symlink(built.join(library), package.join("_native.so")).unwrap();
        site
    });
    site.path()
}

/// The interpreter to test: `$SYNCD_TEST_PYTHON`, or `python3` on the path.
pub fn interpreter() -> PathBuf {
    env::var_os("SYNCD_TEST_PYTHON").unwrap_or_else(|| "python3".into()).into()
}

/// A command that runs the interpreter with the package, for the daemon at `socket`.
pub fn python(socket: &Path) -> Command {
    let mut python = Command::new(interpreter());
    python
        // `-m` searches the working directory first, which would be that of the sources.
        .current_dir(site())
        .env_clear()
        .envs(env::vars().filter(|(name, _)| !name.starts_with("SYNCD") && !name.starts_with("PY")))
        .env("PYTHONPATH", site())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONWARNINGS", "ignore::DeprecationWarning")
        .env("SYNCD_SOCKET", socket)
        .env("SYNCD_NO_AUTOSTART", "1");
    python
}
