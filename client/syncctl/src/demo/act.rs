//! One program of the demo: its processes, their output, and the daemon's view of them.

use std::{
    io,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use syncd_client::Inspector;
use syncd_proto::v1;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::sleep,
};

use super::Stage;
use crate::{
    broker::reply,
    failure::Failure,
    text::{Ink, Screen, plain},
    worker::Role,
};

/// The description of an act.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) story: &'static str,
    /// The names of its objects.
    pub(super) objects: &'static [&'static str],
}

/// A running act. Dropping it kills its processes.
pub(super) struct Act<'a> {
    stage: &'a Stage,
    plot: &'static Plot,
    players: Vec<(String, Child)>,
    speech: JoinSet<()>,
    view: JoinSet<()>,
}

impl<'a> Act<'a> {
    /// Begins to print the holders and waiters of the plot's objects.
    pub(super) fn begin(stage: &'a Stage, plot: &'static Plot) -> Result<Self, Failure> {
        let (speech, view) = (JoinSet::new(), JoinSet::new());
        let mut act = Self { stage, plot, players: Vec::new(), speech, view };
        let screen = stage.screen;
        if !screen.json {
            screen.heading(plot.title)?;
            screen.line(screen.paint(Ink::Dim, plot.story))?;
            let voice = act.voice("syncd", Ink::Yellow);
            act.view.spawn(show(voice, stage.inspect.clone(), plot.objects));
        }
        Ok(act)
    }

    fn voice(&self, who: &str, ink: Ink) -> Voice {
        Voice { screen: self.stage.screen, began: self.stage.began, who: plain(who), ink }
    }

    /// Starts a process, and returns its pid.
    pub(super) fn enter(&mut self, name: &str, role: Role) -> Result<u32, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--socket")
            .arg(self.stage.endpoint.as_path())
            .args(["worker", &role.name(), name])
            .arg(self.stage.dir.path())
            // Open as long as this process lives: the holder waits for its end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let voice = self.voice(name, Ink::Cyan);
        if let Some(said) = child.stdout.take() {
            self.speech.spawn(async move {
                // The pipe breaks when the process is killed.
                let _ = voice.repeat(said).await;
            });
        }
        self.players.push((name.to_owned(), child));
        Ok(pid)
    }

    /// Waits until the act's first object has that many holders and waiters.
    pub(super) async fn until(&self, holders: usize, waiters: usize) -> Result<(), Failure> {
        let mut inspect = self.stage.inspect.clone();
        loop {
            let found = describe(&mut inspect, self.plot.objects[0]).await?;
            if found.is_some_and(|d| (d.holders.len(), d.waiters.len()) == (holders, waiters)) {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills the process with this index, as kill -9 does.
    pub(super) async fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let (name, mut child) = self.players.remove(index);
        self.voice("demo", Ink::Red).say(&format!("kill -9 {}", child.id().unwrap_or_default()));
        child.kill().await?;
        self.voice(&name, Ink::Red).say("(killed)");
        Ok(())
    }

    /// Waits until all processes have exited successfully.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        for (name, child) in &mut self.players {
            let status = child.wait().await?;
            if !status.success() {
                return Err(Failure::Unmet(format!("{name} failed: {status}")));
            }
        }
        while self.speech.join_next().await.is_some() {}
        Ok(())
    }
}

/// Prints lines with the time and a name before them.
struct Voice {
    screen: Screen,
    began: Instant,
    who: String,
    ink: Ink,
}

impl Voice {
    fn say(&self, text: &str) {
        if self.screen.json {
            return;
        }
        let time =
            self.screen.paint(Ink::Dim, format!("{:7.3}", self.began.elapsed().as_secs_f64()));
        let who = self.screen.paint(self.ink, format!("{:<10}", self.who));
        // With a closed standard output, the demo goes on to its checks.
        let _ = self.screen.line(format!("{time}  {who}  {text}"));
    }

    async fn repeat(&self, said: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut lines = BufReader::new(said).lines();
        while let Some(line) = lines.next_line().await? {
            self.say(&plain(&line));
        }
        Ok(())
    }
}

/// Prints holders and waiters whenever they have changed.
async fn show(voice: Voice, mut inspect: Inspector, objects: &[&str]) {
    let request = v1::WatchRequest::default();
    let Ok(mut events) = inspect.watch(request).await.map(tonic::Response::into_inner) else {
        return;
    };
    let mut shown = String::new();
    while let Ok(Some(_)) = events.message().await {
        // One query for all records that have arrived.
        while let Some(Ok(Some(_))) = events.message().now_or_never() {}
        let mut views = Vec::new();
        for object in objects {
            if let Ok(Some(found)) = describe(&mut inspect, object).await {
                views.extend(view(object, &found));
            }
        }
        let now = views.join("  ");
        if !now.is_empty() && now != shown {
            voice.say(&voice.screen.paint(Ink::Dim, format!("| {now}")));
            shown = now;
        }
    }
}

async fn describe(
    inspect: &mut Inspector,
    object: &str,
) -> Result<Option<v1::DescribeReply>, Failure> {
    let request = v1::DescribeRequest { namespace: String::new(), object: object.to_owned() };
    match inspect.describe(request).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        found => reply(async { found }).await.map(Some),
    }
}

fn view(object: &str, found: &v1::DescribeReply) -> Option<String> {
    let list = |list: Vec<&Option<v1::Process>>| {
        let name = |p: &&Option<v1::Process>| p.as_ref().map(|p| plain(&p.command));
        list.iter().filter_map(name).collect::<Vec<_>>().join(", ")
    };
    let holders = list(found.holders.iter().map(|h| &h.process).collect());
    let waiters = list(found.waiters.iter().map(|w| &w.process).collect());
    Some(match (&*holders, &*waiters) {
        ("", "") => return None,
        ("", waiting) => format!("{object}: waiting {waiting}"),
        (held, "") => format!("{object}: held by {held}"),
        (held, waiting) => format!("{object}: held by {held}; waiting {waiting}"),
    })
}
