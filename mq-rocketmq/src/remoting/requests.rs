//! The extension fields of the requests that this client sends or gets, both ways.

use super::codes::{inbound, request};
use super::error::RemotingError;
use super::frame::Command;
use super::header::{FieldValue, Fields, Request};

/// Defines a request: its code, and its fields with their names on the wire.
macro_rules! request {
    (
        $(#[$meta:meta])*
        $name:ident $(<$life:lifetime>)? = $code:expr;
        $( $(#[$field_meta:meta])* $field:ident : $type:ty = $wire:literal ),* $(,)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name $(<$life>)? {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl $(<$life>)? Request for $name $(<$life>)? {
            fn code(&self) -> i32 {
                $code
            }

            fn write(&self, _fields: &mut Fields<'_>) {
                $( self.$field.write($wire, _fields); )*
            }
        }

        impl $(<$life>)? $name $(<$life>)? {
            /// Reads the fields from a decoded frame.
            ///
            /// # Errors
            ///
            /// [`RemotingError::Malformed`] when a field is missing or does not parse.
            pub fn read(_command: & $($life)? Command) -> Result<Self, RemotingError> {
                Ok(Self {
                    $( $field: FieldValue::read(_command.header.ext.text($wire), $wire)?, )*
                })
            }
        }
    };
}

/// A request without extension fields; what it says is in its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain(
    /// The request code.
    pub i32,
);

impl Request for Plain {
    fn code(&self) -> i32 {
        self.0
    }

    fn write(&self, _fields: &mut Fields<'_>) {}
}

/// Stores one message, or several of one queue when `batch` is set.
///
/// The names on the wire are single letters, which the servers read faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendMessage<'a> {
    /// The producer group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// The topic whose settings the broker copies where it may create topics by itself.
    pub default_topic: &'a str,
    /// The queue count of such a topic.
    pub default_queues: i32,
    /// The queue, -1 for any.
    pub queue: i32,
    /// Bits of [`sys_flag`](super::codes::sys_flag).
    pub sys_flag: i32,
    /// When the message was made, in milliseconds since the epoch.
    pub born: i64,
    /// A number that travels with the message.
    pub flag: i32,
    /// The text of the properties, as [`PropertyWriter`](super::PropertyWriter) builds it.
    pub properties: Option<&'a str>,
    /// How often it was delivered in vain.
    pub reconsume_times: Option<i32>,
    /// The unit mode of the producer.
    pub unit_mode: Option<bool>,
    /// How often it may be delivered in vain.
    pub max_reconsume_times: Option<i32>,
    /// Whether the body holds several messages.
    pub batch: bool,
    /// The name of the broker.
    pub broker: Option<&'a str>,
}

impl Request for SendMessage<'_> {
    fn code(&self) -> i32 {
        if self.batch {
            request::SEND_BATCH_MESSAGE
        } else {
            request::SEND_MESSAGE_V2
        }
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.put("a", self.group);
        fields.put("b", self.topic);
        fields.put("c", self.default_topic);
        fields.put("d", self.default_queues);
        fields.put("e", self.queue);
        fields.put("f", self.sys_flag);
        fields.put("g", self.born);
        fields.put("h", self.flag);
        fields.put("i", self.properties);
        fields.put("j", self.reconsume_times);
        fields.put("k", self.unit_mode);
        fields.put("l", self.max_reconsume_times);
        fields.put("m", self.batch);
        fields.put("n", self.broker);
    }
}

impl<'a> SendMessage<'a> {
    /// Reads the fields from a decoded frame.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when a field is missing or does not parse.
    pub fn read(command: &'a Command) -> Result<Self, RemotingError> {
        Ok(Self {
            group: command.field("a")?,
            topic: command.field("b")?,
            default_topic: command.field("c")?,
            default_queues: command.field("d")?,
            queue: command.field("e")?,
            sys_flag: command.field("f")?,
            born: command.field("g")?,
            flag: command.field("h")?,
            properties: command.field("i")?,
            reconsume_times: command.field("j")?,
            unit_mode: command.field("k")?,
            max_reconsume_times: command.field("l")?,
            batch: command.field("m")?,
            broker: command.field("n")?,
        })
    }
}

/// Reads messages of one queue; [`pull_flag`](super::codes::pull_flag) has the bits of `sys_flag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullMessage<'a> {
    /// The consumer group; it is created if the broker may.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// The queue.
    pub queue: i32,
    /// The first offset.
    pub offset: i64,
    /// The most messages; brokers cap it, at 32 by default.
    pub max_messages: i32,
    /// Bits of [`pull_flag`](super::codes::pull_flag).
    pub sys_flag: i32,
    /// The offset to store.
    pub commit_offset: i64,
    /// How long to wait for messages, in milliseconds; a broker overruns it by up to five seconds.
    pub suspend_ms: i64,
    /// The tag expression.
    pub subscription: Option<&'a str>,
    /// The version of the subscription.
    pub sub_version: i64,
    /// `TAG` or `SQL92`.
    pub expression_type: Option<&'a str>,
    /// The most bytes; brokers cap it.
    pub max_bytes: Option<i32>,
    /// The name of the broker.
    pub broker: Option<&'a str>,
}

impl Request for PullMessage<'_> {
    fn code(&self) -> i32 {
        let lite = self.sys_flag & super::codes::pull_flag::LITE != 0;
        if lite {
            request::LITE_PULL_MESSAGE
        } else {
            request::PULL_MESSAGE
        }
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.put("consumerGroup", self.group);
        fields.put("topic", self.topic);
        fields.put("queueId", self.queue);
        fields.put("queueOffset", self.offset);
        fields.put("maxMsgNums", self.max_messages);
        fields.put("sysFlag", self.sys_flag);
        fields.put("commitOffset", self.commit_offset);
        fields.put("suspendTimeoutMillis", self.suspend_ms);
        fields.put("subscription", self.subscription);
        fields.put("subVersion", self.sub_version);
        fields.put("expressionType", self.expression_type);
        fields.put("maxMsgBytes", self.max_bytes);
        fields.put("bname", self.broker);
    }
}

impl<'a> PullMessage<'a> {
    /// Reads the fields from a decoded frame.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when a field is missing or does not parse.
    pub fn read(command: &'a Command) -> Result<Self, RemotingError> {
        Ok(Self {
            group: command.field("consumerGroup")?,
            topic: command.field("topic")?,
            queue: command.field("queueId")?,
            offset: command.field("queueOffset")?,
            max_messages: command.field("maxMsgNums")?,
            sys_flag: command.field("sysFlag")?,
            commit_offset: command.field("commitOffset")?,
            suspend_ms: command.field("suspendTimeoutMillis")?,
            subscription: command.field("subscription")?,
            sub_version: command.field("subVersion")?,
            expression_type: command.field("expressionType")?,
            max_bytes: command.field("maxMsgBytes")?,
            broker: command.field("bname")?,
        })
    }
}

request! {
    /// Reads the stored offset of a group.
    QueryOffset<'a> = request::QUERY_CONSUMER_OFFSET;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The topic.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// `Some(false)` to be told when nothing is stored; without it a small topic answers 0.
    zero_if_not_found: Option<bool> = "setZeroIfNotFound",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Stores the offset of a group, which must exist.
    UpdateOffset<'a> = request::UPDATE_CONSUMER_OFFSET;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The topic.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// The offset of the next message to consume.
    offset: i64 = "commitOffset",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Creates a topic, or overwrites the settings of an existing one without complaint.
    CreateTopic<'a> = request::UPDATE_AND_CREATE_TOPIC;
    /// The topic.
    topic: &'a str = "topic",
    /// Present on the wire, without meaning here.
    default_topic: &'a str = "defaultTopic",
    /// The queues that can be read.
    read_queues: i32 = "readQueueNums",
    /// The queues that can be written.
    write_queues: i32 = "writeQueueNums",
    /// 2 write, 4 read.
    perm: i32 = "perm",
    /// `SINGLE_TAG`.
    filter_type: &'a str = "topicFilterType",
    /// The system flag of the topic.
    sys_flag: i32 = "topicSysFlag",
    /// Whether the nameserver keeps the brokers of the topic in order.
    order: bool = "order",
    /// Attributes such as `+message.type=DELAY`.
    attributes: Option<&'a str> = "attributes",
    /// Present on the wire, without meaning here.
    force: Option<bool> = "force",
}

request! {
    /// Looks up the offset that belongs to a store time.
    SearchOffset<'a> = request::SEARCH_OFFSET_BY_TIMESTAMP;
    /// The topic.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// The time in milliseconds since the epoch.
    timestamp: i64 = "timestamp",
    /// `LOWER` or `UPPER`.
    boundary: Option<&'a str> = "boundaryType",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Reads the offset that the next message of a queue will get.
    MaxOffset<'a> = request::GET_MAX_OFFSET;
    /// The topic.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// Whether only what every replica has counts.
    committed: Option<bool> = "committed",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Reads the offset of the oldest retained message of a queue.
    MinOffset<'a> = request::GET_MIN_OFFSET;
    /// The topic.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Takes a client out of a group.
    UnregisterClient<'a> = request::UNREGISTER_CLIENT;
    /// The client id.
    client_id: &'a str = "clientID",
    /// The producer group.
    producer_group: Option<&'a str> = "producerGroup",
    /// The consumer group.
    consumer_group: Option<&'a str> = "consumerGroup",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Gives a message back for a later delivery.
    SendBack<'a> = request::CONSUMER_SEND_MSG_BACK;
    /// The physical offset of the message.
    physical_offset: i64 = "offset",
    /// The consumer group.
    group: &'a str = "group",
    /// 0 by attempts, above 0 a level, -1 the dead-letter topic.
    delay_level: i32 = "delayLevel",
    /// The id of the message.
    origin_id: Option<&'a str> = "originMsgId",
    /// The topic of the message.
    origin_topic: Option<&'a str> = "originTopic",
    /// The unit mode of the consumer.
    unit_mode: Option<bool> = "unitMode",
    /// The attempts after which the message is a dead letter.
    max_reconsume_times: Option<i32> = "maxReconsumeTimes",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Commits or rolls back a half message. It must be sent once: a second one delivers again.
    EndTransaction<'a> = request::END_TRANSACTION;
    /// The topic of the message.
    topic: Option<&'a str> = "topic",
    /// The producer group.
    producer_group: &'a str = "producerGroup",
    /// The queue offset that the half message was answered with.
    state_offset: i64 = "tranStateTableOffset",
    /// The physical offset of the half message.
    physical_offset: i64 = "commitLogOffset",
    /// 8 commit, 12 rollback, 0 unknown.
    decision: i32 = "commitOrRollback",
    /// Whether this answers a check of the broker.
    from_check: Option<bool> = "fromTransactionCheck",
    /// The unique key of the message.
    message_id: &'a str = "msgId",
    /// The transaction id that the half message was answered with.
    transaction_id: Option<&'a str> = "transactionId",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Lists the client ids of a consumer group; an id comes once per connection.
    ListConsumers<'a> = request::GET_CONSUMER_LIST_BY_GROUP;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Stores a key and value in a nameserver.
    PutKv<'a> = request::PUT_KV_CONFIG;
    /// The namespace of the key.
    namespace: &'a str = "namespace",
    /// The key.
    key: &'a str = "key",
    /// The value.
    value: &'a str = "value",
}

request! {
    /// Reads a key of a nameserver.
    GetKv<'a> = request::GET_KV_CONFIG;
    /// The namespace of the key.
    namespace: &'a str = "namespace",
    /// The key.
    key: &'a str = "key",
}

request! {
    /// Removes a key from a nameserver.
    DeleteKv<'a> = request::DELETE_KV_CONFIG;
    /// The namespace of the key.
    namespace: &'a str = "namespace",
    /// The key.
    key: &'a str = "key",
}

request! {
    /// Asks a nameserver which brokers hold a topic.
    QueryRoute<'a> = request::GET_ROUTE_BY_TOPIC;
    /// The topic.
    topic: &'a str = "topic",
    /// Whether the keys of objects must be quoted.
    standard_json: Option<bool> = "acceptStandardJsonOnly",
}

request! {
    /// Names the topic of [`GET_TOPIC_STATS_INFO`](request::GET_TOPIC_STATS_INFO).
    TopicStats<'a> = request::GET_TOPIC_STATS_INFO;
    /// The topic.
    topic: &'a str = "topic",
}

request! {
    /// Deletes a consumer group.
    DeleteGroup<'a> = request::DELETE_SUBSCRIPTION_GROUP;
    /// The consumer group.
    group: &'a str = "groupName",
    /// Whether its offsets go too.
    clean_offsets: bool = "cleanOffset",
}

request! {
    /// Reads the progress of a consumer group.
    ConsumeStats<'a> = request::GET_CONSUME_STATS;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The topic, all if absent.
    topic: Option<&'a str> = "topic",
}

request! {
    /// Deletes a topic from a broker; an unknown one is no error.
    DeleteTopicInBroker<'a> = request::DELETE_TOPIC_IN_BROKER;
    /// The topic.
    topic: &'a str = "topic",
}

request! {
    /// Deletes a topic from a nameserver; an unknown one is no error.
    DeleteTopicInNamesrv<'a> = request::DELETE_TOPIC_IN_NAMESRV;
    /// The topic.
    topic: &'a str = "topic",
    /// The cluster, all if absent.
    cluster: Option<&'a str> = "clusterName",
}

request! {
    /// Asks a broker to reset the offsets of a group.
    ResetOffset<'a> = request::INVOKE_BROKER_TO_RESET_OFFSET;
    /// The topic.
    topic: &'a str = "topic",
    /// The consumer group.
    group: &'a str = "group",
    /// The queue, -1 for all.
    queue: i32 = "queueId",
    /// The offset, -1 to go by time.
    offset: Option<i64> = "offset",
    /// The time in milliseconds since the epoch.
    timestamp: i64 = "timestamp",
    /// Whether offsets may grow.
    force: bool = "isForce",
}

request! {
    /// Reads the settings of a topic.
    GetTopicConfig<'a> = request::GET_TOPIC_CONFIG;
    /// The topic.
    topic: &'a str = "topic",
    /// Whether only this broker is asked.
    local: Option<bool> = "lo",
}

request! {
    /// Takes up to 32 messages with a lease.
    Pop<'a> = request::POP_MESSAGE;
    /// The consumer group; it is created if the broker may.
    group: &'a str = "consumerGroup",
    /// The topic.
    topic: &'a str = "topic",
    /// The queue, -1 for any.
    queue: i32 = "queueId",
    /// The most messages, at most 32.
    max_messages: i32 = "maxMsgNums",
    /// The lease in milliseconds.
    invisible_ms: i64 = "invisibleTime",
    /// How long to wait for messages, in milliseconds.
    poll_ms: i64 = "pollTime",
    /// When the request was made, in milliseconds since the epoch.
    born: i64 = "bornTime",
    /// Where a new group begins: 0 oldest, 1 newest.
    init_mode: i32 = "initMode",
    /// `TAG` or `SQL92`.
    expression_type: Option<&'a str> = "expType",
    /// The tag expression.
    expression: Option<&'a str> = "exp",
    /// Whether a queue is blocked while one of its messages is out.
    order: Option<bool> = "order",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Settles one popped message.
    Ack<'a> = request::ACK_MESSAGE;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The topic, or the group's retry topic where the receipt says so.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// The receipt.
    receipt: &'a str = "extraInfo",
    /// The offset in the queue.
    offset: i64 = "offset",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// Renews or shortens the lease of a popped message.
    ChangeInvisible<'a> = request::CHANGE_MESSAGE_INVISIBLE_TIME;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The topic, or the group's retry topic where the receipt says so.
    topic: &'a str = "topic",
    /// The queue.
    queue: i32 = "queueId",
    /// The receipt.
    receipt: &'a str = "extraInfo",
    /// The offset in the queue.
    offset: i64 = "offset",
    /// The new lease in milliseconds from now.
    invisible_ms: i64 = "invisibleTime",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// The broker asks for the outcome of a half message; the body is that message.
    CheckTransaction<'a> = inbound::CHECK_TRANSACTION_STATE;
    /// The queue offset of the half message.
    state_offset: i64 = "tranStateTableOffset",
    /// The physical offset of the half message.
    physical_offset: i64 = "commitLogOffset",
    /// The unique key of the message.
    message_id: Option<&'a str> = "msgId",
    /// The transaction id.
    transaction_id: Option<&'a str> = "transactionId",
    /// The id made of the address and the physical offset.
    offset_id: Option<&'a str> = "offsetMsgId",
    /// The topic that half messages are stored in.
    topic: Option<&'a str> = "topic",
    /// The name of the broker.
    broker: Option<&'a str> = "bname",
}

request! {
    /// The broker tells that the members of a group changed.
    ConsumerIdsChanged<'a> = inbound::NOTIFY_CONSUMER_IDS_CHANGED;
    /// The consumer group.
    group: &'a str = "consumerGroup",
}

request! {
    /// The broker asks for a description of a consumer.
    ConsumerRunningInfo<'a> = inbound::GET_CONSUMER_RUNNING_INFO;
    /// The consumer group.
    group: &'a str = "consumerGroup",
    /// The client id.
    client_id: Option<&'a str> = "clientId",
}

request! {
    /// The broker tells a consumer to go on at other offsets; the body has them.
    ResetClientOffset<'a> = inbound::RESET_CONSUMER_CLIENT_OFFSET;
    /// The topic.
    topic: &'a str = "topic",
    /// The consumer group.
    group: &'a str = "group",
    /// The time in milliseconds since the epoch.
    timestamp: Option<i64> = "timestamp",
    /// Whether offsets may grow.
    force: Option<bool> = "isForce",
}
