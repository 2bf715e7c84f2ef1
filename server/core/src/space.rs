//! TO BE WRITTEN (public face, fixed):
//!
//! pub struct Config { pub grace: Duration (10 s), pub linger: Duration (60 s), pub limits: Limits }
//! pub struct Limits { pub sessions: usize, pub objects: usize, pub waiters: usize, pub unacknowledged: usize }   // name length: 255 bytes, const MAX_NAME
//! pub enum Output { Send { session: SessionId, message: Message }, Event(Event) }
//! pub struct Deadline { pub at: Time, pub reason: Reason }
//! impl Space {
//!   pub fn new(config: Config, first_event: u64) -> Space      // numbers start at first_event
//!   // in
//!   pub fn handle_open(&mut self, now: Time, process: Process) -> Result<SessionId, Box<Error>>
//!   pub fn handle_request(&mut self, now: Time, session: SessionId, id: RequestId, ack: u64, request: Request)
//!       // unknown session: no output at all. Replies come as Output::Send (quiet ones only if refused).
//!       // Goodbye: Done reply, then the session is gone.
//!   pub fn handle_disconnect(&mut self, now: Time, session: SessionId)      // starts the grace
//!   pub fn handle_resume(&mut self, now: Time, session: SessionId, received: u64) -> Result<RequestId, Box<Error>>
//!       // Ok(last request id handled); then every unacknowledged Message with seq > received comes out again through poll_output, in order
//!   pub fn handle_lost(&mut self, now: Time, session: SessionId, cause: Cause) -> bool   // died, kicked, misbehaved...; a SessionEnd message comes out first; false: no such session
//!   pub fn handle_force_release(&mut self, now: Time, object: ObjectId) -> Option<Vec<Holder>>
//!   pub fn handle_timeout(&mut self, now: Time)       // everything due
//!   // out
//!   pub fn poll_output(&mut self) -> Option<Output>
//!   pub fn poll_timeout(&self) -> Option<Deadline>
//!   // getters
//!   pub fn totals(&self) -> Totals
//!   pub fn find(&self, text: &str) -> Option<ObjectId>         // name, "#id" or key
//!   pub fn list(&self, now: Time, query: ListQuery { prefix: &str, busy: bool, after: Option<&str>, limit }) -> (Vec<ObjectView>, Option<String> /*next page*/)
//!   pub fn describe(&self, now: Time, object: ObjectId) -> Option<ObjectDetail>
//!   pub fn sessions(&self, now: Time) -> Vec<SessionView>;  pub fn session(&self, now, id) -> Option<SessionView>
//!   pub fn is_empty(&self) -> bool    // nothing that would be missed: no session, no object
//! }
