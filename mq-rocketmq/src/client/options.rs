//! Options of a cluster's client.

use std::path::PathBuf;
use std::time::Duration;

use super::nameservers::NameserverSource;
use crate::remoting::ConnectionOptions;

/// How a [`Cluster`](super::Cluster) is found and watched.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// Where the nameservers are.
    pub nameservers: NameserverSource,
    /// TLS, credentials and bounds of each connection.
    pub connection: ConnectionOptions,
    /// How long one nameserver may take before the next is asked; the last one may take all of a call's time.
    pub nameserver_timeout: Duration,
    /// How often the routes in use are asked for.
    pub route_refresh: Duration,
    /// How often brokers are told of this client's groups. They forget a client that is silent for two minutes.
    pub heartbeat_interval: Duration,
    /// A file that keeps the routes in use, so that a client can start while every nameserver is down.
    pub snapshot: Option<PathBuf>,
    /// The cluster to create topics in; every one that the nameserver knows if there is none.
    pub cluster_name: Option<String>,
    /// The part of client ids that operators read.
    pub instance: String,
}

impl ClusterOptions {
    /// Makes options with the defaults: 3 s for a nameserver, routes every 10 s, heartbeats every 20 s.
    pub fn new(nameservers: NameserverSource) -> Self {
        Self {
            nameservers,
            connection: ConnectionOptions::default(),
            nameserver_timeout: Duration::from_secs(3),
            route_refresh: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(20),
            snapshot: None,
            cluster_name: None,
            instance: "mq".to_owned(),
        }
    }
}
