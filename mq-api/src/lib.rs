//! One message-queue API over pluggable drivers: types, driver traits and the delivery engine.
