//! The stream of one Watch.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use syncd_core::Record;
use syncd_proto::v1::WatchEvent;
use tonic::Status;

use crate::{
    broker::Broker,
    convert,
    namespace::Namespace,
    registry::{QuotaError, User},
    watch::WatchEnd,
};

/// A watch, counted in its user's quota.
pub(crate) struct Watching(Arc<User>);

impl Watching {
    pub fn begin(user: Arc<User>) -> Result<Self, QuotaError> {
        user.watches.take(1)?;
        Ok(Self(user))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watches.give_back(1);
    }
}

/// A stream of a namespace's new records.
pub(crate) struct Watch {
    broker: Arc<Broker>,
    namespace: Arc<Namespace>,
    key: usize,
    /// Copied from the namespace's ring, and not yet yielded.
    records: VecDeque<Arc<Record>>,
    is_over: bool,
    _place: Watching,
}

impl Watch {
    pub fn new(
        broker: Arc<Broker>,
        namespace: Arc<Namespace>,
        key: usize,
        place: Watching,
    ) -> Self {
        let records = VecDeque::new();
        Self { broker, namespace, key, records, is_over: false, _place: place }
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { broker, namespace, key, records, is_over, .. } = &mut *self;
        if *is_over {
            return Poll::Ready(None);
        }
        if records.is_empty()
            && let Err(end) = ready!(namespace.watches.poll(*key, records, cx))
        {
            *is_over = true;
            let kept = broker.settings.limits.watch_bytes;
            return Poll::Ready(Some(Err(match end {
                WatchEnd::Overtaken => Status::data_loss(format!(
                    "read too slowly: the daemon keeps only {kept} bytes of events: watch again"
                )),
                WatchEnd::Closed if broker.is_closing() => {
                    Status::unavailable("the daemon is shutting down")
                }
                WatchEnd::Closed => Status::aborted("the namespace has ended: watch again"),
            })));
        }
        let record = records.pop_front();
        Poll::Ready(record.map(|record| {
            let time = broker.wall_clock(record.at);
            Ok(convert::watch_event(&record, time))
        }))
    }
}

impl Drop for Watch {
    /// Ends the watch, under the lock: that may be what kept the namespace from being retired.
    fn drop(&mut self) {
        let Self { broker, namespace, key, .. } = self;
        let unwatched = broker.enter(namespace, broker.now(), None, |_, _| {
            namespace.watches.unwatch(*key);
        });
        if unwatched.is_err() {
            namespace.watches.unwatch(*key);
        }
    }
}
