import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** RocketMQ's own client at the end of two pipes: commands come in, one a line, and what happens goes out. */
public class Interop {
    static final Map<String, DefaultMQPushConsumer> CONSUMERS = new HashMap<>();

    public static void main(String[] arguments) throws Exception {
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        say("ready");
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String[] words = line.split("\t");
            try {
                obey(words);
            } catch (Exception error) {
                say("failed", line, error.toString().replace('\n', ' '));
            }
        }
        System.exit(0);
    }

    static void obey(String[] words) throws Exception {
        switch (words[0]) {
            case "send":
                send(words[1], words[2]);
                say("sent", words[2]);
                break;
            case "consume":
                consume(words[1], words[2], words[3].equals("orderly"));
                say("consuming", words[2]);
                break;
            case "owned":
                say("owned", owned(words[1], words[2], words[3].equals("orderly")));
                break;
            case "stop":
                CONSUMERS.remove(words[1]).shutdown();
                say("stopped", words[1]);
                break;
            default:
                say("failed", words[0], "no such command");
        }
    }

    static synchronized void say(String... words) {
        System.out.println(String.join("\t", words));
        System.out.flush();
    }

    static void send(String topic, String kind) throws Exception {
        if (kind.equals("transactional")) {
            sendInTransaction(topic);
            return;
        }
        DefaultMQProducer producer = new DefaultMQProducer("java-" + System.nanoTime());
        producer.start();
        switch (kind) {
            case "single":
                producer.send(message(topic, kind));
                break;
            case "batch":
                List<Message> batch = new ArrayList<>(Arrays.asList(message(topic, "batch-0"), message(topic, "batch-1")));
                producer.send(batch);
                break;
            case "compressed":
                Message large = message(topic, "");
                large.setBody("x".repeat(8000).getBytes(StandardCharsets.UTF_8));
                producer.send(large);
                break;
            case "delayed":
                Message later = message(topic, kind);
                later.setDelayTimeLevel(1);
                producer.send(later);
                break;
            case "timed":
                Message timed = message(topic, kind);
                timed.setDelayTimeMs(500);
                producer.send(timed);
                break;
            default:
                throw new IllegalArgumentException(kind);
        }
        producer.shutdown();
    }

    static Message message(String topic, String text) {
        Message message = new Message(topic, "red", "key-1", text.getBytes(StandardCharsets.UTF_8));
        message.putUserProperty("colour", "blue");
        return message;
    }

    static void sendInTransaction(String topic) throws Exception {
        TransactionMQProducer producer = new TransactionMQProducer("java-transactions");
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return (LocalTransactionState) argument;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.UNKNOW;
            }
        });
        producer.start();
        producer.sendMessageInTransaction(message(topic, "dropped"), LocalTransactionState.ROLLBACK_MESSAGE);
        producer.sendMessageInTransaction(message(topic, "transactional"), LocalTransactionState.COMMIT_MESSAGE);
        producer.shutdown();
    }

    /** On a busy machine this client's first request may fail, which ends its start; a new one is started then. */
    static void consume(String topic, String group, boolean orderly) throws Exception {
        for (int tries = 1;; tries++) {
            try {
                start(topic, group, orderly);
                return;
            } catch (IllegalStateException error) {
                if (tries == 5) {
                    throw error;
                }
            }
        }
    }

    static void start(String topic, String group, boolean orderly) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setPersistConsumerOffsetInterval(1000);
        consumer.subscribe(topic, "*");
        if (orderly) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                messages.forEach(message -> tell(group, message));
                return ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                messages.forEach(message -> tell(group, message));
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        try {
            consumer.start();
        } catch (IllegalStateException error) {
            consumer.shutdown();
            throw error;
        }
        CONSUMERS.put(group, consumer);
    }

    static void tell(String group, MessageExt message) {
        String body = new String(message.getBody(), StandardCharsets.UTF_8);
        say("got", group, String.valueOf(message.getQueueId()), String.valueOf(message.getKeys()),
            String.valueOf(message.getTags()), String.valueOf(message.getUserProperty("colour")),
            body.length() > 100 ? String.valueOf(body.length()) : body);
    }

    /** The queues that a consumer works on, orderly ones only where they are locked. */
    static String owned(String topic, String group, boolean orderly) {
        TreeSet<Integer> queues = new TreeSet<>();
        CONSUMERS.get(group).getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable()
            .forEach((queue, state) -> {
                if (queue.getTopic().equals(topic) && !state.isDropped() && (!orderly || state.isLocked())) {
                    queues.add(queue.getQueueId());
                }
            });
        return queues.toString().replaceAll("[\\[\\] ]", "");
    }
}
