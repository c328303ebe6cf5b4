//! What the design says that each of the project's own drivers can do.

use mq_api::{
    Capabilities,
    Support::{self, BestEffort, Emulated, Native, Unsupported},
};

/// One column of the table.
struct Column {
    shared: Support,
    shared_latest: Support,
    delay: Support,
    receipt_offset: Support,
    sparse_acks: Support,
    durable_attempts: Support,
    commit_fencing: Support,
    topic_id: Support,
    sticky_assignment: Support,
    offset_at: Support,
    tombstone: Support,
    list_topics: Support,
    retention: Support,
    add_partitions: Support,
}

/// Returns what a driver of this project must declare; none for a third party's. Limits and what the table does not
/// name (replication, idempotent sends, receipts of delayed messages) are the driver's own to say.
pub(crate) fn expected(backend: &str) -> Option<Capabilities> {
    let (name, column) = match backend {
        "memory" => ("memory", MEMORY),
        "kafka" => ("kafka", KAFKA),
        "rocketmq" => ("rocketmq", ROCKETMQ),
        "amqp" => ("amqp", AMQP),
        "redis" => ("redis", REDIS),
        _ => return None,
    };
    let mut can = Capabilities::new(name);
    can.partitioned = Native;
    can.reader = Native;
    can.seek = Native;
    can.lag = Native;
    can.pause = Native;
    can.broadcast = Native;
    can.shared = column.shared;
    can.shared_latest = column.shared_latest;
    can.delay = column.delay;
    can.receipt_offset = column.receipt_offset;
    can.sparse_acks = column.sparse_acks;
    can.durable_attempts = column.durable_attempts;
    can.commit_fencing = column.commit_fencing;
    can.topic_id = column.topic_id;
    can.sticky_assignment = column.sticky_assignment;
    can.offset_at = column.offset_at;
    can.tombstone = column.tombstone;
    can.list_topics = column.list_topics;
    can.retention_age = column.retention;
    can.retention_bytes = column.retention;
    can.add_partitions = column.add_partitions;
    Some(can)
}

const MEMORY: Column = Column {
    shared: Native,
    shared_latest: Native,
    delay: Native,
    receipt_offset: Native,
    sparse_acks: Native,
    durable_attempts: Native,
    commit_fencing: Native,
    topic_id: Native,
    sticky_assignment: Native,
    offset_at: Native,
    tombstone: Native,
    list_topics: Native,
    retention: Native,
    add_partitions: Native,
};

const KAFKA: Column = Column {
    shared: Unsupported,
    shared_latest: Unsupported,
    delay: Unsupported,
    durable_attempts: Emulated,
    ..MEMORY
};

const ROCKETMQ: Column = Column {
    shared_latest: Unsupported,
    sparse_acks: Unsupported,
    durable_attempts: Unsupported,
    commit_fencing: BestEffort,
    topic_id: Unsupported,
    sticky_assignment: Unsupported,
    tombstone: Emulated,
    retention: Unsupported,
    ..MEMORY
};

const AMQP: Column = Column {
    shared: Emulated,
    shared_latest: Emulated,
    delay: Emulated,
    receipt_offset: Unsupported,
    durable_attempts: Emulated,
    offset_at: Emulated,
    tombstone: Emulated,
    list_topics: Emulated,
    add_partitions: Emulated,
    ..MEMORY
};

const REDIS: Column = Column {
    delay: Emulated,
    durable_attempts: Emulated,
    offset_at: Emulated,
    tombstone: Emulated,
    retention: Emulated,
    add_partitions: Emulated,
    ..MEMORY
};
