//! The Redis Streams driver of the mq message-queue API.
