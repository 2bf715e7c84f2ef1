//! A face of syncd as a [`Driver`]: a real daemon, and a process per session that is told what
//! to do by lines (see `tests/conformance/README.md`). Nothing here sleeps for a while: what
//! must come is waited for, and who waits is seen in the daemon's queues.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use syncd_proto::v1::{DescribeReply, Process};

use crate::{
    conformance::Driver,
    daemon::{Daemon, WATCHDOG},
    script::{Actor, Case, Kind, Line, Needs, Object, Op, Step},
};

/// Of most faces. Each case has its own daemon.
const NAMESPACE: &str = "conformance";

/// A command that is one session: it gets the namespace as its last argument.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Face {
    pub ability: Needs,
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// A daemon, and the sessions of the case that is played.
#[derive(Debug)]
pub struct ProcessDriver {
    face: Face,
    namespace: &'static str,
    start: fn() -> Daemon,
    objects: Vec<Object>,
    keys: HashMap<String, String>,
    sessions: BTreeMap<char, ActorProcess>,
    /// By process, also of those that are dead.
    letters: HashMap<u32, char>,
    /// A new one for each case; outlives the sessions.
    daemon: Option<Daemon>,
}

/// One session's process.
#[derive(Debug)]
pub struct ActorProcess {
    /// To be told.
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    reader: JoinHandle<()>,
    heard: VecDeque<(u64, String)>,
    keys: Vec<(String, String)>,
    declared: HashSet<String>,
}

impl ActorProcess {
    /// Starts a face of a daemon, in a namespace.
    ///
    /// # Panics
    /// If it can't.
    pub fn start(face: &Face, daemon: &Daemon, namespace: &str) -> Self {
        let mut process = Command::new(&face.program)
            .args(&face.arguments)
            .arg(namespace)
            .env("SYNCD_SOCKET", daemon.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", face.program.display()));
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().expect("piped");
        let (sender, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let (heard, keys, declared) = Default::default();
        ActorProcess { process, stdin, lines, reader, heard, keys, declared }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Tells it something.
    ///
    /// # Errors
    /// If it has gone.
    pub fn tell(&mut self, line: &str) -> Result<(), String> {
        let stdin = self.stdin.as_mut().ok_or("it is gone")?;
        writeln!(stdin, "{line}").map_err(|error| format!("it is gone: {error}"))
    }

    /// What one of its owners says next; `None` if it says nothing for so long.
    pub fn hear(&mut self, owner: u64, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.heard.iter().position(|(whose, _)| *whose == owner) {
                return self.heard.remove(at).map(|(_, outcome)| outcome);
            }
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).ok()?;
            self.file(&line);
        }
    }

    /// Takes in what it has said so far.
    fn listen(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.file(&line);
        }
    }

    fn file(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("key", rest)) => {
                let (name, key) = rest.split_once(' ').expect("key NAME KEY");
                self.keys.push((name.into(), key.into()));
            }
            Some((owner, outcome)) if owner.parse::<u64>().is_ok() => {
                self.heard.push_back((owner.parse().expect("just tried"), outcome.into()));
            }
            _ => panic!("an actor says {line:?}"),
        }
    }

    /// Nobody can say anything any more: neither it nor a child of its.
    pub fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }

    /// As `kill -9`; and reaps it.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.stdin = None;
    }
}

impl Drop for ActorProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ProcessDriver {
    /// For a face.
    pub fn new(face: Face) -> Self {
        Self::of(face, NAMESPACE, || Daemon::start(&[]))
    }

    /// For a face that has a namespace and a daemon of its own.
    pub fn of(face: Face, namespace: &'static str, start: fn() -> Daemon) -> Self {
        ProcessDriver {
            face,
            namespace,
            start,
            daemon: None,
            objects: vec![],
            keys: HashMap::new(),
            sessions: BTreeMap::new(),
            letters: HashMap::new(),
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a case has begun")
    }

    fn session(&mut self, name: char) -> &mut ActorProcess {
        self.sessions.entry(name).or_insert_with(|| {
            let daemon = self.daemon.as_ref().expect("a case has begun");
            let process = ActorProcess::start(&self.face, daemon, self.namespace);
            self.letters.insert(process.pid(), name);
            process
        })
    }

    /// Declares an object, and the lock of a Condition, before a session first uses it.
    fn declare(&mut self, session: char, name: &str) -> Result<(), String> {
        let object = self.objects.iter().find(|o| o.name == name).expect("declared").clone();
        if let Kind::Condition { lock } = &object.kind {
            self.declare(session, lock)?;
        }
        let by = match self.keys.get(name) {
            Some(key) => format!(" by {key}"),
            None => String::new(),
        };
        let process = self.session(session);
        if process.declared.insert(name.to_owned()) {
            process.tell(&format!("object {object}{by}"))?;
        }
        Ok(())
    }

    /// With letters for processes.
    fn lettered(&self, outcome: &str) -> String {
        let word = |word: &str| match word.strip_prefix("pid:").map(str::parse) {
            Some(Ok(pid)) => self.letters.get(&pid).map_or(word.into(), char::to_string),
            _ => word.to_owned(),
        };
        outcome.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }

    fn hear(&mut self, actor: Actor) -> Option<String> {
        let process = self.sessions.get_mut(&actor.session)?;
        let outcome = process.hear(actor.owner, WATCHDOG);
        self.keys.extend(process.keys.drain(..));
        outcome.map(|outcome| self.lettered(&outcome))
    }

    fn letter(&self, process: Option<&Process>) -> String {
        let pid = process.map_or(0, |process| process.pid);
        self.letters.get(&pid).map_or(format!(" pid:{pid}"), |letter| format!(" {letter}"))
    }

    fn describe(&self, object: &str) -> Option<DescribeReply> {
        let anonymous = self.objects.iter().any(|o| o.name == object && o.anonymous);
        // A token of the client crate has the key between colons.
        let key = self.keys.get(object).map(|key| key.split(':').nth(2).unwrap_or(key));
        self.daemon().describe(self.namespace, key.filter(|_| anonymous).unwrap_or(object))
    }

    fn text(&self, detail: &DescribeReply) -> String {
        let object = detail.object.clone().unwrap_or_default();
        let list = |before: &str, letters: String| match letters.is_empty() {
            true => letters,
            false => format!(" {before}{letters}"),
        };
        let held: String = detail.holders.iter().map(|h| self.letter(h.process.as_ref())).collect();
        let waits: String =
            detail.waiters.iter().map(|w| self.letter(w.process.as_ref())).collect();
        let is_sem = matches!(&*object.kind, "Lock" | "RLock" | "Semaphore" | "BoundedSemaphore");
        let (what, broken) = if is_sem { ("free", " poisoned") } else { ("value", " broken") };
        let unowned =
            if detail.unowned > 0 { format!(" unowned {}", detail.unowned) } else { "".into() };
        let broken = if object.broken { broken } else { "" };
        let (held, waits) = (list("held", held), list("waits", waits));
        format!("{what} {}{unowned}{held}{waits}{broken}", object.value)
    }

    fn kick(&self, name: char) {
        let pid = self.sessions[&name].pid();
        let sessions = self.daemon().sessions(self.namespace);
        let of_pid =
            |s: &&_| matches!(s, syncd_proto::v1::Session { process: Some(p), .. } if p.pid == pid);
        self.daemon().kick(self.namespace, sessions.iter().find(of_pid).expect("its session").id);
    }
}

impl Driver for ProcessDriver {
    fn ability(&self) -> Needs {
        self.face.ability
    }

    fn begin(&mut self, case: &Case) {
        self.daemon = Some((self.start)());
        self.objects = case.objects.clone();
    }

    fn perform(&mut self, line: &Line) -> Result<(), String> {
        match &line.step {
            Step::Do(actor, op) => {
                if let Some(object) = op.object() {
                    self.declare(actor.session, object)?;
                }
                let ask = format!("{} {}", actor.owner, line.operation());
                if let (Op::Valid { .. }, [(_, wanted)]) = (op, &line.outcomes[..]) {
                    // The news is on its way: ask until it has come.
                    let end = Instant::now() + WATCHDOG;
                    loop {
                        self.session(actor.session).tell(&ask)?;
                        let found = self.hear(*actor).ok_or("no word of it")?;
                        if found == *wanted || Instant::now() > end {
                            let heard = (actor.owner, found);
                            self.session(actor.session).heard.push_front(heard);
                            return Ok(());
                        }
                    }
                }
                self.session(actor.session).tell(&ask)
            }
            Step::Dies(name) => {
                self.session(*name).kill();
                Ok(())
            }
            Step::Kicked(name) => {
                self.kick(*name);
                Ok(())
            }
            Step::Forced(object) => {
                self.daemon().force_release(self.namespace, object);
                Ok(())
            }
            Step::Advance(_) => Ok(()),
            Step::Shows(..) => unreachable!("the runner asks for it"),
        }
    }

    fn outcome(&mut self, actor: Actor) -> Option<String> {
        self.hear(actor)
    }

    fn settle(&mut self, waiting: &BTreeMap<char, usize>) -> Result<(), String> {
        let end = Instant::now() + WATCHDOG;
        loop {
            let sessions = self.daemon().sessions(self.namespace);
            let mut odd = None;
            for (&name, process) in &mut self.sessions {
                process.listen();
                if let Some((owner, outcome)) = process.heard.pop_front() {
                    let outcome = self.lettered(&outcome);
                    return Err(format!("besides, {name}{owner} {outcome}"));
                }
                let of_pid = |s: &&syncd_proto::v1::Session| {
                    s.process.as_ref().is_some_and(|p| p.pid == process.pid())
                };
                let waits = sessions.iter().find(of_pid).map_or(0, |session| session.waits);
                let wanted = waiting.get(&name).copied().unwrap_or(0);
                if waits as usize != wanted {
                    odd = Some(format!("{name} waits with {waits} requests, not {wanted}"));
                }
            }
            match odd {
                Some(why) if Instant::now() > end => return Err(why),
                Some(_) => thread::sleep(Duration::from_millis(1)),
                None => return Ok(()),
            }
        }
    }

    fn shows(&mut self, object: &str, wanted: &str) -> String {
        let end = Instant::now() + WATCHDOG;
        loop {
            let found = self.describe(object);
            let found = found.map_or("nothing".into(), |detail| self.text(&detail));
            if found == wanted || Instant::now() > end {
                return found;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
