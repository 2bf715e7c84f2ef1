//! Deliberate bugs, one at a time, to show that the tests detect them. They exist only with the
//! feature `sabotage`, for test builds; without it `sabotaged` is a constant false.

macro_rules! bugs {
    ($($(#[doc = $what:literal])* $bug:ident = $name:literal,)*) => {
        /// A bug that a broker could have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $what])* $bug,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// Its name in `SYNCD_SABOTAGE`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Bug::$bug => $name,)* }
            }

            /// What is wrong, in a line.
            #[must_use]
            pub fn what(self) -> &'static str {
                match self { $(Bug::$bug => concat!($($what),*).trim_start(),)* }
            }
        }
    };
}

bugs! {
    /// A notify dies with the waiter that had it.
    NotifyLostOnDeath = "notify-lost-on-death",
    /// After a restart the first token is the last one before it.
    TokenReused = "token-reused",
    /// A release is replayed twice from the journal.
    ReleaseReplayedTwice = "release-replayed-twice",
    /// A record of the journal is accepted whatever its checksum is.
    TornRecordAccepted = "torn-record-accepted",
    /// A decision is told before its record is in the journal.
    ToldBeforeRecord = "told-before-record",
    /// An unowned permit is lost with a session that ends before its grant was sent.
    PermitLost = "permit-lost",
    /// The last waiter is served first.
    LastComeFirst = "last-come-first",
    /// A waiter that is granted when its time-out is due is told of both.
    TimeOutAfterGrant = "time-out-after-grant",
    /// The holds of a process that died stay held.
    DeathKeepsTheLock = "death-keeps-the-lock",
    /// The next owner isn't told of an abandonment.
    AbandonmentUntold = "abandonment-untold",
    /// After a restart an RLock's depth is one too low.
    DepthOffByOne = "depth-off-by-one",
    /// A barrier lets its parties pass when one is missing.
    BarrierOneShort = "barrier-one-short",
    /// A resumed session's waiters go to the end of each queue.
    PlacesLost = "places-lost",
    /// A resumed session is told that its last request didn't arrive, which is then handled twice.
    RequestDoneTwice = "request-done-twice",
    /// An owner with several waits counts as one with a single wait: deadlocks are reported where
    /// there are none.
    DeadlockWhereNone = "deadlock-where-none",
    /// A notify of all puts each waiter into the lock's queue twice.
    RequeuedTwice = "requeued-twice",
    /// After a restart a living process keeps its holds only for the grace.
    LivingHolderLoses = "living-holder-loses",
    /// A session can be resumed without its secret.
    AnySecretWillDo = "any-secret-will-do",
    /// A Cancel with `give_back` is handled as one without.
    CancelKeepsTheGrant = "cancel-keeps-the-grant",
    /// A resumed session isn't sent the first message that it missed.
    ResumeSkipsAMessage = "resume-skips-a-message",
}

/// Whether this bug is active: the one [chosen](choose) last, or else the one that
/// `SYNCD_SABOTAGE` names.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn sabotaged(bug: Bug) -> bool {
    chosen() == Some(bug)
}

/// False: this build has no deliberate bugs.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
#[must_use]
pub const fn sabotaged(_: Bug) -> bool {
    false
}

/// Activates a bug, or none, in this process.
#[cfg(feature = "sabotage")]
pub fn choose(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(NONE, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
}

/// The active bug.
///
/// # Panics
/// If `SYNCD_SABOTAGE` names no bug.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn chosen() -> Option<Bug> {
    let mut chosen = CHOSEN.load(std::sync::atomic::Ordering::Relaxed);
    if chosen == UNREAD {
        let told = std::env::var("SYNCD_SABOTAGE").ok().filter(|told| !told.is_empty());
        let bug = told.map(|told| {
            let bug = Bug::ALL.iter().find(|bug| bug.name() == told);
            *bug.unwrap_or_else(|| panic!("SYNCD_SABOTAGE: there is no bug {told:?}"))
        });
        choose(bug);
        chosen = CHOSEN.load(std::sync::atomic::Ordering::Relaxed);
    }
    Bug::ALL.get(usize::from(chosen)).copied()
}

#[cfg(feature = "sabotage")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(UNREAD);
#[cfg(feature = "sabotage")]
const UNREAD: u8 = u8::MAX;
#[cfg(feature = "sabotage")]
const NONE: u8 = u8::MAX - 1;
