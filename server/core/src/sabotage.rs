//! Bugs that are made on purpose, one at a time, so that it can be shown that the tests would see
//! them. Without the feature `sabotage`, which nothing but a test's own build turns on, there are
//! none, and asking for one costs nothing.

macro_rules! bugs {
    ($($(#[doc = $what:literal])* $bug:ident = $name:literal,)*) => {
        /// A bug that a broker could have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $what])* $bug,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// What `SYNCD_SABOTAGE` calls it.
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
    /// A release is made twice as the journal is replayed.
    ReleaseReplayedTwice = "release-replayed-twice",
    /// A record of the journal is believed whatever its checksum is.
    TornRecordAccepted = "torn-record-accepted",
    /// What was decided is told at once, and in the journal when the next record comes.
    ToldBeforeRecord = "told-before-record",
    /// A permit that is nobody's is lost with the waiter that dies before it hears of its grant.
    PermitLost = "permit-lost",
    /// Of those who wait, the last to come is served first.
    LastComeFirst = "last-come-first",
    /// A time-out that is due as its waiter is granted is told, too.
    TimeOutAfterGrant = "time-out-after-grant",
    /// What a process held that died stays held.
    DeathKeepsTheLock = "death-keeps-the-lock",
    /// The next owner isn't told that the one before died.
    AbandonmentUntold = "abandonment-untold",
    /// After a restart an RLock is held once less than it was taken.
    DepthOffByOne = "depth-off-by-one",
    /// A barrier lets its parties pass when one is missing.
    BarrierOneShort = "barrier-one-short",
    /// A session that resumes goes to the end of each queue.
    PlacesLost = "places-lost",
    /// A session that resumes is told that its last request hasn't come, and is served it again.
    RequestDoneTwice = "request-done-twice",
    /// An owner who waits for several things at once is taken to wait for one: deadlocks are found
    /// where there are none.
    DeadlockWhereNone = "deadlock-where-none",
    /// Who is woken with all others is put into the lock's queue twice.
    RequeuedTwice = "requeued-twice",
    /// After a restart a living process has no more than the grace for what it holds.
    LivingHolderLoses = "living-holder-loses",
    /// A session is resumed by whoever knows its number.
    AnySecretWillDo = "any-secret-will-do",
    /// A Cancel that gives a grant back is taken for one that doesn't.
    CancelKeepsTheGrant = "cancel-keeps-the-grant",
    /// A session that resumes isn't told the first thing that it missed.
    ResumeSkipsAMessage = "resume-skips-a-message",
}

/// Whether this bug is made: the one that was [chosen](choose) last, or else the one that
/// `SYNCD_SABOTAGE` names.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn sabotaged(bug: Bug) -> bool {
    chosen() == Some(bug)
}

/// Never.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
#[must_use]
pub const fn sabotaged(_: Bug) -> bool {
    false
}

/// In all of this process this bug is made from here on, or none.
#[cfg(feature = "sabotage")]
pub fn choose(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(NONE, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
}

/// The bug that is made.
///
/// # Panics
/// If `SYNCD_SABOTAGE` names none.
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
