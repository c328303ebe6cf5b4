// RocketMQ's client in Go at the end of two pipes: commands come in, one a line, and what happens goes out.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

var (
	servers   primitive.NamesrvAddr
	output    sync.Mutex
	consumers = map[string]rocketmq.PushConsumer{}
)

func main() {
	rlog.SetLogLevel("fatal")
	servers = strings.Split(os.Getenv("NAMESRV_ADDR"), ";")
	say("ready")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		if err := obey(strings.Split(commands.Text(), "\t")); err != nil {
			say("failed", commands.Text(), strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
}

func say(words ...string) {
	output.Lock()
	defer output.Unlock()
	fmt.Println(strings.Join(words, "\t"))
}

func obey(words []string) error {
	switch words[0] {
	case "send":
		if err := send(words[1], words[2]); err != nil {
			return err
		}
		say("sent", words[2])
	case "consume":
		if err := consume(words[1], words[2], words[3] == "orderly"); err != nil {
			return err
		}
		say("consuming", words[2])
	case "stop":
		if err := consumers[words[1]].Shutdown(); err != nil {
			return err
		}
		say("stopped", words[1])
	default:
		return errors.New("no such command")
	}
	return nil
}

func send(topic string, kind string) error {
	sender, err := rocketmq.NewProducer(
		producer.WithNsResolver(primitive.NewPassthroughResolver(servers)),
		producer.WithGroupName("go"),
	)
	if err == nil {
		err = sender.Start()
	}
	if err != nil {
		return err
	}
	messages := []*primitive.Message{message(topic, kind)}
	switch kind {
	case "batch":
		messages = []*primitive.Message{message(topic, "batch-0"), message(topic, "batch-1")}
	case "compressed":
		messages[0].Body = []byte(strings.Repeat("x", 8000))
	case "delayed":
		messages[0].WithDelayTimeLevel(1)
	}
	if _, err := sender.SendSync(context.Background(), messages...); err != nil {
		return err
	}
	return sender.Shutdown()
}

func message(topic string, text string) *primitive.Message {
	message := primitive.NewMessage(topic, []byte(text))
	message.WithTag("red")
	message.WithKeys([]string{"key-1"})
	message.WithProperty("colour", "blue")
	return message
}

func consume(topic string, group string, orderly bool) error {
	receiver, err := rocketmq.NewPushConsumer(
		consumer.WithNsResolver(primitive.NewPassthroughResolver(servers)),
		consumer.WithGroupName(group),
		consumer.WithInstance(strconv.FormatInt(time.Now().UnixNano(), 10)),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumerOrder(orderly),
	)
	if err != nil {
		return err
	}
	err = receiver.Subscribe(topic, consumer.MessageSelector{},
		func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			for _, message := range messages {
				tell(group, message)
			}
			return consumer.ConsumeSuccess, nil
		})
	if err != nil {
		return err
	}
	consumers[group] = receiver
	return receiver.Start()
}

func tell(group string, message *primitive.MessageExt) {
	body := string(message.Body)
	if len(body) > 100 {
		body = strconv.Itoa(len(body))
	}
	say("got", group, strconv.Itoa(message.Queue.QueueId), message.GetKeys(), message.GetTags(),
		message.GetProperty("colour"), body)
}
