//! The broker as a pure state machine.
//!
//! One rule: **mutate once, then drain**. Call one `handle_*` method of [`Space`] with
//! the time, then [`Space::take_step`] for the call and its outputs, and
//! [`Space::poll_timeout`] for the time of the next [`Space::handle_timeout`]. Getters take
//! `&self` and change nothing. The same calls with the same times have the same
//! outputs: there is no I/O here, no clock, no randomness, no thread, and no wire format.
//!
//! A `Space` is one namespace: its sessions, its objects, and one stream of records.

mod arena;
mod barrier;
#[cfg(test)]
mod bounds;
mod check;
mod condition;
mod config;
mod deadline;
mod deadlock;
mod error;
mod event;

mod hold;
mod id;
mod image;
mod inspect;
mod message;
mod object;
mod outgoing;
mod record;
mod reference;
mod request;
#[doc(hidden)]
pub mod sabotage;
mod semlock;
mod session;
mod share;
mod space;
mod step;
mod undoable;
mod view;
mod waiter;
mod work;

pub use config::{Config, Limits};
pub use deadline::{Deadline, Reason};
pub use error::{Cycle, Edge, Error, ErrorKind};
pub use id::{FencingToken, Handle, ObjectId, Owner, RequestId, SessionId, Time};
pub use image::Constant;
pub use inspect::ListQuery;
pub use message::{
    Abandonment, Answer, Attachment, Body, Cause, Grant, Holder, Label, Message, Party, Process,
    Reply, State,
};
pub use object::MAX_NAME;
pub use record::{Record, RecordKind};
pub use request::{Acquire, Class, Create, KeyError, ObjectKey, Request, SEM_VALUE_MAX, Spec};
pub use share::{Share, fair_limit};
pub use space::Space;
pub use step::{Input, Output, Step};
pub use view::{Holders, ObjectDetail, ObjectView, SessionView, Totals, WaiterView};
