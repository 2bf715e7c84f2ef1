//! Their names. Never here: how they are made.

macro_rules! bugs {
    ($($(#[doc = $what:literal])* $name:ident,)*) => {
        /// A fault that is made on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $what])* $name,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$name,)*];
        }
    };
}

bugs! {
    /// A resumed client doesn't send again what hadn't arrived.
    ResumeSendsNothing,
    /// A resumed client sends again what had arrived, too.
    ResumeSendsTwice,
    /// A resumed client claims to have got a message more than it has.
    ResumeSkipsAMessage,
    /// A resumed client leaves out the releases.
    ResumeForgetsReleases,
    /// A client that comes back to a restarted daemon makes a bare release again, under a new id.
    ReleasesAnewAfterARestart,
    /// A client gives its session up when its daemon is gone.
    GivesUpAtARestart,
    /// The time without a daemon doesn't count.
    TimeAwayForgotten,
    /// The daemon that comes back counts the grace of those who haven't come back.
    RestartCountsTheGrace,
    /// One that was given up isn't named by the next, and stays.
    GivenUpIsKept,
    /// Replies that come again are taken for new ones.
    RepliesTwice,
    /// A Cancel that gives a grant back isn't sent.
    CancelNotSent,
    /// It is sent, and doesn't say to give back.
    CancelKeepsTheGrant,
    /// More is acknowledged than was received.
    AckAhead,
    /// The client tries to resume for longer than the daemon's grace.
    PatienceTooLong,
    /// A stream goes on to be heard after another one took over.
    SupersededIsHeard,
    /// What is told to a disconnected session isn't kept for its return.
    DisconnectedIsNotTold,
    /// One of two requests overtakes the other.
    OutOfOrder,
    /// A process's death isn't noticed.
    DeathUnnoticed,
    /// A dead holder's lock is granted on, and the next owner isn't told.
    DeathNotGrantedOn,
    /// A resumed session's grace runs on.
    StaleGrace,
    /// A disconnected session is lost at once.
    NoGrace,
    /// A bare release is lost.
    UnownedPermitLost,
    /// Whose hold is taken away isn't told.
    HoldLostUntold,
    /// Nobody is told of an abandonment.
    AbandonmentUntold,
    /// Two owners are told of it.
    AbandonmentTwice,
    /// A notify whose target is gone is lost.
    NotifyDiesWithItsTarget,
    /// A notify wakes one more than it says.
    NotifyDoubled,
    /// A time-out comes too early.
    TimeOutEarly,
    /// A Goodbye is answered and not heeded.
    GoodbyeUnheeded,
    /// An event's set is answered and not done.
    SetUndone,
    /// A barrier lets its parties through before the last has come.
    BarrierEarly,
}
