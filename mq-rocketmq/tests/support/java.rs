//! A program in Java at the end of two pipes.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part of it, and a test panics where it fails"
)]

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Stdio},
};

use tokio::sync::mpsc;

use super::PATIENCE;

/// RocketMQ's own client. It ends with this value, or when this process does, since its commands end then.
pub(crate) struct Java {
    child: Child,
    commands: ChildStdin,
    lines: mpsc::UnboundedReceiver<String>,
    unheard: VecDeque<Vec<String>>,
}

impl Java {
    /// Starts a program, given as one source file, on a cluster.
    pub(crate) async fn start(cluster: &test_brokers::RocketMq, source: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
        let mut child = cluster
            .java_program(&source, &[])
            .unwrap()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut java = Self {
            child,
            commands,
            lines,
            unheard: VecDeque::new(),
        };
        java.hear("ready").await;
        java
    }

    /// Writes a command.
    pub(crate) fn say(&mut self, words: &[&str]) {
        writeln!(self.commands, "{}", words.join("\t")).unwrap();
    }

    /// Waits for the next line that begins with a word, and returns the words after it.
    pub(crate) async fn hear(&mut self, word: &str) -> Vec<String> {
        if let Some(at) = self.unheard.iter().position(|line| line[0] == word) {
            return self.unheard.remove(at).unwrap().split_off(1);
        }
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
            let Ok(Some(line)) = line else {
                panic!("the program did not say {word:?}, but {:?}", self.unheard);
            };
            let mut words: Vec<String> = line.split('\t').map(str::to_owned).collect();
            assert_ne!(words[0], "failed", "{line}");
            if words[0] == word {
                return words.split_off(1);
            }
            self.unheard.push_back(words);
        }
    }

    /// Writes a command and waits for its answer.
    pub(crate) async fn ask(&mut self, words: &[&str], answer: &str) -> Vec<String> {
        self.say(words);
        self.hear(answer).await
    }

    /// Takes what was said so far with a word.
    pub(crate) fn heard(&mut self, word: &str) -> Vec<Vec<String>> {
        while let Ok(line) = self.lines.try_recv() {
            self.unheard
                .push_back(line.split('\t').map(str::to_owned).collect());
        }
        let (heard, rest) = self.unheard.drain(..).partition(|line| line[0] == word);
        self.unheard = rest;
        heard.into()
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
