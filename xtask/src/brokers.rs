//! Brokers for a person who wants one by hand.
//!
//! `start` leaves a process of this program in the background that owns the broker. It holds the lock of a file
//! in the cache folder and ends, broker and all, when that file is gone.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use test_brokers::{Backend, Broker, Cache, KafkaOptions, RabbitMqOptions, RedisOptions, RocketMqOptions};

use crate::Result;
use crate::arguments::BrokerCommand;

const STOP_LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);

pub(crate) fn run(command: BrokerCommand) -> Result<bool> {
    match command {
        BrokerCommand::Start(backend) => start(backend),
        BrokerCommand::Stop(backend) => stop(backend),
        BrokerCommand::Hold(backend) => hold(backend),
    }
}

fn start(backend: Backend) -> Result<bool> {
    let place = place(backend)?;
    if is_held(&place)? {
        println!("{}", fs::read_to_string(&place)?.trim());
        return Ok(true);
    }
    let log = place.with_extension("log");
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["brokers", "hold", backend.name()])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?)
        .spawn()?;
    let mut url = String::new();
    if let Some(output) = holder.stdout.take() {
        BufReader::new(output).read_line(&mut url)?;
    }
    if url.is_empty() {
        holder.wait()?;
        return Err(fs::read_to_string(&log)?.into());
    }
    println!("{}", url.trim());
    Ok(true)
}

fn stop(backend: Backend) -> Result<bool> {
    let place = place(backend)?;
    if !is_held(&place)? {
        eprintln!("{backend} is not running");
        return Ok(true);
    }
    let held = File::open(&place)?;
    fs::remove_file(&place)?;
    let begin = Instant::now();
    while held.try_lock().is_err() {
        if begin.elapsed() > STOP_LIMIT {
            return Err(format!("{backend} has not ended in {STOP_LIMIT:?}").into());
        }
        std::thread::park_timeout(STEP);
    }
    Ok(true)
}

fn hold(backend: Backend) -> Result<bool> {
    let place = place(backend)?;
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&place)?;
    file.try_lock().map_err(|_| format!("{backend} runs already"))?;
    file.set_len(0)?;
    let broker: Box<dyn Broker> = match backend {
        Backend::Redis => Box::new(RedisOptions::new().start()?),
        Backend::Kafka => Box::new(KafkaOptions::new().start()?),
        Backend::Amqp => Box::new(RabbitMqOptions::new().start()?),
        Backend::RocketMq => Box::new(RocketMqOptions::new().start()?),
        other => return Err(format!("{other} cannot be started yet").into()),
    };
    writeln!(file, "{}", broker.url())?;
    println!("{}", broker.url());
    while place.exists() {
        std::thread::park_timeout(STEP);
    }
    drop(broker);
    Ok(true)
}

fn place(backend: Backend) -> Result<PathBuf> {
    let folder = Cache::open()?.root().join("by-hand");
    fs::create_dir_all(&folder)?;
    Ok(folder.join(backend.name()))
}

fn is_held(place: &Path) -> Result<bool> {
    if !place.exists() {
        return Ok(false);
    }
    match File::open(place)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(cause)) => Err(cause.into()),
    }
}
