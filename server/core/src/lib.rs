//! The broker as a pure state machine.
//!
//! One rule: **mutate once, then drain**. Call one `handle_*` method of [`Space`] with
//! the time, then [`Space::take_step`] for the call and all that came of it, and
//! [`Space::poll_timeout`] to learn when to call [`Space::handle_timeout`]. Getters take
//! `&self` and change nothing. The same calls with the same times give the same
//! outputs: there is no I/O here, no clock, no chance, no thread, and no wire format.
//!
//! A `Space` is one namespace: its sessions, its objects, and one stream of records.

mod barrier;
mod condition;
mod deadline;
mod deadlock;
mod event;

mod id;
mod inspect;
mod list;
mod message;
mod object;
mod record;
mod request;
mod semlock;
mod session;
mod space;
mod step;
mod view;
mod waiter;

pub use deadline::{Deadline, Reason};
pub use id::{Handle, ObjectId, Owner, RequestId, SessionId, Time, Token};
pub use inspect::ListQuery;
pub use message::{
    Abandonment, Answer, Attachment, Body, Cause, Edge, Error, ErrorKind, Grant, Holder, Label,
    Message, Party, Process, Reply, State,
};
pub use object::MAX_NAME;
pub use record::{Record, RecordKind};
pub use request::{Acquire, Class, Create, KeyError, ObjectKey, Request, SEM_VALUE_MAX, Spec};
pub use space::{Config, Limits, Space};
pub use step::{Input, Output, Step};
pub use view::{ObjectDetail, ObjectView, SessionView, Totals, WaiterView};
