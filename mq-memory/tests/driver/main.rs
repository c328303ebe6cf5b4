//! What the driver promises, through the driver traits.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on may panic, in its helpers too"
)]

mod connect;
mod delay;
mod faults;
mod groups;
mod leases;
mod log;
mod shared;
mod support;
