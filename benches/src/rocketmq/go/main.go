// RocketMQ's client in Go, measured: one command a line, one answer a line with seconds and seconds of the processor.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const variety = 1024

var (
	servers primitive.NamesrvAddr
	sender  rocketmq.Producer
)

func main() {
	rlog.SetLogLevel("error")
	servers = strings.Split(os.Getenv("NAMESRV_ADDR"), ";")
	var err error
	sender, err = rocketmq.NewProducer(
		producer.WithNsResolver(primitive.NewPassthroughResolver(servers)),
		producer.WithGroupName("go-bench"),
		producer.WithSendMsgTimeout(30*time.Second),
		producer.WithRetry(0),
	)
	if err == nil {
		err = sender.Start()
	}
	if err != nil {
		fmt.Println("failed\t" + oneLine(err))
		return
	}
	fmt.Println("ready")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		answer, err := obey(strings.Split(commands.Text(), "\t"))
		if err != nil {
			fmt.Println("failed\t" + commands.Text() + "\t" + oneLine(err))
		} else {
			fmt.Println("done\t" + answer)
		}
	}
}

func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

func obey(words []string) (string, error) {
	numbers := make([]int, 0, 3)
	for _, word := range words[2:] {
		number, err := strconv.Atoi(word)
		if err != nil {
			return "", err
		}
		numbers = append(numbers, number)
	}
	topic, count, detail := words[1], numbers[0], numbers[1]
	switch words[0] {
	case "single":
		payloads := payloads(detail)
		return measured(topic, payloads, func() error { return singles(topic, count, payloads) })
	case "window":
		payloads := payloads(detail)
		return measured(topic, payloads, func() error { return window(topic, count, payloads, numbers[2]) })
	case "batch":
		payloads := payloads(detail)
		return measured(topic, payloads, func() error { return batches(topic, count, payloads, numbers[2]) })
	case "consume":
		return consume(topic, count)
	case "times":
		return times(topic, count, time.Duration(detail)*time.Microsecond, numbers[2])
	}
	return "", errors.New("no such command")
}

func payloads(size int) [][]byte {
	all := make([][]byte, variety)
	for index := range all {
		all[index] = make([]byte, size)
		for at := range all[index] {
			all[index][at] = 0xAB
		}
		binary.LittleEndian.PutUint64(all[index], uint64(index))
	}
	return all
}

// The first message goes before the clock runs, so that the route is known, as it does in the bench itself.
func measured(topic string, payloads [][]byte, work func() error) (string, error) {
	if _, err := sender.SendSync(context.Background(), primitive.NewMessage(topic, payloads[0])); err != nil {
		return "", err
	}
	spent, begin := processor(), time.Now()
	if err := work(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%g\t%g", time.Since(begin).Seconds(), processor()-spent), nil
}

func processor() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func seconds(time syscall.Timeval) float64 {
	return float64(time.Sec) + float64(time.Usec)/1e6
}

func singles(topic string, count int, payloads [][]byte) error {
	for number := 1; number < count; number++ {
		message := primitive.NewMessage(topic, payloads[number%variety])
		if _, err := sender.SendSync(context.Background(), message); err != nil {
			return err
		}
	}
	return nil
}

func window(topic string, count int, payloads [][]byte, width int) error {
	room := make(chan struct{}, width)
	var failure atomic.Value
	for number := 1; number < count; number++ {
		room <- struct{}{}
		message := primitive.NewMessage(topic, payloads[number%variety])
		answered := func(_ context.Context, _ *primitive.SendResult, err error) {
			if err != nil {
				failure.Store(err)
			}
			<-room
		}
		if err := sender.SendAsync(context.Background(), answered, message); err != nil {
			return err
		}
	}
	for taken := 0; taken < width; taken++ {
		room <- struct{}{}
	}
	if err, failed := failure.Load().(error); failed {
		return err
	}
	return nil
}

func batches(topic string, count int, payloads [][]byte, size int) error {
	for begin := 1; begin < count; begin += size {
		batch := make([]*primitive.Message, 0, size)
		for number := begin; number < min(begin+size, count); number++ {
			batch = append(batch, primitive.NewMessage(topic, payloads[number%variety]))
		}
		if _, err := sender.SendSync(context.Background(), batch...); err != nil {
			return err
		}
	}
	return nil
}

type handler func(messages []*primitive.MessageExt)

func open(topic string, handle handler) (rocketmq.PushConsumer, error) {
	receiver, err := rocketmq.NewPushConsumer(
		consumer.WithNsResolver(primitive.NewPassthroughResolver(servers)),
		consumer.WithGroupName(fmt.Sprintf("go-%d", time.Now().UnixNano())),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumeMessageBatchMaxSize(32),
		consumer.WithPullBatchSize(32),
	)
	if err != nil {
		return nil, err
	}
	err = receiver.Subscribe(topic, consumer.MessageSelector{},
		func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			handle(messages)
			return consumer.ConsumeSuccess, nil
		})
	if err != nil {
		return nil, err
	}
	return receiver, receiver.Start()
}

// From the first message to the last one; positions are stored by the client's timer of five seconds meanwhile.
func consume(topic string, count int) (string, error) {
	var got, sum, begin atomic.Int64
	over := make(chan struct{})
	var once sync.Once
	spent := processor()
	receiver, err := open(topic, func(messages []*primitive.MessageExt) {
		begin.CompareAndSwap(0, time.Now().UnixNano())
		for _, message := range messages {
			sum.Add(int64(binary.LittleEndian.Uint64(message.Body)))
		}
		if got.Add(int64(len(messages))) >= int64(count) {
			once.Do(func() { close(over) })
		}
	})
	if err != nil {
		return "", err
	}
	select {
	case <-over:
	case <-time.After(60 * time.Second):
	}
	took := float64(time.Now().UnixNano()-begin.Load()) / 1e9
	spent = processor() - spent
	if err := receiver.Shutdown(); err != nil {
		return "", err
	}
	if got.Load() != int64(count) {
		return "", fmt.Errorf("%d of %d came", got.Load(), count)
	}
	return fmt.Sprintf("%g\t%g\t%d", took, spent, sum.Load()), nil
}

// One message each `gap`: the times of its send, and until it is handed over, in microseconds. So many go before those
// that count, at the same pace, and must have come.
func times(topic string, count int, gap time.Duration, warm int) (string, error) {
	zero := time.Now()
	var mutex sync.Mutex
	delivered := make([]float64, 0, count)
	ready, over := make(chan struct{}), make(chan struct{})
	var came atomic.Int64
	receiver, err := open(topic, func(messages []*primitive.MessageExt) {
		now := time.Since(zero)
		for _, message := range messages {
			sent := time.Duration(binary.LittleEndian.Uint64(message.Body))
			if sent == 0 {
				if came.Add(1) == int64(warm) {
					close(ready)
				}
				continue
			}
			mutex.Lock()
			delivered = append(delivered, micros(now-sent))
			if len(delivered) == count {
				close(over)
			}
			mutex.Unlock()
		}
	})
	if err != nil {
		return "", err
	}
	next := time.Now()
	for number := 0; number < warm; number++ {
		next = pause(next.Add(gap))
		if _, err := sender.SendSync(context.Background(), primitive.NewMessage(topic, make([]byte, 100))); err != nil {
			return "", err
		}
	}
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		return "", fmt.Errorf("%d of the first %d messages came", came.Load(), warm)
	}
	published := make([]float64, 0, count)
	next = time.Now()
	for number := 0; number < count; number++ {
		next = pause(next.Add(gap))
		payload := make([]byte, 100)
		begin := time.Since(zero)
		binary.LittleEndian.PutUint64(payload, uint64(begin))
		if _, err := sender.SendSync(context.Background(), primitive.NewMessage(topic, payload)); err != nil {
			return "", err
		}
		published = append(published, micros(time.Since(zero)-begin))
	}
	select {
	case <-over:
	case <-time.After(30 * time.Second):
	}
	if err := receiver.Shutdown(); err != nil {
		return "", err
	}
	mutex.Lock()
	defer mutex.Unlock()
	if len(delivered) != count {
		return "", fmt.Errorf("%d of %d came", len(delivered), count)
	}
	sort.Float64s(published)
	sort.Float64s(delivered)
	return fmt.Sprintf("%g\t%g\t%g\t%g\t%g", at(published, 500), at(published, 990), at(delivered, 500),
		at(delivered, 990), at(delivered, 999)), nil
}

// Sleeps until a time, which it returns, in the system. Go's own timers count whole milliseconds from when the last
// answer came, where nothing else is to be done, so that what is sent next would keep step with the broker, which looks
// once a millisecond for what is new.
func pause(until time.Time) time.Time {
	for left := time.Until(until); left > 0; left = time.Until(until) {
		span := syscall.NsecToTimespec(left.Nanoseconds())
		// An interrupted sleep is begun again.
		_ = syscall.Nanosleep(&span, nil)
	}
	return until
}

func micros(span time.Duration) float64 {
	return float64(span.Nanoseconds()) / 1e3
}

func at(sorted []float64, thousandths int) float64 {
	return sorted[len(sorted)*thousandths/1000]
}
