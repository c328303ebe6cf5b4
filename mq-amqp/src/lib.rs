//! The RabbitMQ driver of the mq message-queue API.
