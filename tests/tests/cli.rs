//! What every subcommand of syncctl says, as text and as JSON, of a daemon with a holder and a
//! waiter. How `syncctl run` treats its command is the crate's own matter
//! (`client/syncctl/tests/run.rs`).

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use syncd_tests::{
    daemon::{Daemon, WATCHDOG, eventually, program},
    process_driver::{ActorProcess, Face},
    script::Needs,
};

const NO_DAEMON: i32 = 69;

/// A daemon, somebody who holds `backup`, and somebody who waits for it.
struct Scene {
    holder: ActorProcess,
    waiter: ActorProcess,
    daemon: Daemon,
}

impl Scene {
    fn set() -> Self {
        let daemon = Daemon::start(&[]);
        let (program, arguments) = (program("actor"), vec!["blocking".into()]);
        let face = Face { ability: Needs::Api, program, arguments };
        let actor = || {
            let mut actor = ActorProcess::start(&face, &daemon, "");
            actor.tell("object backup Lock").unwrap();
            actor.tell("0 acquire backup").unwrap();
            actor
        };
        let mut holder = actor();
        assert!(holder.hear(0, WATCHDOG).unwrap().starts_with("granted"));
        let waiter = actor();
        let waits = || daemon.describe("", "backup").filter(|found| found.waiters.len() == 1);
        eventually("the waiter", waits);
        Scene { holder, waiter, daemon }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = syncctl(arguments);
        command.env("SYNCD_SOCKET", self.daemon.socket());
        command
    }

    /// What it prints, when it succeeds.
    fn text(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        assert!(stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What it complains of, and with which code.
    fn complaint(&self, arguments: &[&str]) -> (i32, String) {
        complaint(self.command(arguments))
    }
}

fn syncctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("ctl"));
    command.args(arguments).env_remove("SYNCD_SOCKET").stdin(Stdio::null());
    command
}

fn complaint(mut command: Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

fn assert_tells(text: &str, words: &[&str]) {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} isn't in\n{text}");
}

#[test]
fn status_counts() {
    let scene = Scene::set();
    let pid = scene.daemon.pid();
    let text = scene.text(&["status"]);
    assert_tells(&text, &[&format!("pid {pid}"), "2 sessions", "1 object", "1 hold", "1 waiter"]);
    let json = scene.json(&["status"]);
    assert_eq!(json["pid"], pid);
    assert_eq!(
        (&json["sessions"], &json["holds"], &json["waiters"]),
        (&2.into(), &1.into(), &1.into())
    );
    assert!(json["uptime_s"].is_number() && json["memory_bytes"].is_u64());
    assert_eq!(json["counters"]["grants"], 1);
}

#[test]
fn ls_names_objects_and_their_holders() {
    let scene = Scene::set();
    let pid = scene.holder.pid();
    assert_tells(&scene.text(&["ls"]), &["backup", "Lock", "held", &format!("pid {pid}")]);
    let json = scene.json(&["ls", "back", "--busy"]);
    assert_eq!(json[0]["name"], "backup");
    assert_eq!((&json[0]["holders"], &json[0]["waiters"]), (&1.into(), &1.into()));
    assert_eq!(json[0]["holder"]["pid"], pid);
    assert_eq!(scene.json(&["ls", "other"]), Value::Array(vec![]));
}

#[test]
fn show_names_who_holds_and_who_waits() {
    let scene = Scene::set();
    let (holder, waiter) = (scene.holder.pid(), scene.waiter.pid());
    let text = scene.text(&["show", "backup"]);
    assert_tells(&text, &["Held by", &holder.to_string(), "Waiting", &waiter.to_string()]);
    let json = scene.json(&["show", "backup"]);
    assert_eq!(
        (&json["holders"][0]["pid"], &json["waiters"][0]["pid"]),
        (&holder.into(), &waiter.into())
    );
    assert!(json["holders"][0]["held_s"].is_number());
    assert_eq!(json["waiters"][0]["timeout_in_s"], Value::Null);
    let by_id = format!("#{}", json["object"]["id"]);
    assert_eq!(scene.json(&["show", &by_id])["object"]["name"], "backup");
    let (code, why) = scene.complaint(&["show", "nothing"]);
    assert_eq!(code, 1);
    assert_tells(&why, &["syncctl: ", "nothing"]);
}

#[test]
fn sessions_tell_what_each_holds_and_waits_for() {
    let scene = Scene::set();
    assert_tells(
        &scene.text(&["sessions"]),
        &["connected", "backup", &scene.waiter.pid().to_string()],
    );
    let json = scene.json(&["sessions"]);
    let of = |pid: u32| json.as_array().unwrap().iter().find(|s| s["pid"] == pid).unwrap().clone();
    assert_eq!(of(scene.holder.pid())["holding"][0], "backup");
    assert_eq!(of(scene.waiter.pid())["waiting"][0], "backup");
}

#[test]
fn release_asks_to_be_forced_and_names_who_lost_it() {
    let mut scene = Scene::set();
    let (code, why) = scene.complaint(&["release", "backup"]);
    assert_eq!(code, 1);
    assert_tells(&why, &["backup", "--force"]);
    let pid = scene.holder.pid();
    let json = scene.json(&["release", "--force", "backup"]);
    assert_eq!(json["released"][0]["pid"], pid);
    let heard = scene.waiter.hear(0, WATCHDOG).unwrap();
    assert_tells(&heard, &[&format!("abandoned by pid:{pid} forced")]);
    assert_tells(
        &scene.text(&["release", "--force", "backup"]),
        &[&scene.waiter.pid().to_string()],
    );
}

#[test]
fn kick_ends_a_session_by_process_or_number() {
    let mut scene = Scene::set();
    let pid = scene.holder.pid();
    assert_tells(&scene.text(&["kick", &pid.to_string()]), &["kicked", &format!("pid {pid}")]);
    let heard = scene.waiter.hear(0, WATCHDOG).unwrap();
    assert_tells(&heard, &[&format!("abandoned by pid:{pid} kicked")]);
    let session = scene.json(&["sessions"])[0]["session"].to_string();
    let json = scene.json(&["kick", &format!("id:{session}")]);
    assert_eq!(json["kicked"][0]["holds"], 1);
    let (code, why) = scene.complaint(&["kick", "id:17"]);
    assert_eq!(code, 1);
    assert_tells(&why, &["id:17"]);
}

#[test]
fn watch_tells_events_as_they_happen() {
    let mut scene = Scene::set();
    for (arguments, granted) in
        [(&["watch", "back"][..], "granted"), (&["watch", "--json"], "\"kind\":\"granted\"")]
    {
        let watch = scene.command(arguments).stdout(Stdio::piped()).spawn();
        let mut watch = watch.unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        // It sees what comes after it has begun: make something happen until it has.
        let (sender, first) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in lines.by_ref().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = eventually("a grant, seen", || {
            scene.text(&["release", "--force", "backup"]);
            for actor in [&mut scene.holder, &mut scene.waiter] {
                actor.hear(0, std::time::Duration::from_millis(20));
                actor.tell("1 try backup").unwrap();
            }
            first.try_iter().find(|line| line.contains(granted))
        });
        assert_tells(&line, &["backup"]);
        watch.kill().unwrap();
        watch.wait().unwrap();
        reader.join().unwrap();
    }
}

#[test]
fn run_holds_the_lock_for_its_command() {
    let scene = Scene::set();
    let script = "test -n \"$SYNCD_TOKEN\" && echo $SYNCD_LOCK";
    assert_eq!(scene.text(&["run", "free", "--", "sh", "-c", script]), "free\n");
    let (code, why) = scene.complaint(&["run", "backup", "--no-wait", "--", "true"]);
    assert_eq!(code, 75);
    assert_tells(&why, &["backup", &scene.holder.pid().to_string()]);
}

#[test]
fn bench_measures_and_says_so_in_both_ways() {
    let scene = Scene::set();
    let json = scene.json(&["bench"]);
    assert!(json.as_object().is_some_and(|figures| figures.len() > 2), "{json}");
}

#[test]
fn the_demo_checks_itself_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let mut demo = syncctl(&["demo"]);
    demo.env("HOME", home.path()).env("TMPDIR", home.path()).env_remove("XDG_RUNTIME_DIR");
    let Output { status, stdout, stderr } = demo.output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{text}\n{}", String::from_utf8_lossy(&stderr));
    assert_tells(&text, &["abandoned"]);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "left behind");
}

#[test]
fn every_subcommand_teaches_by_an_example() {
    for name in [
        "status", "ls", "show", "sessions", "watch", "run", "release", "kick", "bench", "demo",
        "daemon",
    ] {
        let help = syncctl(&["help", name]).output().unwrap();
        assert!(help.status.success());
        assert_tells(&String::from_utf8(help.stdout).unwrap(), &["Example", "syncctl"]);
    }
}

#[test]
fn completions_are_a_script_for_the_shell() {
    for (shell, word) in [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")] {
        let script = syncctl(&["completions", shell]).output().unwrap();
        assert!(script.status.success());
        assert_tells(&String::from_utf8(script.stdout).unwrap(), &[word, "syncctl"]);
    }
}

#[test]
fn without_a_daemon_looking_says_so_and_starts_none() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for arguments in [
        &["status"][..],
        &["ls"],
        &["show", "x"],
        &["sessions"],
        &["watch"],
        &["release", "--force", "x"],
        &["kick", "1"],
    ] {
        for json in [&[][..], &["--json"]] {
            let mut command = syncctl(&[arguments, json].concat());
            command.env("SYNCD_SOCKET", &socket);
            let (code, why) = complaint(command);
            assert_eq!(code, NO_DAEMON, "{arguments:?}: {why}");
            assert_tells(&why, &["no daemon", socket.to_str().unwrap()]);
        }
    }
    assert!(!socket.exists());
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    for arguments in [&["nonsense"][..], &["show"], &["run", "x"], &["ls", "--nonsense"]] {
        assert_eq!(complaint(syncctl(arguments)).0, 2, "{arguments:?}");
    }
}
