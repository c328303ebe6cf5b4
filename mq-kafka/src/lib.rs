//! The Apache Kafka driver of the mq message-queue API.
