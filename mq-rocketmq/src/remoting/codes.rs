//! Numbers of the remoting protocol.

/// Codes of requests that a client sends.
pub mod request {
    /// Reads messages of one queue, waiting for new ones if asked to.
    pub const PULL_MESSAGE: i32 = 11;
    /// Reads the stored offset of a group.
    pub const QUERY_CONSUMER_OFFSET: i32 = 14;
    /// Stores the offset of a group.
    pub const UPDATE_CONSUMER_OFFSET: i32 = 15;
    /// Creates a topic, or overwrites the settings of an existing one.
    pub const UPDATE_AND_CREATE_TOPIC: i32 = 17;
    /// Reads the counters of a broker.
    pub const GET_BROKER_RUNTIME_INFO: i32 = 28;
    /// Looks up the offset that belongs to a store time.
    pub const SEARCH_OFFSET_BY_TIMESTAMP: i32 = 29;
    /// Reads the offset that the next message of a queue will get.
    pub const GET_MAX_OFFSET: i32 = 30;
    /// Reads the offset of the oldest retained message of a queue.
    pub const GET_MIN_OFFSET: i32 = 31;
    /// Announces the groups of a client.
    pub const HEART_BEAT: i32 = 34;
    /// Takes a client out of a group.
    pub const UNREGISTER_CLIENT: i32 = 35;
    /// Gives a message back for a later delivery.
    pub const CONSUMER_SEND_MSG_BACK: i32 = 36;
    /// Commits or rolls back a half message.
    pub const END_TRANSACTION: i32 = 37;
    /// Lists the client ids of a consumer group.
    pub const GET_CONSUMER_LIST_BY_GROUP: i32 = 38;
    /// Locks queues for one member of a group.
    pub const LOCK_BATCH_MQ: i32 = 41;
    /// Frees locked queues.
    pub const UNLOCK_BATCH_MQ: i32 = 42;
    /// Stores a key and value in a nameserver.
    pub const PUT_KV_CONFIG: i32 = 100;
    /// Reads a key of a nameserver.
    pub const GET_KV_CONFIG: i32 = 101;
    /// Removes a key from a nameserver.
    pub const DELETE_KV_CONFIG: i32 = 102;
    /// Asks a nameserver which brokers hold a topic.
    pub const GET_ROUTE_BY_TOPIC: i32 = 105;
    /// Asks a nameserver for all brokers.
    pub const GET_BROKER_CLUSTER_INFO: i32 = 106;
    /// Creates or changes a consumer group.
    pub const UPDATE_AND_CREATE_SUBSCRIPTION_GROUP: i32 = 200;
    /// Reads offsets and times of all queues of a topic.
    pub const GET_TOPIC_STATS_INFO: i32 = 202;
    /// Lists all topics that a nameserver knows.
    pub const GET_ALL_TOPIC_LIST: i32 = 206;
    /// Deletes a consumer group.
    pub const DELETE_SUBSCRIPTION_GROUP: i32 = 207;
    /// Reads the progress of a consumer group.
    pub const GET_CONSUME_STATS: i32 = 208;
    /// Deletes a topic from a broker.
    pub const DELETE_TOPIC_IN_BROKER: i32 = 215;
    /// Deletes a topic from a nameserver.
    pub const DELETE_TOPIC_IN_NAMESRV: i32 = 216;
    /// Asks a broker to reset the offsets of a group.
    pub const INVOKE_BROKER_TO_RESET_OFFSET: i32 = 222;
    /// Stores one message.
    pub const SEND_MESSAGE_V2: i32 = 310;
    /// Stores several messages of one queue.
    pub const SEND_BATCH_MESSAGE: i32 = 320;
    /// Reads the settings of a topic.
    pub const GET_TOPIC_CONFIG: i32 = 351;
    /// Reads messages as [`PULL_MESSAGE`], on a queue of its own in the broker.
    pub const LITE_PULL_MESSAGE: i32 = 361;
    /// Asks a broker which queues a member may pop.
    pub const QUERY_ASSIGNMENT: i32 = 400;
    /// Chooses between pull and POP for a group.
    pub const SET_MESSAGE_REQUEST_MODE: i32 = 401;
    /// Takes messages with a lease.
    pub const POP_MESSAGE: i32 = 200_050;
    /// Settles one popped message.
    pub const ACK_MESSAGE: i32 = 200_051;
    /// Renews or shortens the lease of a popped message.
    pub const CHANGE_MESSAGE_INVISIBLE_TIME: i32 = 200_053;
    /// Settles several popped messages.
    pub const BATCH_ACK_MESSAGE: i32 = 200_151;
}

/// Codes of requests that a server sends to a client.
pub mod inbound {
    /// Asks for the outcome of a half message.
    pub const CHECK_TRANSACTION_STATE: i32 = 39;
    /// Tells that the members of a group changed.
    pub const NOTIFY_CONSUMER_IDS_CHANGED: i32 = 40;
    /// Tells a consumer to go on at other offsets.
    pub const RESET_CONSUMER_CLIENT_OFFSET: i32 = 220;
    /// Asks for the progress of a consumer.
    pub const GET_CONSUMER_STATUS_FROM_CLIENT: i32 = 221;
    /// Asks for a description of a consumer.
    pub const GET_CONSUMER_RUNNING_INFO: i32 = 307;
    /// Hands one message to a consumer, outside of its queue.
    pub const CONSUME_MESSAGE_DIRECTLY: i32 = 309;
}

/// Codes of responses.
pub mod response {
    /// The request was carried out.
    pub const SUCCESS: i32 = 0;
    /// A failure without a code of its own, most often a Java exception.
    pub const SYSTEM_ERROR: i32 = 1;
    /// The server has too much to do and did nothing.
    pub const SYSTEM_BUSY: i32 = 2;
    /// The server does not know the request code.
    pub const REQUEST_CODE_NOT_SUPPORTED: i32 = 3;
    /// The message is stored, its flush was not confirmed in time.
    pub const FLUSH_DISK_TIMEOUT: i32 = 10;
    /// The message is stored, there is no slave to copy it to.
    pub const SLAVE_NOT_AVAILABLE: i32 = 11;
    /// The message is stored, no slave confirmed it in time.
    pub const FLUSH_SLAVE_TIMEOUT: i32 = 12;
    /// The message breaks a rule, most often of size.
    pub const MESSAGE_ILLEGAL: i32 = 13;
    /// The broker cannot store now.
    pub const SERVICE_NOT_AVAILABLE: i32 = 14;
    /// The request needs a newer or older server.
    pub const VERSION_NOT_SUPPORTED: i32 = 15;
    /// Access control, or the permission of a topic or group, forbids the request.
    pub const NO_PERMISSION: i32 = 16;
    /// The topic does not exist.
    pub const TOPIC_NOT_EXIST: i32 = 17;
    /// No message at this offset now.
    pub const PULL_NOT_FOUND: i32 = 19;
    /// No matching message yet, ask again at the returned offset.
    pub const PULL_RETRY_IMMEDIATELY: i32 = 20;
    /// The offset is outside of what is retained.
    pub const PULL_OFFSET_MOVED: i32 = 21;
    /// What was asked for is not stored.
    pub const QUERY_NOT_FOUND: i32 = 22;
    /// A tag expression could not be parsed.
    pub const SUBSCRIPTION_PARSE_FAILED: i32 = 23;
    /// The broker does not know the subscription of this group.
    pub const SUBSCRIPTION_NOT_EXIST: i32 = 24;
    /// The broker knows an older subscription of this group.
    pub const SUBSCRIPTION_NOT_LATEST: i32 = 25;
    /// The consumer group does not exist.
    pub const SUBSCRIPTION_GROUP_NOT_EXIST: i32 = 26;
    /// A parameter is out of range.
    pub const INVALID_PARAMETER: i32 = 29;
    /// The client is not online.
    pub const CONSUMER_NOT_ONLINE: i32 = 206;
    /// Nothing to ack or change under this receipt.
    pub const NO_MESSAGE: i32 = 208;
    /// Too many POP requests are waiting.
    pub const POLLING_FULL: i32 = 209;
    /// A POP request waited in vain.
    pub const POLLING_TIMEOUT: i32 = 210;
    /// Flow control of the proxy.
    pub const FLOW_CONTROL: i32 = 215;
    /// This broker no longer leads the queue.
    pub const NOT_LEADER_FOR_QUEUE: i32 = 501;
    /// The server is about to close this connection.
    pub const GO_AWAY: i32 = 1500;
}

/// Bits of a message's system flag.
pub mod sys_flag {
    /// The body is compressed.
    pub const COMPRESSED: i32 = 1;
    /// The message is the first half of a transaction.
    pub const TRANSACTION_PREPARED: i32 = 1 << 2;
    /// Commits a transaction.
    pub const TRANSACTION_COMMIT: i32 = 2 << 2;
    /// Rolls a transaction back.
    pub const TRANSACTION_ROLLBACK: i32 = 3 << 2;
    /// The host that made the message has an IPv6 address.
    pub const BORN_HOST_V6: i32 = 1 << 4;
    /// The host that stored the message has an IPv6 address.
    pub const STORE_HOST_V6: i32 = 1 << 5;
    /// The position of the compression kind.
    pub const COMPRESSION_SHIFT: u32 = 8;
    /// The mask of the compression kind.
    pub const COMPRESSION_MASK: i32 = 7 << 8;
}

/// Bits of a pull request's system flag.
pub mod pull_flag {
    /// The request stores `commitOffset` too.
    pub const COMMIT_OFFSET: i32 = 1;
    /// The request waits for messages.
    pub const SUSPEND: i32 = 2;
    /// The request carries its subscription.
    pub const SUBSCRIPTION: i32 = 4;
    /// The request is a [`LITE_PULL_MESSAGE`](super::request::LITE_PULL_MESSAGE).
    pub const LITE: i32 = 16;
}
