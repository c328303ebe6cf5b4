//! The calls of librdkafka that its safe wrapper does not offer: reading a partition's queue in batches, commit metadata
//! and header names that need not be UTF-8, ids of topics, offsets of groups, the generation of a member.
//!
//! This is the only module with `unsafe`. What it rests on: every pointer that librdkafka hands out is freed by a guard of
//! this module before the client that it belongs to, and each guard holds that client.

#![allow(unsafe_code, reason = "see the words above")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    marker::PhantomData,
    ptr::{self, NonNull},
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    TopicPartitionList,
    bindings::{self as sys, rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr},
    client::{Client, ClientContext},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    message::BorrowedMessage,
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::Notify;

/// The most messages of one read of a queue.
pub(crate) const MOST_AT_ONCE: usize = 1024;

/// Says that a queue has something, from whatever thread librdkafka puts it there.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Set when something came in; taken back before the queue is read.
    pub(crate) ready: AtomicBool,
    /// Woken at the same time. Tokio's own lock is the only one that this takes, so it may be woken under a lock of the
    /// library.
    pub(crate) woken: Arc<Notify>,
}

/// Reads the messages of one assigned partition.
///
/// It holds its consumer, which must not be destroyed before its queues are.
pub(crate) struct PartitionQueue<C: ConsumerContext> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    signal: Arc<Signal>,
    /// Where the library stood after the last read: above the last message, and above what is not for readers.
    stood: AtomicI64,
    topic: CString,
    partition: i32,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: a queue of librdkafka has a lock of its own and may be used and destroyed from any thread.
unsafe impl<C: ConsumerContext> Send for PartitionQueue<C> {}
// SAFETY: as above.
unsafe impl<C: ConsumerContext> Sync for PartitionQueue<C> {}

unsafe extern "C" fn queue_is_not_empty(_: *mut sys::rd_kafka_t, signal: *mut c_void) {
    // SAFETY: the pointer is that of the `Arc` in the `PartitionQueue`, which takes the callback back before it lets go.
    let signal = unsafe { &*signal.cast_const().cast::<Signal>() };
    signal.ready.store(true, Ordering::Release);
    signal.woken.notify_one();
}

impl<C: ConsumerContext> PartitionQueue<C> {
    /// Takes the queue of a partition away from the consumer's own. Call it before the partition is assigned, so that no
    /// message goes the other way. `None` for a name that cannot be one.
    pub(crate) fn open(
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
        woken: &Arc<Notify>,
    ) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        let client = consumer.client().native_ptr();
        // SAFETY: the client lives as long as `consumer`; the name outlives the call.
        let queue =
            NonNull::new(unsafe { sys::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition) })?;
        // What is there already would give no wake-up: the flag starts set, so that the first look is at the queue.
        let signal = Arc::new(Signal {
            ready: AtomicBool::new(true),
            woken: Arc::clone(woken),
        });
        // SAFETY: the queue is ours until `drop`, which ends the callback before `signal` is let go.
        unsafe {
            sys::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut());
            sys::rd_kafka_queue_cb_event_enable(
                queue.as_ptr(),
                Some(queue_is_not_empty),
                Arc::as_ptr(&signal).cast_mut().cast(),
            );
        }
        Some(Self {
            queue,
            signal,
            stood: AtomicI64::new(i64::MAX),
            topic,
            partition,
            consumer: Arc::clone(consumer),
        })
    }

    /// Returns what says that there is something to read.
    pub(crate) fn signal(&self) -> &Signal {
        &self.signal
    }

    /// Takes up to `most` messages that are there, without waiting. Fewer than `most` means that the queue was empty.
    pub(crate) fn read(&self, most: usize) -> RawBatch<'_> {
        let most = most.clamp(1, MOST_AT_ONCE);
        let mut messages: Vec<*mut sys::rd_kafka_message_t> = Vec::with_capacity(most);
        // SAFETY: the buffer has room for `most` pointers; the call writes as many as it returns.
        let count = unsafe {
            let count =
                sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, messages.as_mut_ptr(), most);
            let count = usize::try_from(count).unwrap_or(0).min(most);
            messages.set_len(count);
            count
        };
        RawBatch {
            messages,
            full: count == most,
            _queue: PhantomData,
        }
    }
}

impl<C: ConsumerContext> PartitionQueue<C> {
    /// Returns where the library stands where the last read has moved it.
    pub(crate) fn passed(&self) -> Option<u64> {
        // SAFETY: the list is made, filled, read and destroyed here; the name outlives the call, which copies it.
        let stands = unsafe {
            let list = sys::rd_kafka_topic_partition_list_new(1);
            let element = sys::rd_kafka_topic_partition_list_add(list, self.topic.as_ptr(), self.partition);
            let code = sys::rd_kafka_position(self.consumer.client().native_ptr(), list);
            let stands = match check(code) {
                Ok(()) => (*element).offset,
                Err(_) => -1,
            };
            sys::rd_kafka_topic_partition_list_destroy(list);
            stands
        };
        // A move to somewhere else takes it back first, so that only reading raises it.
        let stood = self.stood.swap(stands, Ordering::Relaxed);
        u64::try_from(stands).ok().filter(|_| stands > stood)
    }
}

impl<C: ConsumerContext> Drop for PartitionQueue<C> {
    fn drop(&mut self) {
        // SAFETY: the callback runs under the queue's lock, which the first call takes: after it none is running.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// Holds messages that are still librdkafka's.
pub(crate) struct RawBatch<'a> {
    messages: Vec<*mut sys::rd_kafka_message_t>,
    full: bool,
    _queue: PhantomData<&'a ()>,
}

impl RawBatch<'_> {
    /// Tells whether there may be more in the queue.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = RawMessage<'_>> {
        self.messages.iter().map(|message| {
            // SAFETY: the messages are valid until `drop` destroys them.
            let message = unsafe { &**message };
            RawMessage { message }
        })
    }
}

impl Drop for RawBatch<'_> {
    fn drop(&mut self) {
        for message in &self.messages {
            // SAFETY: each came from `rd_kafka_consume_batch_queue` and is destroyed once.
            unsafe { sys::rd_kafka_message_destroy(*message) };
        }
    }
}

/// Shows one message, or an error in its place.
#[derive(Clone, Copy)]
pub(crate) struct RawMessage<'a> {
    message: &'a sys::rd_kafka_message_t,
}

impl<'a> RawMessage<'a> {
    /// Returns the error that came instead of a message.
    pub(crate) fn error(&self) -> Option<Code> {
        let code = self.message.err;
        (code != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }

    pub(crate) fn offset(&self) -> i64 {
        self.message.offset
    }

    pub(crate) fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: pointer and length describe the payload, or the pointer is null.
        unsafe { bytes(self.message.payload, self.message.len) }
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: as for the payload.
        unsafe { bytes(self.message.key, self.message.key_len) }
    }

    /// Returns the record's time in milliseconds, where it has one.
    pub(crate) fn timestamp(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid, and `kind` outlives the call.
        let at = unsafe { sys::rd_kafka_message_timestamp(self.message, &raw mut kind) };
        (kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(at)
    }

    /// Goes through the headers: names and values as they are, which need not be text.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let mut headers: *mut sys::rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: the message is valid; the list belongs to it and lives as long.
        let found = unsafe { sys::rd_kafka_message_headers(self.message, &raw mut headers) };
        let any = found == RespErr::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null();
        (0..).map_while(move |at| {
            if !any {
                return None;
            }
            let (mut name, mut value, mut size) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0);
            // SAFETY: the list is valid, see above; name and value belong to it.
            unsafe {
                let found =
                    sys::rd_kafka_header_get_all(headers, at, &raw mut name, &raw mut value, &raw mut size);
                if found != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
                    return None;
                }
                Some((CStr::from_ptr(name).to_bytes(), bytes(value, size)))
            }
        })
    }
}

/// # Safety
/// The pointer is null or good for `len` bytes of the lifetime.
unsafe fn bytes<'a>(at: *const c_void, len: usize) -> Option<&'a [u8]> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    Some(unsafe { slice::from_raw_parts(at.cast(), len) })
}

/// Says how far a message got that failed.
pub(crate) fn may_be_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is valid as long as the borrowed message.
    let status = unsafe { sys::rd_kafka_message_status(message.ptr()) };
    status != sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// Returns the generation of the group that this member belongs to, -1 before it has joined.
pub(crate) fn generation<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> i32 {
    // SAFETY: the client is alive; what it returns is null or ours to destroy.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return -1;
        }
        let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    }
}

/// Tells whether the group's broker has given this member an identity.
pub(crate) fn is_named<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    let client = consumer.client().native_ptr();
    // SAFETY: the client is alive; what it returns is null or a text that is ours to free.
    unsafe {
        let name = sys::rd_kafka_memberid(client);
        if name.is_null() {
            return false;
        }
        let named = *name != 0;
        sys::rd_kafka_mem_free(client, name.cast());
        named
    }
}

/// Commits offsets as this member without waiting; what becomes of it reaches the `commit_callback` of the context. The
/// wrapper's own asynchronous commit says nothing of its result.
pub(crate) fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    offsets: &TopicPartitionList,
) -> Result<(), Code> {
    let client = consumer.client().native_ptr();
    // SAFETY: client and list are alive; the list is copied, and our hold on the queue is given back.
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(client);
        if queue.is_null() {
            return Err(Code::UnknownGroup);
        }
        let code = sys::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, ptr::null_mut());
        sys::rd_kafka_queue_destroy(queue);
        check(code)
    }
}

/// Looks offsets up by time; the list holds milliseconds and gets offsets. Blocks.
pub(crate) fn offsets_for_times<C: ClientContext>(
    client: &Client<C>,
    times: &TopicPartitionList,
    timeout: Duration,
) -> Result<(), Code> {
    // SAFETY: client and list are alive; the call changes the list's offsets in place.
    check(unsafe { sys::rd_kafka_offsets_for_times(client.native_ptr(), times.ptr(), millis(timeout)) })
}

/// Describes a topic as the controller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicInfo {
    /// The id in Kafka's own base 64, where the broker has ids.
    pub(crate) id: Option<String>,
    pub(crate) partitions: u32,
    /// Whether each partition has a leader.
    pub(crate) ready: bool,
}

/// Asks for a topic's id and partitions. Blocks.
pub(crate) fn describe_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicInfo, Code> {
    let name = CString::new(topic).map_err(|_| Code::InvalidTopic)?;
    let mut names = [name.as_ptr()];
    let call = AdminCall::new(client, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout)?;
    // SAFETY: every pointer is checked or freshly made, what is made is destroyed, and what is read belongs to the event.
    unsafe {
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(call.client, topics, call.options, call.queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        let event = call.wait()?;
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(Code::Fail);
        }
        let mut count = 0;
        let all = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if all.is_null() || count == 0 {
            return Err(Code::UnknownTopicOrPartition);
        }
        let found = *all;
        check_error(sys::rd_kafka_TopicDescription_error(found))?;
        let uuid = sys::rd_kafka_TopicDescription_topic_id(found);
        let nil = uuid.is_null()
            || sys::rd_kafka_Uuid_most_significant_bits(uuid) == 0
                && sys::rd_kafka_Uuid_least_significant_bits(uuid) == 0;
        let id = (!nil).then(|| {
            CStr::from_ptr(sys::rd_kafka_Uuid_base64str(uuid))
                .to_string_lossy()
                .into_owned()
        });
        let mut partitions = 0;
        let infos = sys::rd_kafka_TopicDescription_partitions(found, &raw mut partitions);
        let ready = (0..partitions).all(|at| {
            let leader = sys::rd_kafka_TopicPartitionInfo_leader(*infos.add(at));
            !leader.is_null()
        });
        Ok(TopicInfo {
            id,
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
            ready,
        })
    }
}

/// Holds what a group has stored for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupOffset {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) metadata: Vec<u8>,
}

/// Reads what a group has stored for partitions of a topic; those without an offset are left out. Blocks.
pub(crate) fn group_offsets<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    partitions: &TopicPartitionList,
    timeout: Duration,
) -> Result<Vec<GroupOffset>, Code> {
    let group = CString::new(group).map_err(|_| Code::InvalidGroupId)?;
    let call = AdminCall::new(
        client,
        AdminOp::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS,
        timeout,
    )?;
    // SAFETY: as in `describe_topic`.
    unsafe {
        let mut request = sys::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), partitions.ptr());
        sys::rd_kafka_ListConsumerGroupOffsets(call.client, &raw mut request, 1, call.options, call.queue);
        sys::rd_kafka_ListConsumerGroupOffsets_destroy(request);
        let event = call.wait()?;
        let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(event.0);
        if result.is_null() {
            return Err(Code::Fail);
        }
        let mut count = 0;
        let groups = sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &raw mut count);
        let mut offsets = Vec::new();
        for element in group_elements(groups, count)? {
            check(element.err)?;
            if let (Ok(offset), Ok(partition)) =
                (u64::try_from(element.offset), u32::try_from(element.partition))
            {
                offsets.push(GroupOffset {
                    partition,
                    offset,
                    metadata: bytes(element.metadata, element.metadata_size)
                        .unwrap_or_default()
                        .to_vec(),
                });
            }
        }
        Ok(offsets)
    }
}

/// Stores offsets for a group that has no members; refused with `UnknownMemberId` where it has some. Blocks.
pub(crate) fn store_group_offsets<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    offsets: &TopicPartitionList,
    timeout: Duration,
) -> Result<(), Code> {
    let group = CString::new(group).map_err(|_| Code::InvalidGroupId)?;
    let call = AdminCall::new(
        client,
        AdminOp::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS,
        timeout,
    )?;
    // SAFETY: as in `describe_topic`.
    unsafe {
        let mut request = sys::rd_kafka_AlterConsumerGroupOffsets_new(group.as_ptr(), offsets.ptr());
        sys::rd_kafka_AlterConsumerGroupOffsets(call.client, &raw mut request, 1, call.options, call.queue);
        sys::rd_kafka_AlterConsumerGroupOffsets_destroy(request);
        let event = call.wait()?;
        let result = sys::rd_kafka_event_AlterConsumerGroupOffsets_result(event.0);
        if result.is_null() {
            return Err(Code::Fail);
        }
        let mut count = 0;
        let groups = sys::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &raw mut count);
        for element in group_elements(groups, count)? {
            check(element.err)?;
        }
        Ok(())
    }
}

/// # Safety
/// `groups` is null or good for `count` results, whose event outlives what is returned.
unsafe fn group_elements<'a>(
    groups: *mut *const sys::rd_kafka_group_result_t,
    count: usize,
) -> Result<&'a [sys::rd_kafka_topic_partition_t], Code> {
    if groups.is_null() || count == 0 {
        return Err(Code::Fail);
    }
    // SAFETY: there is one group at least, and its lists belong to the event.
    unsafe {
        check_error(sys::rd_kafka_group_result_error(*groups))?;
        let list = sys::rd_kafka_group_result_partitions(*groups);
        if list.is_null() || (*list).elems.is_null() {
            return Ok(&[]);
        }
        Ok(slice::from_raw_parts(
            (*list).elems,
            usize::try_from((*list).cnt).unwrap_or(0),
        ))
    }
}

/// Holds what a call of the admin interface needs, and destroys it.
struct AdminCall<'a> {
    client: *mut sys::rd_kafka_t,
    options: *mut sys::rd_kafka_AdminOptions_t,
    queue: *mut sys::rd_kafka_queue_t,
    timeout: Duration,
    _client: PhantomData<&'a ()>,
}

impl<'a> AdminCall<'a> {
    fn new<C: ClientContext>(client: &'a Client<C>, op: AdminOp, timeout: Duration) -> Result<Self, Code> {
        let client = client.native_ptr();
        // SAFETY: the client is alive for `'a`; both objects are destroyed in `drop`.
        let (options, queue) = unsafe {
            (
                sys::rd_kafka_AdminOptions_new(client, op),
                sys::rd_kafka_queue_new(client),
            )
        };
        let call = Self {
            client,
            options,
            queue,
            timeout,
            _client: PhantomData,
        };
        if call.options.is_null() || call.queue.is_null() {
            return Err(Code::Fail);
        }
        let mut words = [0; 256];
        // SAFETY: the options are ours; the text is written into `words`, within its length.
        check(unsafe {
            sys::rd_kafka_AdminOptions_set_request_timeout(
                call.options,
                millis(timeout),
                words.as_mut_ptr(),
                words.len(),
            )
        })?;
        Ok(call)
    }

    fn wait(&self) -> Result<AdminEvent, Code> {
        // The library gives the result, also that of a timeout, a little after the time that it was told.
        let limit = self.timeout + Duration::from_millis(500);
        // SAFETY: the queue is ours; the event is destroyed by its guard.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.queue, millis(limit));
            if event.is_null() {
                return Err(Code::OperationTimedOut);
            }
            let event = AdminEvent(event);
            check(sys::rd_kafka_event_error(event.0))?;
            Ok(event)
        }
    }
}

impl Drop for AdminCall<'_> {
    fn drop(&mut self) {
        // SAFETY: both are ours; an answer that comes later finds its queue disabled and is dropped.
        unsafe {
            if !self.options.is_null() {
                sys::rd_kafka_AdminOptions_destroy(self.options);
            }
            if !self.queue.is_null() {
                sys::rd_kafka_queue_destroy(self.queue);
            }
        }
    }
}

struct AdminEvent(*mut sys::rd_kafka_event_t);

impl Drop for AdminEvent {
    fn drop(&mut self) {
        // SAFETY: the event is ours and destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0) };
    }
}

fn check(code: RespErr) -> Result<(), Code> {
    match code {
        RespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        other => Err(other.into()),
    }
}

/// # Safety
/// The error is null or valid.
unsafe fn check_error(error: *const sys::rd_kafka_error_t) -> Result<(), Code> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller says so.
    check(unsafe { sys::rd_kafka_error_code(error) })
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}
