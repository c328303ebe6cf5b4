//! The in-process driver of the mq message-queue API.
