//! The futures that wait at a session: for a reply, for a change of its state, and on behalf of
//! those who might not be polled. Never here: which of them reads.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use syncd_proto::v1::{client_message::Request, server_message::Message};

use super::{CallError, Session, Undo, driver::Driver};
use crate::error::SessionLost;

/// A request, and the wait for its reply.
///
/// Dropping it withdraws the request.
pub(crate) struct Reply<'a> {
    pub(super) session: &'a Arc<Session>,
    pub(super) phase: Phase,
    pub(super) undo: Option<Undo>,
}

pub(super) enum Phase {
    New(Option<Request>),
    /// Waits for room, under this number.
    Crowded(Option<Request>, u64),
    Sent(u64),
    Over,
}

impl Reply<'_> {
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.phase, Phase::Sent(_) | Phase::Over)
    }
}

impl Future for Reply<'_> {
    type Output = Result<Message, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if !this.session.is_ours() {
            this.phase = Phase::Over;
            return Poll::Ready(Err(SessionLost::forked().into()));
        }
        let phase = &mut this.phase;
        let polled = this.session.with(|driver| {
            if let Phase::New(request) = phase
                && driver.is_crowded()
            {
                *phase = Phase::Crowded(request.take(), driver.draw_id());
            }
            if let Phase::Crowded(request, ticket) = phase {
                ready!(driver.poll_room(*ticket, cx));
                *phase = Phase::New(request.take());
            }
            if let Phase::New(request) = phase
                && let Some(request) = request.take()
            {
                *phase = Phase::Sent(driver.enqueue(request));
            }
            let Phase::Sent(id) = *phase else { unreachable!("polled after it was ready") };
            driver.poll_reply(id, cx)
        });
        let reply = ready!(polled);
        this.phase = Phase::Over;
        Poll::Ready(match reply {
            Ok(Message::Error(error)) => Err(CallError::Refused(Box::new(error))),
            Ok(message) => Ok(message),
            Err(why) => Err(why.into()),
        })
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if self.session.is_ours() {
            match self.phase {
                Phase::New(_) | Phase::Over => {}
                Phase::Crowded(_, ticket) => self.session.with(|driver| driver.leave(ticket)),
                Phase::Sent(id) => self.session.with(|driver| driver.withdraw(id, self.undo)),
            }
        }
    }
}

/// Waits, and reads meanwhile, until something is so.
pub(super) struct Wait<'a, F> {
    pub(super) session: &'a Arc<Session>,
    pub(super) id: u64,
    pub(super) until: F,
}

impl<T, F: FnMut(&mut Driver) -> Option<T> + Unpin> Future for Wait<'_, F> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        this.session.with(|driver| {
            driver.attend(this.id, cx);
            (this.until)(driver).map_or(Poll::Pending, Poll::Ready)
        })
    }
}

impl<F> Drop for Wait<'_, F> {
    fn drop(&mut self) {
        if self.session.is_ours() {
            self.session.with(|driver| driver.leave(self.id));
        }
    }
}

/// The task that leads when several tasks wait, or when something could not be sent at once:
/// it is always polled when it is woken, as somebody's future need not be.
pub(super) struct Attendant {
    session: Arc<Session>,
    id: u64,
}

impl Attendant {
    pub(super) fn new(session: Arc<Session>) -> Self {
        let id = session.with(Driver::draw_id);
        Self { session, id }
    }
}

impl Future for Attendant {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.session.with(|driver| {
            driver.lead(self.id, cx);
            if !driver.is_idle() {
                return Poll::Pending;
            }
            driver.leave(self.id);
            // Under the mutex: who comes to wait from now on finds that it is gone.
            self.session.inner.attended.store(false, Relaxed);
            Poll::Ready(())
        })
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if self.session.is_ours() {
            self.session.with(|driver| {
                driver.leave(self.id);
                self.session.inner.attended.store(false, Relaxed);
            });
        }
    }
}
