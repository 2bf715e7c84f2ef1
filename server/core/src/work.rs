//! Work that one call must not finish alone: what is left of it when the call has done its
//! share, and how later calls go on with it.
//!
//! Each call may do so much ([`Limits::step`](crate::Limits::step)); what wakes, moves or ends
//! many spends it one by one and puts the rest on the agenda. While something is there,
//! [`Space::poll_timeout`] is due at once; each piece goes to the end of the line, so that
//! none keeps the others waiting.
//!
//! What the rest is about was decided by the first call: who waits behind the number of a
//! decision is no part of it. So nobody can make it longer, and nobody meanwhile overtakes.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Cause, FencingToken, Input, ObjectId, Output, RequestId, SessionId, Time,
    arena::Idx,
    object::{Kind, Object},
    space::Space,
};

/// What is left to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// An object's queue: permits that are free, refusals or answers that were decided.
    Serve(At),
    /// A notify: move `left` more of those who waited before the record `before`.
    Notify(Notify),
    /// A session's last Detach from an object.
    LetGo { session: SessionId, request: RequestId, quiet: bool, object: Idx<Object> },
    /// The end of a session.
    End { session: SessionId, cause: Cause },
    /// Holds of an object that are taken by force, up to a token.
    Force { at: At, last: FencingToken },
    /// A resumed session is sent what it has missed.
    Resend { session: SessionId },
    /// Abandonments at an object that is gone: nobody will be told of them.
    Discard { untold: VecDeque<Arc<Abandonment>> },
}

/// An object that may be gone by the time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct At {
    pub ix: Idx<Object>,
    pub id: ObjectId,
}

/// A notify under way. `answer`: to which request its count goes; a notify that is passed on
/// has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Notify {
    pub condition: At,
    pub before: u64,
    pub left: u32,
    pub count: u32,
    pub answer: Option<(SessionId, RequestId)>,
}

/// Whether a task is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Over,
    /// Its share of this call is used up.
    More,
}

impl Task {
    /// The session whose request this is, and whose next request waits for it.
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
    /// Takes one piece of work from what this call may do. False: it has done its share.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        may
    }

    pub(crate) fn at(&self, ix: Idx<Object>) -> At {
        At { ix, id: self.objects[ix].id }
    }

    /// The object is the one that was meant, and not another in its place.
    pub(crate) fn is_there(&self, at: At) -> bool {
        self.objects.get(at.ix).is_some_and(|object| object.id == at.id)
    }

    /// Begins a task, and leaves to later calls what is too much for this one.
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

    /// A request of the session takes several steps, and isn't over: the next one must wait
    /// for [`Output::Ready`].
    pub fn is_working(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.working)
    }

    /// Serves an object's queue in later calls.
    pub(crate) fn serve_later(&mut self, ix: Idx<Object>) {
        if !std::mem::replace(&mut self.objects[ix].served_later, true) {
            let at = self.at(ix);
            self.agenda.add(Task::Serve(at));
        }
    }

    /// Goes on with what earlier calls have left, until this call has done its share.
    /// [`Space::handle_timeout`] does it, too.
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

    /// Gives those at an object's queue what is theirs.
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
