import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** RocketMQ's own client, measured: one command a line, one answer a line with seconds and seconds of the processor. */
public class Bench {
    static final int VARIETY = 1024;
    static DefaultMQProducer producer;

    public static void main(String[] arguments) throws Exception {
        producer = new DefaultMQProducer("java-bench");
        producer.setSendMsgTimeout(30000);
        producer.setRetryTimesWhenSendFailed(0);
        producer.setRetryTimesWhenSendAsyncFailed(0);
        producer.start();
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready");
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String[] words = line.split("\t");
            try {
                System.out.println("done\t" + obey(words));
            } catch (Exception error) {
                System.out.println("failed\t" + line + "\t" + error.toString().replace('\n', ' '));
            }
            System.out.flush();
        }
        System.exit(0);
    }

    static String obey(String[] words) throws Exception {
        String topic = words[1];
        int count = Integer.parseInt(words[2]);
        int detail = Integer.parseInt(words[3]);
        switch (words[0]) {
            case "single":
                byte[][] singles = payloads(detail);
                return measured(topic, singles, () -> {
                    for (int number = 1; number < count; number++) {
                        producer.send(new Message(topic, singles[number % VARIETY]));
                    }
                });
            case "window":
                byte[][] windowed = payloads(detail);
                return measured(topic, windowed, () -> window(topic, count, windowed, Integer.parseInt(words[4])));
            case "batch":
                byte[][] batched = payloads(detail);
                return measured(topic, batched, () -> batches(topic, count, batched, Integer.parseInt(words[4])));
            case "consume":
                return consume(topic, count);
            case "times":
                return times(topic, count, detail, Integer.parseInt(words[4]));
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    static byte[][] payloads(int size) {
        byte[][] payloads = new byte[VARIETY][];
        for (int index = 0; index < VARIETY; index++) {
            payloads[index] = new byte[size];
            Arrays.fill(payloads[index], (byte) 0xAB);
            ByteBuffer.wrap(payloads[index]).order(ByteOrder.LITTLE_ENDIAN).putLong(0, index);
        }
        return payloads;
    }

    interface Work {
        void run() throws Exception;
    }

    /** The first message goes before the clock runs, so that the route is known, as it does in the bench itself. */
    static String measured(String topic, byte[][] payloads, Work work) throws Exception {
        producer.send(new Message(topic, payloads[0]));
        double cpu = cpu();
        long begin = System.nanoTime();
        work.run();
        return (System.nanoTime() - begin) / 1e9 + "\t" + (cpu() - cpu);
    }

    static double cpu() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
            .getProcessCpuTime() / 1e9;
    }

    static void window(String topic, int count, byte[][] payloads, int width) throws Exception {
        Semaphore room = new Semaphore(width);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        for (int number = 1; number < count; number++) {
            room.acquire();
            producer.send(new Message(topic, payloads[number % VARIETY]), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    room.release();
                }

                @Override
                public void onException(Throwable error) {
                    failure.set(error);
                    room.release();
                }
            });
        }
        room.acquire(width);
        if (failure.get() != null) {
            throw new IllegalStateException(failure.get());
        }
    }

    static void batches(String topic, int count, byte[][] payloads, int size) throws Exception {
        for (int begin = 1; begin < count; begin += size) {
            List<Message> batch = new ArrayList<>(size);
            for (int number = begin; number < Math.min(begin + size, count); number++) {
                batch.add(new Message(topic, payloads[number % VARIETY]));
            }
            producer.send(batch);
        }
    }

    /** From the first message to the last one; positions are stored by a timer meanwhile. */
    static String consume(String topic, int count) throws Exception {
        AtomicLong got = new AtomicLong();
        AtomicLong sum = new AtomicLong();
        AtomicLong begin = new AtomicLong();
        CountDownLatch over = new CountDownLatch(1);
        DefaultMQPushConsumer consumer = consumer(topic, (messages, context) -> {
            begin.compareAndSet(0, System.nanoTime());
            for (MessageExt message : messages) {
                sum.addAndGet(ByteBuffer.wrap(message.getBody()).order(ByteOrder.LITTLE_ENDIAN).getLong());
            }
            if (got.addAndGet(messages.size()) >= count) {
                over.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        double cpu = cpu();
        consumer.start();
        boolean all = over.await(60, TimeUnit.SECONDS);
        double seconds = (System.nanoTime() - begin.get()) / 1e9;
        double spent = cpu() - cpu;
        consumer.shutdown();
        if (!all || got.get() != count) {
            throw new IllegalStateException(got + " of " + count + " came");
        }
        return seconds + "\t" + spent + "\t" + sum;
    }

    static DefaultMQPushConsumer consumer(String topic, MessageListenerConcurrently listener) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("java-" + System.nanoTime());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeMessageBatchMaxSize(32);
        consumer.setPersistConsumerOffsetInterval(1000);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(listener);
        return consumer;
    }

    /**
     * One message each `gap` microseconds: the times of its send, and until it is handed over, in microseconds. So many
     * go before those that count, at the same pace, and must have come.
     */
    static String times(String topic, int count, long gap, int warm) throws Exception {
        ConcurrentLinkedQueue<Long> delivered = new ConcurrentLinkedQueue<>();
        CountDownLatch over = new CountDownLatch(count);
        CountDownLatch ready = new CountDownLatch(warm);
        AtomicReference<CountDownLatch> first = new AtomicReference<>();
        MessageListenerConcurrently listener = (messages, context) -> {
            long now = System.nanoTime();
            for (MessageExt message : messages) {
                long sent = ByteBuffer.wrap(message.getBody()).order(ByteOrder.LITTLE_ENDIAN).getLong();
                if (sent == -1) {
                    first.get().countDown();
                } else if (sent == 0) {
                    ready.countDown();
                } else {
                    delivered.add(now - sent);
                    over.countDown();
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        };
        DefaultMQPushConsumer consumer = owner(topic, listener, first);
        long next = System.nanoTime();
        for (int number = 0; number < warm; number++) {
            next = pause(next + gap * 1000);
            producer.send(new Message(topic, new byte[100]));
        }
        if (!ready.await(30, TimeUnit.SECONDS)) {
            throw new IllegalStateException(ready.getCount() + " of the first messages did not come");
        }
        List<Long> published = new ArrayList<>(count);
        next = System.nanoTime();
        for (int number = 0; number < count; number++) {
            next = pause(next + gap * 1000);
            byte[] payload = new byte[100];
            long begin = System.nanoTime();
            ByteBuffer.wrap(payload).order(ByteOrder.LITTLE_ENDIAN).putLong(begin);
            producer.send(new Message(topic, payload));
            published.add(System.nanoTime() - begin);
        }
        over.await(30, TimeUnit.SECONDS);
        consumer.shutdown();
        if (delivered.size() != count) {
            throw new IllegalStateException(delivered.size() + " of " + count + " came");
        }
        long[] sends = published.stream().mapToLong(Long::longValue).sorted().toArray();
        long[] times = delivered.stream().mapToLong(Long::longValue).sorted().toArray();
        return at(sends, 500) + "\t" + at(sends, 990) + "\t" + at(times, 500) + "\t" + at(times, 990) + "\t" + at(times, 999);
    }

    /** A consumer that has its queue: one that got none when it started would wait for its next look, up to a minute. */
    static DefaultMQPushConsumer owner(String topic, MessageListenerConcurrently listener,
                                       AtomicReference<CountDownLatch> first) throws Exception {
        byte[] payload = new byte[100];
        Arrays.fill(payload, (byte) 0xFF);
        producer.send(new Message(topic, payload));
        for (int tries = 1; tries <= 10; tries++) {
            CountDownLatch came = new CountDownLatch(1);
            first.set(came);
            // Its group is new, and begins with the message above.
            DefaultMQPushConsumer consumer = consumer(topic, listener);
            consumer.start();
            if (came.await(5, TimeUnit.SECONDS)) {
                return consumer;
            }
            consumer.shutdown();
        }
        throw new IllegalStateException("no consumer has got its queue");
    }

    /** Sleeps until a time, which it returns. `Thread.sleep` would round up to whole milliseconds. */
    static long pause(long until) {
        for (long left = until - System.nanoTime(); left > 0; left = until - System.nanoTime()) {
            LockSupport.parkNanos(left);
        }
        return until;
    }

    static double at(long[] sorted, int thousandths) {
        return sorted[sorted.length * thousandths / 1000] / 1e3;
    }
}
