//! Tests of taking, losing and leaving a place.

use std::os::unix::{
    fs::{PermissionsExt as _, symlink},
    net::UnixListener,
};

use super::*;

fn endpoint(dir: &tempfile::TempDir) -> Endpoint {
    dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
}

fn take(dir: &tempfile::TempDir) -> Result<(Instance, Listener), ServeError> {
    Instance::take(&endpoint(dir), 0o600, None)
}

#[tokio::test]
async fn a_second_daemon_is_told_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = take(&dir).unwrap();
    match take(&dir) {
        Err(ServeError::AlreadyRunning { pid, .. }) => {
            assert_eq!(pid, Some(std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    drop(first);
    take(&dir).unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(&dir);
    let live = UnixListener::bind(endpoint.as_path()).unwrap();
    let refused = take(&dir);
    assert!(matches!(refused, Err(ServeError::AlreadyRunning { .. })), "{refused:?}");
    drop(live);
    let instance = Instance::take(&endpoint, 0o660, None).unwrap();
    let mode = endpoint.as_path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(instance);
    assert!(!endpoint.as_path().exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(&dir);
    fs::write(endpoint.as_path(), "precious").unwrap();
    assert!(matches!(take(&dir), Err(ServeError::Bind { .. })));
    assert_eq!(fs::read_to_string(endpoint.as_path()).unwrap(), "precious");
}

#[tokio::test]
async fn a_link_in_place_of_a_file_is_refused() {
    for name in ["s.sock.pid", "s.sock.tokens"] {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, dir.path().join(name)).unwrap();
        match take(&dir) {
            Ok((instance, _)) => drop(instance.tokens().unwrap_err()),
            Err(error) => assert!(error.to_string().contains("symbolic link"), "{error}"),
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(dir.path().join(name)).unwrap();
        fs::hard_link(&victim, dir.path().join(name)).unwrap();
        match take(&dir) {
            Ok((instance, _)) => drop(instance.tokens().unwrap_err()),
            Err(error) => assert!(error.to_string().contains("another name"), "{error}"),
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}

#[tokio::test]
async fn a_place_that_was_taken_over_is_lost_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(&dir);
    let (instance, _listener) = take(&dir).unwrap();
    assert_eq!(instance.lost(), None);
    fs::remove_file(endpoint.as_path()).unwrap();
    assert!(instance.lost().unwrap().contains("socket"));
    let _other = UnixListener::bind(endpoint.as_path()).unwrap();
    assert!(instance.lost().unwrap().contains("socket"));
    drop(instance);
    assert!(endpoint.as_path().exists(), "it is another's");
}

#[tokio::test]
async fn a_withdrawn_instance_leaves_a_socket_with_a_reused_inode() {
    use std::os::unix::fs::MetadataExt as _;

    // Not every filesystem reuses inodes; those that do, do it soon.
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let path = endpoint(&dir).as_path().to_owned();
        let (mut instance, listener) = take(&dir).unwrap();
        let number = fs::metadata(&path).unwrap().ino();
        instance.withdraw();
        assert!(!path.exists());
        drop(listener);
        let _other = UnixListener::bind(&path).unwrap();
        let is_used_again = fs::metadata(&path).unwrap().ino() == number;
        drop(instance);
        assert!(path.exists(), "it is another's");
        if is_used_again {
            break;
        }
    }
}

#[tokio::test]
async fn a_replaced_directory_is_another_place() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("syncd");
    let endpoint: Endpoint = dir.join("s.sock").to_str().unwrap().parse().unwrap();
    let (instance, listener) = Instance::take(&endpoint, 0o600, None).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert!(instance.lost().unwrap().contains("directory"));
    let (next, _listens) = Instance::take(&endpoint, 0o600, None).unwrap();
    assert!(instance.lost().unwrap().contains("directory"));
    // The second daemon waits as long as the first one listens.
    let settled = tokio::time::timeout(std::time::Duration::from_millis(100), next.settle());
    assert!(cfg!(not(target_os = "linux")) || settled.await.is_err());
    drop(listener);
    next.settle().await.unwrap();
    drop(instance);
    assert_eq!(next.lost(), None, "the first one has left it alone");
}

#[tokio::test]
async fn files_are_touched_so_that_tmp_cleaners_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(&dir);
    let (instance, _listener) = Instance::take(&endpoint, 0o600, None).unwrap();
    instance.tokens().unwrap();
    let lock = fs::File::options().write(true).open(beside(&endpoint, ".pid")).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(11 * 86_400);
    lock.set_modified(long_ago).unwrap();
    let before = std::time::SystemTime::now();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(instance.lost(), None);
    for suffix in [".pid", "", ".tokens"] {
        let changed = fs::metadata(beside(&endpoint, suffix)).unwrap().modified().unwrap();
        assert!(changed > before, "{suffix:?}");
    }
}
