//! `watch`: prints the daemon's log records, a line each.

use std::time::{Duration, Instant};

use serde::Serialize;
use syncd_proto::{Endpoint, v1};
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use crate::{
    broker::{inspect, reply},
    failure::Failure,
    show::{seconds, who},
    text::{Ink, Screen, complain, plain, time_of_day},
    view::WatchEvent,
};

/// How long to wait for the next daemon: as long as clients do by default.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between attempts to connect to it.
const PAUSE: Duration = Duration::from_millis(50);

/// A line of `--json` that reports a gap.
#[derive(Serialize)]
struct Away {
    kind: &'static str,
    /// The length of the gap, in seconds.
    away_s: f64,
    text: &'static str,
}

/// The message for a gap.
const GAP: &str = "the daemon was away: events may have been missed";

/// `watch`: returns when the daemon stays away, or the reader falls behind.
pub async fn watch(
    endpoint: &Endpoint,
    screen: Screen,
    request: v1::WatchRequest,
) -> Result<(), Failure> {
    let mut inspect = inspect(endpoint).await?;
    let mut events = reply(inspect.watch(request.clone())).await?;
    loop {
        let why = match events.message().await.map_err(Failure::from) {
            Ok(Some(event)) => {
                let event = WatchEvent::from(event);
                match screen.json {
                    true => print(&screen, &event)?,
                    false => screen.line(line(&screen, &event))?,
                }
                continue;
            }
            Ok(None) => Failure::Unreachable("the daemon has exited".into()),
            Err(why @ Failure::Unreachable(_)) => why,
            Err(why) => return Err(why),
        };
        let since = Instant::now();
        events = match timeout(PATIENCE, again(endpoint, &request)).await {
            Ok(events) => events,
            Err(_) => return Err(why),
        };
        let away_s = since.elapsed().as_secs_f64();
        complain(format_args!("{GAP} (for {away_s:.1} s)"));
        if screen.json {
            print(&screen, &Away { kind: "daemon_away", away_s, text: GAP })?;
        }
    }
}

/// Connects to the next daemon, and watches it.
async fn again(endpoint: &Endpoint, request: &v1::WatchRequest) -> Streaming<v1::WatchEvent> {
    loop {
        if let Ok(mut inspect) = inspect(endpoint).await
            && let Ok(events) = reply(inspect.watch(request.clone())).await
        {
            return events;
        }
        sleep(PAUSE).await;
    }
}

/// Prints a value as one line of JSON, even on a terminal.
fn print(screen: &Screen, what: &impl Serialize) -> Result<(), Failure> {
    screen.line(serde_json::to_string(what).map_err(std::io::Error::from)?)?;
    Ok(())
}

fn line(screen: &Screen, event: &WatchEvent) -> String {
    let ink = match event.kind.as_str() {
        "granted" | "set" | "barrier_passed" => Ink::Green,
        "queued" | "waiting" => Ink::Yellow,
        "abandoned" | "poisoned" | "deadlock" | "session_lost" | "barrier_broken" => Ink::Red,
        _ => Ink::Cyan,
    };
    let mut text = format!(
        "{}  {}",
        screen.paint(Ink::Dim, time_of_day(event.time_us)),
        screen.paint(ink, format!("{:<20}", event.kind)),
    );
    let mut word = |word: String| text += &format!("  {word}");
    if let Some(object) = &event.object {
        word(screen.paint(Ink::Bold, plain(object)));
    }
    if let Some(process) = &event.process {
        word(who(process));
    }
    if let Some(token) = event.token {
        word(screen.paint(Ink::Dim, format!("token {token}")));
    }
    if let Some(cause) = event.cause {
        word(screen.paint(Ink::Red, cause));
    }
    for edge in &event.cycle {
        word(format!(
            "{} has waited for {} for {},",
            who(&edge.process),
            plain(&edge.object),
            seconds(edge.waited_s)
        ));
    }
    text.trim_end_matches([',', ' ']).to_owned()
}
