//! A program in another language at the end of two pipes.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::Result;
use crate::error::Context;

/// A program with RocketMQ's own client: it reads commands, one a line, and writes what happens, one a line, the words
/// of a line between tabs.
///
/// It should end when its input does, which is when this process ends in whatever way; dropping this kills it.
#[derive(Debug)]
pub struct JavaProgram {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    /// Lines that came while others were waited for.
    unheard: VecDeque<Vec<String>>,
}

impl JavaProgram {
    /// Starts a program in any language that keeps to this.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a client's program".to_owned())?;
        let (Some(commands), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked to be pipes");
        };
        let (sender, lines) = channel();
        // Ends with the program, which is killed when this is dropped.
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(std::result::Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Ok(Self {
            child,
            commands,
            lines,
            unheard: VecDeque::new(),
        })
    }

    /// Writes a command.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when the program has ended.
    pub fn say(&mut self, words: &[&str]) -> Result<()> {
        writeln!(self.commands, "{}", words.join("\t")).context("the client's program has ended".to_owned())
    }

    /// Waits for the next line that begins with a word, and returns the words after it. An error, with what else was
    /// said, where none comes in time or one begins with `failed`.
    ///
    /// # Errors
    /// A text for people.
    pub fn hear(&mut self, word: &str, limit: Duration) -> std::result::Result<Vec<String>, String> {
        let begins = |line: &Vec<String>, with: &str| line.first().is_some_and(|first| first == with);
        if let Some(at) = self.unheard.iter().position(|line| begins(line, word)) {
            return Ok(self.unheard.remove(at).unwrap_or_default().split_off(1));
        }
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                return Err(format!(
                    "the client's program did not say {word:?}, but {:?}",
                    self.unheard
                ));
            };
            let mut words = split(&line);
            if begins(&words, "failed") {
                return Err(line);
            }
            if begins(&words, word) {
                return Ok(words.split_off(1));
            }
            self.unheard.push_back(words);
        }
    }

    /// Takes the lines that came so far and begin with a word.
    pub fn heard(&mut self, word: &str) -> Vec<Vec<String>> {
        self.unheard
            .extend(self.lines.try_iter().map(|line| split(&line)));
        let (heard, rest) = self
            .unheard
            .drain(..)
            .partition(|line: &Vec<String>| line.first().is_some_and(|first| first == word));
        self.unheard = rest;
        heard.into()
    }
}

fn split(line: &str) -> Vec<String> {
    line.split('\t').map(str::to_owned).collect()
}

impl Drop for JavaProgram {
    fn drop(&mut self) {
        // Either fails only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
