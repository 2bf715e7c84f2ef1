//! Work that is too much for one call, and how later calls continue it.
//!
//! Each call may do a limited number of pieces ([`Limits::step`](crate::Limits::step)). A task that
//! wakes, moves or ends many things spends them one by one, and puts the rest on the agenda. While
//! the agenda isn't empty, [`Space::poll_timeout`] is due at once; a task that continues goes to
//! its end, so that no task starves another.
//!
//! The first call decides the extent of a task: waiters with a later number than the decision's
//! aren't part of it. So later requests can neither lengthen a task nor overtake it.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Cause, FencingToken, Input, ObjectId, Output, RequestId, SessionId, Time,
    arena::Idx,
    object::{Kind, Object},
    space::Space,
};

/// Unfinished work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Serves an object's queue: grants free permits, sends decided answers and refusals.
    Serve(At),
    /// Continues a notify.
    Notify(Notify),
    /// Continues a session's last Detach from an object.
    LetGo { session: SessionId, request: RequestId, quiet: bool, object: Idx<Object> },
    /// Continues the end of a session.
    End { session: SessionId, cause: Cause },
    /// Continues a release by force of an object's holds, up to a token.
    Force { at: At, last: FencingToken },
    /// Continues to send a resumed session what it has missed.
    Resend { session: SessionId },
    /// Discards the untold abandonments of a removed object.
    Discard { untold: VecDeque<Arc<Abandonment>> },
}

/// An object that may have been removed meanwhile.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct At {
    pub ix: Idx<Object>,
    pub id: ObjectId,
}

/// A notify in progress: moves `left` more waiters whose numbers are below `before`. `answer` is the
/// request that gets the count; a notify that is passed on has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Notify {
    pub condition: At,
    pub before: u64,
    pub left: u32,
    pub count: u32,
    pub answer: Option<(SessionId, RequestId)>,
}

/// Whether a task is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Over,
    /// This call's budget is used up.
    More,
}

impl Task {
    /// The session whose request this task is, and whose next request has to wait.
    fn asked_by(&self) -> Option<SessionId> {
        match self {
            Task::Notify(notify) => notify.answer.map(|(session, _)| session),
            Task::LetGo { session, .. } => Some(*session),
            Task::Serve(_)
            | Task::End { .. }
            | Task::Force { .. }
            | Task::Resend { .. }
            | Task::Discard { .. } => None,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Agenda(VecDeque<Task>);

impl Agenda {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, task: Task) {
        self.0.push_back(task);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.0.iter()
    }
}

impl Space {
    /// Spends one piece of this call's budget. False if it is used up.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        may
    }

    pub(crate) fn at(&self, ix: Idx<Object>) -> At {
        At { ix, id: self.objects[ix].id }
    }

    /// Whether the object still exists. Its index may have been reused, so the id must match.
    pub(crate) fn is_there(&self, at: At) -> bool {
        self.objects.get(at.ix).is_some_and(|object| object.id == at.id)
    }

    /// Begins a task, and puts what is left of it on the agenda.
    pub(crate) fn begin(&mut self, now: Time, mut task: Task) -> Progress {
        let progress = self.go_on(now, &mut task);
        if progress == Progress::More {
            if let Some(s) = task.asked_by().and_then(|session| self.sessions.get_mut(&session)) {
                s.working = true;
            }
            self.agenda.add(task);
        }
        progress
    }

    /// Whether a request of the session takes several steps and is unfinished: the next one must
    /// wait for [`Output::Ready`].
    pub fn is_working(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.working)
    }

    /// Puts the serving of an object's queue on the agenda, once.
    pub(crate) fn serve_later(&mut self, ix: Idx<Object>) {
        if !std::mem::replace(&mut self.objects[ix].served_later, true) {
            let at = self.at(ix);
            self.agenda.add(Task::Serve(at));
        }
    }

    /// Continues work of earlier calls, up to the limit of one call. [`Space::handle_timeout`] does
    /// so, too.
    pub fn handle_work(&mut self, now: Time) {
        self.call(now, Input::Work);
        self.work(now);
    }

    pub(crate) fn work(&mut self, now: Time) {
        while self.budget > 0
            && let Some(mut task) = self.agenda.0.pop_front()
        {
            let progress = self.go_on(now, &mut task);
            if let Task::Notify(Notify { condition, .. }) = &task
                && self.is_there(*condition)
            {
                // The lock may have become free since the notify.
                self.wake(now, self.lock_of(condition.ix));
            }
            if progress == Progress::More {
                self.agenda.add(task);
            } else if let Some(session) = task.asked_by()
                && let Some(s) = self.sessions.get_mut(&session)
            {
                s.working = false;
                self.outputs.push(Output::Ready { session });
            }
        }
    }

    /// Serves an object's queue.
    fn serve(&mut self, now: Time, ix: Idx<Object>) {
        match self.objects[ix].kind {
            Kind::SemLock(_) => self.wake(now, ix),
            Kind::Event(event) => self.tell_woken(ix, event.woken_before),
            Kind::Barrier(_) => self.serve_barrier(now, ix),
            Kind::Condition(_) => unreachable!("its waiters are served at its lock"),
        }
    }

    fn go_on(&mut self, now: Time, task: &mut Task) -> Progress {
        match task {
            Task::Serve(at) => {
                if self.is_there(*at) {
                    self.objects[at.ix].served_later = false;
                    self.serve(now, at.ix);
                }
                Progress::Over
            }
            Task::Notify(notify) => self.go_on_notifying(now, notify),
            Task::LetGo { session, request, quiet, object } => {
                self.go_on_letting_go(now, *session, *request, *quiet, *object)
            }
            Task::End { session, cause } => self.go_on_ending(now, *session, *cause),
            Task::Force { at, last } => self.go_on_forcing(now, *at, *last),
            Task::Resend { session } => self.go_on_resending(now, *session),
            Task::Discard { untold } => self.go_on_discarding(untold),
        }
    }
}
