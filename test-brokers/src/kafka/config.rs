//! The broker's configuration.

use std::path::Path;

use super::Node;
use crate::Certificates;

/// The super user of the SASL listeners and its password.
pub(super) const ADMIN: (&str, &str) = ("admin", "admin-secret");
/// An ordinary user of the SASL listeners and its password.
pub(super) const ALICE: (&str, &str) = ("alice", "alice-secret");

/// Returns `server.properties` of one node. `voters` are all controllers; more than one makes a cluster.
pub(super) fn properties(
    node: &Node,
    folder: &Path,
    certificates: &Certificates,
    voters: &[String],
    more: &[String],
) -> String {
    let replicas = voters.len();
    let in_sync = replicas.div_ceil(2);
    let (admin, admin_password) = ADMIN;
    let (alice, alice_password) = ALICE;
    let plain_login = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_{admin}=\"{admin_password}\" user_{alice}=\"{alice_password}\";"
    );
    let scram_login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let mut text = format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listeners=CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller},\
SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},SASLTLS://127.0.0.1:{sasl_tls}
advertised.listeners=CLIENT://{advertised},INTERNAL://127.0.0.1:{internal},\
SASL://127.0.0.1:{sasl},TLS://localhost:{tls},SASLTLS://localhost:{sasl_tls}
listener.security.protocol.map=CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,\
SASL:SASL_PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
# Without the controllers' own principal a quorum never forms.
super.users=User:{admin};User:ANONYMOUS
allow.everyone.if.no.acl.found=true
log.dirs={data}
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=1
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.coordinator.threads=1
# A broker that was killed is let in again when its old session is over. One that is busy for so long counts as gone, and
# what it leads has no leader then.
broker.heartbeat.interval.ms=250
broker.session.timeout.ms=3000
controlled.shutdown.enable=true
",
        id = node.id,
        voters = voters.join(","),
        client = node.client.number(),
        internal = node.internal.number(),
        controller = node.controller.number(),
        sasl = node.sasl.number(),
        tls = node.tls.number(),
        sasl_tls = node.sasl_tls.number(),
        advertised = node.advertised(),
        keystore = certificates.key_and_chain_file().display(),
        truststore = certificates.ca_file().display(),
        data = folder.join("data").display(),
    );
    for listener in ["sasl", "sasltls"] {
        text.push_str(&format!(
            "listener.name.{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.{listener}.plain.sasl.jaas.config={plain_login}
listener.name.{listener}.scram-sha-256.sasl.jaas.config={scram_login}
"
        ));
    }
    more.iter().fold(text, |all, line| all + line + "\n")
}
