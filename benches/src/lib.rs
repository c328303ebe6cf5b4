//! Side by side with the raw clients and the peers: rounds interleaved in one run, every message checked.

pub mod core;
pub mod payload;
#[cfg(feature = "redis")]
pub mod redis;
pub mod rounds;
pub mod table;
