import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Kafka's own client at work, with its defaults: brokers, topic and group, then what to do, each a word and a number.
 *
 * <p>It writes what it did, one thing a line, the words of a line between tabs.
 */
public class JavaClient {
    private static final Duration LIMIT = Duration.ofSeconds(40);

    public static void main(String[] words) throws Exception {
        String servers = words[0];
        String topic = words[1];
        String group = words[2];
        for (int at = 3; at + 1 < words.length; at += 2) {
            int count = Integer.parseInt(words[at + 1]);
            switch (words[at]) {
                case "produce":
                    produce(servers, topic, count);
                    break;
                case "consume":
                    consume(servers, topic, group, count);
                    break;
                default:
                    committed(servers, topic, group, count);
            }
        }
    }

    private static void produce(String servers, String topic, int count) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", servers);
        StringSerializer text = new StringSerializer();
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings, text, text)) {
            for (int n = 0; n < count; n++) {
                String key = "user-" + n * 7919;
                RecordMetadata made = producer.send(new ProducerRecord<>(topic, key, "java")).get();
                say("made", key, made.partition(), made.offset());
            }
        }
    }

    private static KafkaConsumer<String, String> consumer(String servers, String group) {
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", servers,
                "group.id", group,
                "enable.auto.commit", "false",
                "auto.offset.reset", "earliest",
                "max.poll.records", "10");
        StringDeserializer text = new StringDeserializer();
        return new KafkaConsumer<>(settings, text, text);
    }

    /** Reads that many records and few more, and commits what was read. */
    private static void consume(String servers, String topic, String group, int count) {
        try (KafkaConsumer<String, String> consumer = consumer(servers, group)) {
            consumer.subscribe(List.of(topic));
            long end = System.nanoTime() + LIMIT.toNanos();
            int read = 0;
            while (read < count && System.nanoTime() < end) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100))) {
                    Header source = record.headers().lastHeader("source");
                    String from = source == null ? "-" : new String(source.value());
                    say("read", record.key(), record.partition(), record.offset(), record.value(), from);
                    read++;
                }
            }
            consumer.commitSync();
        }
    }

    private static void committed(String servers, String topic, String group, int partitions) {
        try (KafkaConsumer<String, String> consumer = consumer(servers, group)) {
            Set<TopicPartition> all = new HashSet<>();
            for (int n = 0; n < partitions; n++) {
                all.add(new TopicPartition(topic, n));
            }
            consumer.committed(all).forEach((partition, stored) ->
                    say("committed", partition.partition(), stored == null ? 0 : stored.offset()));
        }
    }

    private static void say(Object... words) {
        StringBuilder line = new StringBuilder();
        for (Object word : words) {
            line.append(line.length() == 0 ? "" : "\t").append(word);
        }
        System.out.println(line);
    }
}
