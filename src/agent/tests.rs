//! A whole agent in this process, over its real sockets.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use quarry_proto::v1;
use quarry_proto::v1::attachments_client::AttachmentsClient;
use quarry_proto::v1::node_client::NodeClient;
use quarry_proto::v1::volumes_client::VolumesClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;
use crate::config::Listen;

const POOL_BYTES: u64 = 1 << 30;
const VOLUME: &str = "0192f0c4-7a3e-7b1c-9d52-000000000001";
const ATTACHMENT: &str = "0192f0c4-7a3e-7b1c-9d52-000000000002";

fn dev(dir: &Path) -> Config {
    Config::dev(&dir.join("q"), Some(POOL_BYTES)).unwrap()
}

async fn connect(endpoint: &str) -> Channel {
    Endpoint::from_shared(endpoint.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn port_of(agent: &Agent) -> u16 {
    agent.registry.target().target.portals()[0].0.port()
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_answers_when_ready_and_stops_within_a_second() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(dev(dir.path())).await.unwrap();
    let line = agent.ready_line();
    assert!(
        line.starts_with("ready endpoint=unix:/") && line.contains(" iscsi=127.0.0.1:"),
        "{line}"
    );
    TcpStream::connect(("127.0.0.1", port_of(&agent))).unwrap();
    let folder = dir.path().join("q");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(""), mode("quarry.sock"), mode("catalog.redb")),
        (0o700, 0o600, 0o600)
    );

    let channel = connect(agent.endpoint()).await;
    let node = NodeClient::new(channel.clone())
        .get_node(v1::GetNodeRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(node.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(node.health.unwrap().state(), v1::HealthState::Ok);
    assert_eq!(node.portals, [format!("127.0.0.1:{}", port_of(&agent))]);

    // The channel stays open, as a control plane's does.
    let began = Instant::now();
    agent.stop().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!folder.join("quarry.sock").exists());
    assert!(
        NodeClient::new(channel)
            .get_node(v1::GetNodeRequest {})
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_served_beside_the_services() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(dev(dir.path())).await.unwrap();
    let channel = connect(agent.endpoint()).await;
    let check = HealthCheckRequest {
        service: "quarry.v1.Volumes".into(),
    };
    let health = HealthClient::new(channel.clone())
        .check(check)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status(), tonic_health::ServingStatus::Serving.into());

    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let answer = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(list))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = services
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in [
        "Node",
        "Pools",
        "Volumes",
        "Snapshots",
        "Attachments",
        "Operations",
    ] {
        assert!(
            names.contains(&format!("quarry.v1.{service}").as_str()),
            "{service} is missing in {names:?}"
        );
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_agent_is_refused_with_the_pid_and_the_first_goes_on() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(dev(dir.path())).await.unwrap();
    let message = Agent::start(dev(dir.path())).await.err().unwrap().to_string();
    assert!(
        message.contains(&format!("process {}", std::process::id())),
        "{message}"
    );
    connect(agent.endpoint()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_volumes_attachments_connection_info_and_port() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(dev(dir.path())).await.unwrap();
    let port = port_of(&agent);
    let channel = connect(agent.endpoint()).await;
    let create = v1::CreateVolumeRequest {
        id: VOLUME.into(),
        size_bytes: 1 << 20,
        ..Default::default()
    };
    let volume = VolumesClient::new(channel.clone())
        .create_volume(create)
        .await
        .unwrap()
        .into_inner();
    let initiator = "iqn.2026-11.io.example:a".to_owned();
    let attach = v1::CreateAttachmentRequest {
        id: ATTACHMENT.into(),
        volume_id: VOLUME.into(),
        connector: Some(v1::Connector {
            initiator,
            ..Default::default()
        }),
        ..Default::default()
    };
    let made = AttachmentsClient::new(channel)
        .create_attachment(attach)
        .await
        .unwrap()
        .into_inner();
    agent.stop().await;

    let agent = Agent::start(dev(dir.path())).await.unwrap();
    assert_eq!(port_of(&agent), port);
    let channel = connect(agent.endpoint()).await;
    let get = v1::GetVolumeRequest { id: VOLUME.into() };
    let found = VolumesClient::new(channel.clone())
        .get_volume(get)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (found.size_bytes, found.create_time),
        (volume.size_bytes, volume.create_time)
    );
    assert_eq!(found.attachment_ids, [ATTACHMENT]);
    let mut attachments = AttachmentsClient::new(channel);
    let get = v1::GetConnectionInfoRequest {
        attachment_id: ATTACHMENT.into(),
    };
    let info = attachments.get_connection_info(get).await.unwrap().into_inner();
    assert_eq!(Some(info), made.connection_info);
    let get = v1::GetAttachmentRequest {
        id: ATTACHMENT.into(),
    };
    let attachment = attachments.get_attachment(get).await.unwrap().into_inner();
    assert_eq!(attachment.state(), v1::AttachmentState::Ready);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_the_socket_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let config = dev(dir.path());
    let Listen::Unix { path, .. } = &config.listen else {
        panic!("dev mode listens on a unix socket")
    };
    fs::write(path, "precious").unwrap();
    let message = Agent::start(config.clone()).await.err().unwrap().to_string();
    assert!(message.contains("is not a socket; move it away"), "{message}");
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_that_vanished_or_was_replaced_is_not_made_anew() {
    let dir = TempDir::new().unwrap();
    Agent::start(dev(dir.path())).await.unwrap().stop().await;
    let pool = dir.path().join("q/default.pool");
    let aside = dir.path().join("aside.pool");
    fs::rename(&pool, &aside).unwrap();
    let gone = Agent::start(dev(dir.path())).await.err().unwrap().to_string();
    assert!(
        gone.contains("default.pool, is gone; mount or restore it"),
        "{gone}"
    );
    assert!(!pool.exists());

    let other = TempDir::new().unwrap();
    Agent::start(dev(other.path())).await.unwrap().stop().await;
    fs::rename(other.path().join("q/default.pool"), &pool).unwrap();
    let replaced = Agent::start(dev(dir.path())).await.err().unwrap().to_string();
    assert!(
        replaced.contains("put the right file or device there"),
        "{replaced}"
    );

    fs::rename(&aside, &pool).unwrap();
    Agent::start(dev(dir.path())).await.unwrap().stop().await;
}

/// A certificate authority with one certificate for each side.
struct Authority {
    ca: String,
    agent: (String, String),
    client: (String, String),
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (
                params.signed_by(&key, &issuer).unwrap().pem(),
                key.serialize_pem(),
            )
        };
        Self {
            agent: issue("localhost"),
            client: issue("control-plane"),
            ca: issuer.pem(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_answers_clients_with_a_certificate_of_the_authority_and_nobody_else() {
    let dir = TempDir::new().unwrap();
    let ours = Authority::new();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let listen = Listen::Tls {
        address: "127.0.0.1:0".parse().unwrap(),
        certificate: file("agent.crt", &ours.agent.0),
        key: file("agent.key", &ours.agent.1),
        client_ca: file("ca.crt", &ours.ca),
    };
    let agent = Agent::start(Config {
        listen,
        ..dev(dir.path())
    })
    .await
    .unwrap();
    assert!(
        agent.endpoint().starts_with("https://127.0.0.1:"),
        "{}",
        agent.endpoint()
    );
    let ask = async |identity: Option<(String, String)>| {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&ours.ca))
            .domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(agent.endpoint().to_owned())
            .unwrap()
            .tls_config(tls)
            .unwrap();
        let channel = endpoint.connect().await.map_err(|_| "refused")?;
        NodeClient::new(channel)
            .get_node(v1::GetNodeRequest {})
            .await
            .map(|_| "answered")
            .map_err(|_| "refused")
    };
    assert_eq!(ask(Some(ours.client.clone())).await, Ok("answered"));
    assert_eq!(ask(None).await, Err("refused"));
    assert_eq!(ask(Some(Authority::new().client)).await, Err("refused"));
    agent.stop().await;

    let broken = Listen::Tls {
        address: "127.0.0.1:0".parse().unwrap(),
        certificate: file("agent.crt", "no certificate"),
        key: file("agent.key", &ours.agent.1),
        client_ca: dir.path().join("absent.crt"),
    };
    let message = Agent::start(Config {
        listen: broken,
        ..dev(dir.path())
    })
    .await
    .err()
    .unwrap()
    .to_string();
    assert!(message.contains("absent.crt"), "{message}");
}
