//! JSON bodies of requests and responses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::RemotingError;

/// Names one queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueName {
    /// The broker that holds the queue.
    pub broker_name: String,
    /// The number of the queue on that broker.
    pub queue_id: i32,
    /// The topic.
    pub topic: String,
}

/// Which brokers hold a topic, and how many queues each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicRoute {
    /// The brokers.
    #[serde(rename = "brokerDatas")]
    pub brokers: Vec<BrokerRoute>,
    /// The queues per broker.
    #[serde(rename = "queueDatas")]
    pub queues: Vec<QueueRoute>,
    /// `broker:queues;broker:queues` of an ordered topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_topic_conf: Option<String>,
}

/// The addresses of one broker and its replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerRoute {
    /// The name that master and replicas share.
    pub broker_name: String,
    /// The cluster.
    pub cluster: String,
    /// Addresses by broker id; 0 is the master.
    pub broker_addrs: BTreeMap<i64, String>,
}

/// The queues of a topic on one broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueRoute {
    /// The broker.
    pub broker_name: String,
    /// Queues that can be read.
    pub read_queue_nums: i32,
    /// Queues that can be written.
    pub write_queue_nums: i32,
    /// 2 write, 4 read.
    pub perm: i32,
    /// The system flag of the topic.
    pub topic_sys_flag: i32,
}

/// All brokers that a nameserver knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInfo {
    /// Brokers by name.
    pub broker_addr_table: BTreeMap<String, BrokerRoute>,
    /// Broker names by cluster.
    pub cluster_addr_table: BTreeMap<String, Vec<String>>,
}

impl ClusterInfo {
    /// Reads the answer to [`GET_BROKER_CLUSTER_INFO`](super::codes::request::GET_BROKER_CLUSTER_INFO), whose
    /// broker ids servers write as unquoted keys.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the text is not of that shape.
    pub fn parse(body: &[u8]) -> Result<Self, RemotingError> {
        let value: Value = super::lenient::parse_lenient(body)?;
        serde_json::from_value(value)
            .map_err(|_| RemotingError::malformed("cluster info", "unexpected shape"))
    }
}

/// The topics that a nameserver knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicList {
    /// Their names, those of the system and of retries included.
    pub topic_list: Vec<String>,
}

/// The settings of a topic on one broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicConfig {
    /// The topic.
    pub topic_name: String,
    /// Queues that can be read.
    pub read_queue_nums: i32,
    /// Queues that can be written.
    pub write_queue_nums: i32,
    /// 2 write, 4 read.
    pub perm: i32,
    /// Whether the nameserver keeps the brokers of the topic in order.
    pub order: bool,
    /// The system flag of the topic.
    pub topic_sys_flag: i32,
    /// Attributes such as `message.type`.
    pub attributes: BTreeMap<String, String>,
}

/// The settings of a consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupConfig {
    /// The group.
    pub group_name: String,
    /// Whether its members may consume.
    pub consume_enable: bool,
    /// Whether a new group may begin at the oldest message.
    pub consume_from_min_enable: bool,
    /// Whether members may consume as broadcast.
    pub consume_broadcast_enable: bool,
    /// Whether POP delivers a queue in order.
    pub consume_message_orderly: bool,
    /// The queues of its retry topic.
    pub retry_queue_nums: i32,
    /// The attempts after which the broker makes a dead letter.
    pub retry_max_times: i32,
    /// The replica to read from.
    pub broker_id: i64,
    /// The replica to read from when the first is slow.
    pub which_broker_when_consume_slowly: i64,
    /// Whether members are told of joins and leaves.
    pub notify_consumer_ids_changed_enable: bool,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            group_name: String::new(),
            consume_enable: true,
            consume_from_min_enable: true,
            consume_broadcast_enable: true,
            consume_message_orderly: false,
            retry_queue_nums: 1,
            retry_max_times: 16,
            broker_id: 0,
            which_broker_when_consume_slowly: 1,
            notify_consumer_ids_changed_enable: true,
        }
    }
}

/// The body of a heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeartbeatBody {
    /// The id of the client.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Its consumer groups.
    pub consumer_data_set: Vec<ConsumerData>,
    /// Its producer groups.
    pub producer_data_set: Vec<ProducerData>,
    /// 0: the broker compares subscriptions itself.
    pub heartbeat_fingerprint: i32,
    /// Whether subscriptions are left out.
    pub without_sub: bool,
}

/// One consumer group of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerData {
    /// The group.
    pub group_name: String,
    /// `CONSUME_PASSIVELY` for push and pull-with-rebalance, `CONSUME_ACTIVELY` for bare pull.
    pub consume_type: String,
    /// `CLUSTERING` or `BROADCASTING`.
    pub message_model: String,
    /// Where a new group begins, for the broker's statistics.
    pub consume_from_where: String,
    /// Its subscriptions.
    pub subscription_data_set: Vec<SubscriptionData>,
    /// The unit mode.
    pub unit_mode: bool,
}

/// One producer group of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerData {
    /// The group.
    pub group_name: String,
}

/// A subscription to one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionData {
    /// The topic.
    pub topic: String,
    /// The expression, `*` for all.
    pub sub_string: String,
    /// The tags of the expression.
    pub tags_set: Vec<String>,
    /// The Java hashes of the tags.
    pub code_set: Vec<i32>,
    /// Grows with each change.
    pub sub_version: i64,
    /// `TAG` or `SQL92`.
    pub expression_type: String,
    /// Always false; a relic.
    pub class_filter_mode: bool,
}

impl Default for SubscriptionData {
    fn default() -> Self {
        Self {
            topic: String::new(),
            sub_string: "*".to_owned(),
            tags_set: Vec::new(),
            code_set: Vec::new(),
            sub_version: 0,
            expression_type: "TAG".to_owned(),
            class_filter_mode: false,
        }
    }
}

impl SubscriptionData {
    /// Subscribes to a topic with a tag expression such as `a || b`; empty or `*` takes all.
    pub fn tags(topic: &str, expression: &str, version: i64) -> Self {
        let expression = expression.trim();
        let mut data = Self {
            topic: topic.to_owned(),
            sub_version: version,
            ..Self::default()
        };
        if !expression.is_empty() && expression != "*" {
            data.tags_set = expression
                .split("||")
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(str::to_owned)
                .collect();
            data.code_set = data.tags_set.iter().map(|tag| java_hash(tag)).collect();
            data.sub_string = expression.to_owned();
        }
        data
    }
}

/// Java's `String.hashCode`, over UTF-16 units.
pub(crate) fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    })
}

/// The client ids of a group, one per connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerList {
    /// The ids; they may repeat.
    pub consumer_id_list: Vec<String>,
}

/// Asks to lock or unlock queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBody {
    /// The id of the member.
    pub client_id: String,
    /// The group.
    pub consumer_group: String,
    /// The queues.
    pub mq_set: Vec<QueueName>,
    /// Whether replicas need not agree.
    pub only_this_broker: bool,
}

/// The queues that are locked for the member that asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LockedBody {
    /// The queues.
    #[serde(rename = "lockOKMQSet")]
    pub locked: Vec<QueueName>,
}

/// Settles several popped messages of one broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchAckBody {
    /// The broker.
    pub broker_name: String,
    /// The messages, grouped by the pop that handed them out.
    pub acks: Vec<BatchAck>,
}

/// The messages of one queue that one pop handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchAck {
    /// The consumer group.
    #[serde(rename = "c")]
    pub group: String,
    /// The plain topic.
    #[serde(rename = "t")]
    pub topic: String,
    /// The fifth field of the receipt: 0 the topic, 1 or 2 a retry topic.
    #[serde(rename = "r")]
    pub retry: String,
    /// The first offset of the pop.
    #[serde(rename = "so")]
    pub start_offset: i64,
    /// The queue.
    #[serde(rename = "q")]
    pub queue: i32,
    /// The revive queue of the receipt.
    #[serde(rename = "rq")]
    pub revive_queue: i32,
    /// The pop time of the receipt.
    #[serde(rename = "pt")]
    pub pop_time: i64,
    /// The lease of the receipt in milliseconds.
    #[serde(rename = "it")]
    pub invisible_ms: i64,
    /// The settled offsets relative to `start_offset`, see [`ack_bits`](super::ack_bits).
    #[serde(rename = "b")]
    pub bits: String,
}
