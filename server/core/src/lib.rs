//! The broker as a pure state machine.
//!
//! One rule: **mutate once, then drain**. Call one `handle_*` method of [`Space`] with
//! the time, then call [`Space::poll_output`] until it is empty, and
//! [`Space::poll_timeout`] to learn when to call [`Space::handle_timeout`]. Getters take
//! `&self` and change nothing. The same calls with the same times give the same
//! outputs: there is no I/O here, no clock, no chance, no thread, and no wire format.
//!
//! A `Space` is one namespace: its sessions, its objects, and one stream of events.

mod barrier;
mod condition;
mod deadline;
mod deadlock;
mod event;
mod flag;
mod id;
mod inspect;
mod list;
mod message;
mod object;
mod request;
mod semlock;
mod session;
mod space;
mod view;
mod waiter;

pub use deadline::{Deadline, Reason};
pub use event::{Event, EventKind};
pub use id::{Handle, ObjectId, Owner, RequestId, SessionId, Time, Token};
pub use inspect::ListQuery;
pub use message::{
    Abandonment, Answer, Attachment, Body, Cause, Edge, Error, ErrorKind, Grant, Holder, Label,
    Message, Party, Process, Reply, State,
};
pub use object::MAX_NAME;
pub use request::{Acquire, Class, Create, KeyError, ObjectKey, Request, SEM_VALUE_MAX, Spec};
pub use space::{Config, Limits, Output, Space};
pub use view::{ObjectDetail, ObjectView, SessionView, Totals, WaiterView};
