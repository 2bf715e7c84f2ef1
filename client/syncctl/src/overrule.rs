//! `release --force` and `kick`: ending holds, and printing whose they were.

use serde_json::json;
use syncd_client::Inspector;
use syncd_proto::v1;
use tonic::Response;

use crate::{
    broker::reply,
    failure::Failure,
    show::{holders, who},
    text::{Ink, Screen, count, plain},
    view::{Holder, Process},
};

/// Why `release` requires `--force`.
pub fn unforced(name: &str) -> Failure {
    Failure::Refused(format!(
        "{name:?} not released: the holder would go on as if it held the lock, beside the next \
         owner. See who holds it with 'syncctl show', then use --force, or end the holder's \
         session with 'syncctl kick'"
    ))
}

/// `release --force`
pub async fn release(
    mut inspect: Inspector,
    screen: Screen,
    request: v1::ForceReleaseRequest,
) -> Result<(), Failure> {
    let name = plain(&request.object);
    let released = reply(inspect.force_release(request)).await?.released;
    let released: Vec<_> = released.into_iter().map(Holder::from).collect();
    if screen.json {
        return Ok(screen.json(&json!({ "released": released }))?);
    }
    if released.is_empty() {
        return Ok(screen.line(format!("nobody held {name}: nothing was changed"))?);
    }
    screen.line(format!("{} released by force; it was held by", screen.paint(Ink::Bold, name)))?;
    Ok(screen.table(&holders(&released))?)
}

/// `kick`: `session` is an id or a pid, optionally with the prefix `id:` or `pid:`.
pub async fn kick(
    mut inspect: Inspector,
    screen: Screen,
    namespace: &str,
    session: &str,
) -> Result<(), Failure> {
    let namespace = namespace.to_owned();
    let all = reply(async { inspect.all_sessions(&namespace).await.map(Response::new) }).await?;
    let mut kicked = Vec::new();
    for id in chosen(session, &all)? {
        let request = v1::KickRequest { namespace: namespace.clone(), session: id };
        let reply = reply(inspect.kick(request)).await?;
        kicked.push((Process { session: id, ..reply.process.into() }, reply.holds));
    }
    if screen.json {
        let list = kicked.iter().map(|(p, holds)| json!({ "process": p, "holds": holds }));
        return Ok(screen.json(&json!({ "kicked": list.collect::<Vec<_>>() }))?);
    }
    for (process, holds) in kicked {
        let who = who(&process);
        let abandoned = count(holds.into(), "hold");
        screen.line(format!("kicked session {}, {who}: {abandoned} abandoned", process.session))?;
    }
    Ok(())
}

/// The ids of the sessions that `text` names: one by id, or all of a process by pid.
fn chosen(text: &str, sessions: &[v1::Session]) -> Result<Vec<u64>, Failure> {
    let refuse = |why: &str| Err(Failure::Refused(format!("{text:?}: {why}")));
    let (by_id, by_pid, number) = match text.split_once(':') {
        Some(("id", number)) => (true, false, number),
        Some(("pid", number)) => (false, true, number),
        _ => (true, true, text),
    };
    let Ok(number) = number.parse::<u64>() else {
        return refuse("not a session; use an id or a pid from 'syncctl sessions'");
    };
    let of_pid = |s: &&v1::Session| s.process.as_ref().is_some_and(|p| u64::from(p.pid) == number);
    let ids = |list: Vec<&v1::Session>| list.into_iter().map(|s| s.id).collect::<Vec<_>>();
    let id = ids(sessions.iter().filter(|s| by_id && s.id == number).collect());
    let pid = ids(sessions.iter().filter(|s| by_pid && of_pid(s)).collect());
    match (id.is_empty(), pid.is_empty()) {
        (true, true) => refuse("no such session in this namespace; see 'syncctl sessions'"),
        (false, false) if id != pid => {
            refuse("ambiguous: one session's id and another's pid; use 'id:N' or 'pid:N'")
        }
        (false, _) => Ok(id),
        (true, false) => Ok(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_by_id_or_by_pid() {
        let session = |id, pid| v1::Session {
            id,
            process: Some(v1::Process { pid, ..Default::default() }),
            ..Default::default()
        };
        let all = [session(1, 70), session(2, 70), session(3, 1), session(4, 4)];
        assert_eq!(chosen("2", &all).unwrap(), [2]);
        assert_eq!(chosen("70", &all).unwrap(), [1, 2]);
        assert_eq!(chosen("4", &all).unwrap(), [4]);
        assert_eq!(chosen("id:1", &all).unwrap(), [1]);
        assert_eq!(chosen("pid:1", &all).unwrap(), [3]);
        for nobody in ["1", "5", "", "x:1", "-1"] {
            assert!(chosen(nobody, &all).is_err(), "{nobody}");
        }
    }
}
