//! Starts, stops, kills, freezes and cuts real brokers for tests.
