//! Plain data: what one capture knows. No I/O, no BPF, no symbolizer.
//!
//! [`Profile`] is the contract between capture and everything else: whatever is right of
//! `aggregate` in the data's way works from a `Profile` alone, without privileges, on another machine.
//! Durations are integer nanoseconds and say so in their names (`wait_total_ns`); what is not known
//! is `None`, never 0.

mod blame;
mod capture;
mod futex;
mod hist;
mod lock;
mod owner;
mod profile;
mod queue;
mod roots;
mod stack;

pub use blame::{
    Account, Blame, BlameGap, Chain, Conservation, Evidence, Holder, HolderStates, Pair, Party, Unattributed,
    accounts,
};
pub use capture::{
    LockId, RawBlame, RawCapture, RawFrames, RawHolder, RawLock, RawParty, RawStack, RawWait, SiteId,
    SlabPlace,
};
pub use futex::{
    FutexCall, FutexClass, FutexKind, FutexLock, FutexOp, FutexPlace, FutexValue, FutexWords, LockPlace,
    ParkToken, Releaser, Side,
};
pub use hist::{BUCKETS, Hist, bucket_of, bucket_range};
pub use lock::{Family, HoldStats, InFlight, Lock, LockKind, Site, WaitStats, Wakes};
pub use owner::{Owner, Owners, Thread};
pub use profile::{
    Backend, EndReason, EventCounts, HookLine, Loss, Meta, Named, Naming, Profile, SCHEMA, Target, TargetKind,
};
pub use queue::{MeanHold, Queue, Wanted};
pub use roots::{Cause, Root, roots};
pub use stack::{Frame, Function, Space, Stack, StackRef};
