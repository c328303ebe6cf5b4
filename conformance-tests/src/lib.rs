//! The conformance suite that every mq driver passes.
