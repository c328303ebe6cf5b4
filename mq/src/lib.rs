//! One message-queue API, five backends, the same behaviour on each.
