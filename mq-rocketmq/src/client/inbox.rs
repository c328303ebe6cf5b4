//! What brokers say without being asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::remoting::codes::{inbound, response};
use crate::remoting::{
    CheckTransaction, Command, ConsumerIdsChanged, ConsumerRunningInfo, Inbound, InboundHandler, JsonBody,
    QueueName, RefuseInbound, RemotingError, ResetClientOffset, StoredMessage, SubscriptionData,
    parse_lenient,
};

/// Checks or resets that may wait to be taken; brokers repeat checks, and operators resets.
const WAITING: usize = 256;

/// A broker's question for the outcome of a half message.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransactionCheck {
    /// The half message.
    pub message: StoredMessage,
    /// The address of the broker that asks.
    pub address: Arc<str>,
    /// The name of the broker that asks.
    pub broker: Option<String>,
    /// The queue offset of the half message.
    pub state_offset: i64,
    /// The physical offset of the half message.
    pub physical_offset: i64,
    /// The transaction id.
    pub transaction_id: Option<String>,
}

/// An operator's order to go on at other offsets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OffsetReset {
    /// The topic.
    pub topic: String,
    /// The offsets by queue.
    pub offsets: Vec<(QueueName, i64)>,
}

/// Takes the requests of brokers for one session and hands them to whom they concern.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<String, watch::Sender<u64>>,
    checks: HashMap<String, mpsc::Sender<TransactionCheck>>,
    resets: HashMap<String, mpsc::Sender<OffsetReset>>,
    subscriptions: HashMap<String, Vec<SubscriptionData>>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn members(&self, group: &str) -> watch::Receiver<u64> {
        self.lock()
            .members
            .entry(group.to_owned())
            .or_default()
            .subscribe()
    }

    /// Counts a change of a group's members.
    pub(super) fn note_members(&self, group: &str) {
        if let Some(sender) = self.lock().members.get(group) {
            sender.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn checks(&self, group: &str) -> mpsc::Receiver<TransactionCheck> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.lock().checks.insert(group.to_owned(), sender);
        receiver
    }

    pub(super) fn resets(&self, group: &str) -> mpsc::Receiver<OffsetReset> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.lock().resets.insert(group.to_owned(), sender);
        receiver
    }

    pub(super) fn subscribe(&self, group: &str, subscriptions: Vec<SubscriptionData>) {
        self.lock().subscriptions.insert(group.to_owned(), subscriptions);
    }

    pub(super) fn forget(&self, group: &str) {
        let mut state = self.lock();
        state.members.remove(group);
        state.resets.remove(group);
        state.subscriptions.remove(group);
    }

    fn check(&self, request: &Inbound) -> Result<(), RemotingError> {
        let fields = CheckTransaction::read(&request.command)?;
        let message = StoredMessage::decode(&mut request.command.body.clone())?;
        let group = message.property("PGROUP").unwrap_or_default().to_owned();
        let check = TransactionCheck {
            address: request.address.clone(),
            broker: fields.broker.map(str::to_owned),
            state_offset: fields.state_offset,
            physical_offset: fields.physical_offset,
            transaction_id: fields.transaction_id.map(str::to_owned),
            message,
        };
        match self.lock().checks.get(&group) {
            // The broker asks again if this one finds no room.
            Some(sender) => drop(sender.try_send(check)),
            None => tracing::debug!(group, "a transaction check for a group that is not here"),
        }
        Ok(())
    }

    fn reset(&self, command: &Command) -> Result<(), RemotingError> {
        let fields = ResetClientOffset::read(command)?;
        let reset = OffsetReset {
            topic: fields.topic.to_owned(),
            offsets: reset_offsets(&command.body)?,
        };
        if let Some(sender) = self.lock().resets.get(fields.group) {
            drop(sender.try_send(reset));
        }
        Ok(())
    }

    fn describe(&self, request: &Inbound) -> Result<(), RemotingError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct RunningInfo<'a> {
            properties: HashMap<&'static str, String>,
            subscription_set: &'a [SubscriptionData],
            mq_table: HashMap<String, Value>,
            mq_pop_table: HashMap<String, Value>,
            status_table: HashMap<String, Value>,
            user_consumer_info: HashMap<String, String>,
        }
        let fields = ConsumerRunningInfo::read(&request.command)?;
        let state = self.lock();
        let Some(subscriptions) = state.subscriptions.get(fields.group) else {
            let remark = Some("the consumer group is not in this client");
            return request.reply(response::SYSTEM_ERROR, remark, &(), |_| ());
        };
        let properties = [
            ("PROP_CONSUME_TYPE", "CONSUME_PASSIVELY".to_owned()),
            ("PROP_CLIENT_VERSION", "V5_5_0".to_owned()),
            ("PROP_CONSUMEORDERLY", "false".to_owned()),
        ];
        let info = RunningInfo {
            properties: properties.into(),
            subscription_set: subscriptions,
            mq_table: HashMap::new(),
            mq_pop_table: HashMap::new(),
            status_table: HashMap::new(),
            user_consumer_info: HashMap::new(),
        };
        request.reply(response::SUCCESS, None, &JsonBody(&info), |_| ())
    }
}

impl InboundHandler for Inbox {
    fn on_request(&self, request: Inbound) {
        let code = request.command.code();
        let outcome = match code {
            inbound::NOTIFY_CONSUMER_IDS_CHANGED => {
                ConsumerIdsChanged::read(&request.command).map(|fields| self.note_members(fields.group))
            }
            inbound::CHECK_TRANSACTION_STATE => self.check(&request),
            inbound::RESET_CONSUMER_CLIENT_OFFSET => self
                .reset(&request.command)
                .and_then(|()| request.reply(response::SUCCESS, None, &(), |_| ())),
            inbound::GET_CONSUMER_RUNNING_INFO => self.describe(&request),
            _ => {
                RefuseInbound.on_request(request);
                return;
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(code, %error, "a request of a broker could not be taken");
        }
    }
}

/// Reads the body of a reset: `{"offsetTable":{{queue}:offset}}`, or a list of pairs for clients in other languages.
fn reset_offsets(body: &[u8]) -> Result<Vec<(QueueName, i64)>, RemotingError> {
    let value = parse_lenient(body)?;
    let broken = || RemotingError::malformed("offset reset", "not a table of queues and offsets");
    let entries = value
        .get("offsetTable")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    entries
        .iter()
        .map(|entry| {
            let (queue, offset) = match entry {
                Value::Array(pair) => (pair.first().cloned(), pair.get(1).and_then(Value::as_i64)),
                other => (Some(other.clone()), other.get("offset").and_then(Value::as_i64)),
            };
            let queue = queue.and_then(|queue| serde_json::from_value(queue).ok());
            queue.zip(offset).ok_or_else(broken)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_read_in_both_forms() {
        let java = br#"{"offsetTable":{{"brokerName":"a","queueId":1,"topic":"t"}:5}}"#;
        let other = br#"{"offsetTable":[{"brokerName":"a","queueId":1,"topic":"t","offset":5}]}"#;
        for body in [&java[..], &other[..]] {
            let offsets = reset_offsets(body).unwrap();
            assert_eq!(offsets.len(), 1);
            assert_eq!((offsets[0].0.queue_id, offsets[0].1), (1, 5));
        }
        assert!(reset_offsets(b"{}").unwrap().is_empty());
        assert!(reset_offsets(br#"{"offsetTable":[1]}"#).is_err());
    }
}
