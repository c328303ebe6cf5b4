//! RocketMQ's own client.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;

use test_brokers::JavaProgram;
use tokio::task::block_in_place;

use super::PATIENCE;

/// A program that a test talks to; a test panics where it fails.
pub(crate) struct Java(JavaProgram);

impl Java {
    /// Starts a program, given as one source file, on a cluster.
    pub(crate) fn start(cluster: &test_brokers::RocketMq, source: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
        let program = block_in_place(|| cluster.java_program(&source, &[]));
        Self::ready(program.expect("java starts"))
    }

    /// Waits until a program, in whatever language, is ready.
    pub(crate) fn ready(program: JavaProgram) -> Self {
        let mut all = Self(program);
        all.hear("ready");
        all
    }

    /// Waits for the next line that begins with a word, and returns the words after it.
    pub(crate) fn hear(&mut self, word: &str) -> Vec<String> {
        block_in_place(|| self.0.hear(word, PATIENCE)).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn ask(&mut self, words: &[&str], answer: &str) -> Vec<String> {
        self.0.say(words).expect("java lives");
        self.hear(answer)
    }

    /// Takes the lines that came so far and begin with a word.
    pub(crate) fn heard(&mut self, word: &str) -> Vec<Vec<String>> {
        self.0.heard(word)
    }
}
