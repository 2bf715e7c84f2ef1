//! `watch`: the daemon's events, a line each.

use syncd_client::Inspector;
use syncd_proto::v1;

use crate::{
    broker::reply,
    failure::Failure,
    show::{seconds, who},
    text::{Ink, Screen, plain, time_of_day},
    view::WatchEvent,
};

/// `watch`: until the daemon leaves or the reader falls behind.
pub async fn watch(
    mut inspect: Inspector,
    screen: Screen,
    request: v1::WatchRequest,
) -> Result<(), Failure> {
    let mut events = reply(inspect.watch(request)).await?;
    while let Some(event) = events.message().await? {
        let event = WatchEvent::from(event);
        match screen.json {
            // Never indented: a line is an event.
            true => screen.line(serde_json::to_string(&event).map_err(std::io::Error::from)?)?,
            false => screen.line(line(&screen, &event))?,
        }
    }
    Err(Failure::Unreachable("the daemon has left".into()))
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
            "{} waits for {} since {},",
            who(&edge.process),
            plain(&edge.object),
            seconds(edge.waited_s)
        ));
    }
    text.trim_end_matches([',', ' ']).to_owned()
}
