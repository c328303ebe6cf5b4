//! Side by side with the raw clients and the peers.
