//! The futures that wait for a session's replies: those of calls, and the attendant.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::driver::{Inner, State};

/// A waiter. Dropping it removes it, and withdraws its request if `withdraw` is set.
pub(super) struct Waiting<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) id: u64,
    pub(super) withdraw: bool,
}

impl Waiting<'_> {
    pub(super) async fn until<T>(
        &mut self,
        mut until: impl FnMut(&mut State) -> Option<T> + Send,
    ) -> T {
        let (inner, id) = (self.inner, self.id);
        poll_fn(move |cx| {
            if !inner.facts.is_ours() {
                // In a forked child, where no runtime polls this future.
                return Poll::Pending;
            }
            inner.with(|state| {
                if let Some(done) = until(state) {
                    return Poll::Ready(done);
                }
                inner.attend(state, id, cx);
                until(state).map_or(Poll::Pending, Poll::Ready)
            })
        })
        .await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.inner.facts.is_ours() {
            self.inner.with(|state| {
                if self.withdraw {
                    state.protocol.handle_withdraw(self.id);
                    self.inner.drive(state, false);
                }
                self.inner.leave(state, self.id);
            });
        }
    }
}

/// A task that leads as long as any future waits or anything is unsent.
pub(super) struct Attendant {
    pub(super) inner: Arc<Inner>,
    pub(super) id: u64,
    pub(super) over: bool,
}

impl Future for Attendant {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { inner, id, over } = &mut *self;
        inner.with(|state| {
            inner.lead(state, *id, cx);
            if !state.waiting.is_empty() || state.is_unsent() {
                return Poll::Pending;
            }
            inner.leave(state, *id);
            // Under the mutex, so that a later waiter sees that there is no attendant.
            state.attended = false;
            *over = true;
            Poll::Ready(())
        })
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if !self.over && self.inner.facts.is_ours() {
            self.inner.with(|state| {
                state.attended = false;
                self.inner.leave(state, self.id);
                // The runtime shuts down, so don't spawn another attendant in it.
                state.attend = false;
            });
        }
    }
}
