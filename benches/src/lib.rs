//! Side by side with the raw clients and the peers: rounds interleaved in one run, every message checked.

pub mod core;
pub mod payload;
pub mod rounds;
pub mod table;
