//! A planned upgrade: on SIGUSR2 another program takes over in the same process, under hosts that stay logged in and
//! clients that go on calling.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quarry_proto::v1::node_client::NodeClient;
use quarry_proto::v1::volumes_client::VolumesClient;
use quarry_proto::v1::{CreateVolumeRequest, GetNodeRequest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use uuid::Uuid;

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{self, json};
use crate::config;
use crate::initiator::attach;
use crate::metrics::figure;

/// How long a host's request may take while another program takes over.
const STALL: Duration = Duration::from_secs(1);

/// Makes a link name another file, as an upgrade does.
fn point(link: &Path, to: &Path) {
    let new = link.with_extension("new");
    symlink(to, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

#[test]
fn a_new_program_takes_over_and_hosts_see_a_pause_of_less_than_a_second() {
    // A hard link to the binary stands for the new program: another name for another file.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (old, new) = (
        Path::new(env!("CARGO_BIN_EXE_quarry")),
        folder.path().join("quarry-2"),
    );
    std::fs::hard_link(old, &new).unwrap();
    let link = folder.path().join("quarry");
    symlink(old, &link).unwrap();
    let dir = folder.path().join("agent");
    let agent = AgentProcess::start_program(&link, &dir);
    let pid = agent.pid();
    let volume = command::volume(&agent, "16MiB");
    let attached = attach(&agent, volume);
    let mut session = attached.session();
    session.run("write -P 0x11 0 1M");

    point(&link, &new);
    agent.ask_to_succeed();
    let (mut longest, begin) = (Duration::ZERO, Instant::now());
    for round in (0..=u8::MAX).cycle() {
        let request = Instant::now();
        session.run(&format!("write -P {round} 1M 64k"));
        session.run(&format!("read -P {round} 1M 64k"));
        longest = longest.max(request.elapsed());
        if agent.program() == new && begin.elapsed() > STALL {
            break;
        }
        assert!(begin.elapsed() < 20 * STALL, "nothing took over: {}", agent.log());
    }
    eprintln!("the longest pause was {longest:?}");
    assert!(longest < STALL, "{longest:?}");
    session.run("read -P 0x11 0 1M");
    assert_eq!(agent.pid(), pid);
    agent.expect_ready_again();
    assert_eq!(
        json(&agent, &format!("volume show {volume}"))["id"],
        volume.to_string()
    );

    // And that one lets another take over.
    point(&link, old);
    agent.succeed();
    assert_eq!(agent.program(), old);
    session.run("read -P 0x11 0 1M");
    let (took, status) = agent.terminate();
    assert!(
        status.success() && took < Duration::from_secs(5),
        "{status} {took:?}"
    );
}

#[test]
fn a_program_that_does_not_start_or_refuses_the_configuration_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("quarry");
    symlink(env!("CARGO_BIN_EXE_quarry"), &link).unwrap();
    let agent = AgentProcess::start_program(&link, &folder.path().join("agent"));
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let mut session = attached.session();
    session.run("write -P 0x31 0 1M");
    let refusing = folder.path().join("refusing");
    std::fs::write(&refusing, "#!/bin/sh\necho no such key >&2\nexit 2\n").unwrap();
    std::fs::set_permissions(&refusing, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (program, complaint) in [
        (folder.path().join("absent"), "cannot be run"),
        (refusing, "no such key"),
    ] {
        point(&link, &program);
        agent.ask_to_succeed();
        eventually("the agent says why nothing takes over", || {
            agent.log().contains(complaint).then_some(())
        });
        session.run("read -P 0x31 0 1M");
    }
    assert_eq!(agent.program(), Path::new(env!("CARGO_BIN_EXE_quarry")));
    assert!(!agent.log().contains("session closed"), "{}", agent.log());
    let (_, status) = agent.terminate();
    assert!(status.success(), "{status}");
}

/// How often one program takes over from another under clients that call.
const SUCCESSIONS: usize = 3;

/// How many calls a program answers before another takes over.
const BETWEEN: u32 = 40;

/// Calls again and again, each time over a new connection, until told to stop. Returns how many calls were answered, and how
/// long the longest took.
///
/// # Panics
/// When a call is not answered.
async fn call_anew(endpoint: Endpoint, stop: Arc<AtomicBool>, answered: Arc<AtomicU32>) -> (u32, Duration) {
    let (mut calls, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => panic!("connecting after {calls} calls, {:?}: {error:?}", begin.elapsed()),
        };
        let asked = NodeClient::new(channel.clone()).get_node(GetNodeRequest {}).await;
        let volume = CreateVolumeRequest {
            id: Uuid::new_v4().to_string(),
            size_bytes: 1 << 20,
            ..CreateVolumeRequest::default()
        };
        let made = VolumesClient::new(channel).create_volume(volume).await;
        if let Err(status) = asked.map(drop).and(made.map(drop)) {
            panic!("after {calls} calls, {:?}: {status:?}", begin.elapsed());
        }
        calls += 2;
        answered.fetch_add(2, Ordering::Relaxed);
        longest = longest.max(begin.elapsed());
    }
    (calls, longest)
}

/// Lets programs take over while clients call.
async fn succeed_under_calls(agent: &AgentProcess, endpoint: Endpoint) {
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU32::new(0));
    let call = || call_anew(endpoint.clone(), Arc::clone(&stop), Arc::clone(&answered));
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(call())).collect();
    let mut pauses = Vec::new();
    for _ in 0..SUCCESSIONS {
        let before = answered.load(Ordering::Relaxed);
        eventually("this program answers calls", || {
            (answered.load(Ordering::Relaxed) - before >= BETWEEN).then_some(())
        });
        pauses.push(agent.succeed());
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (calls, longest) = client.await.expect("no call is refused");
        eprintln!("{calls} calls, the longest took {longest:?}; programs took over in {pauses:?}");
        assert!(calls > 0 && longest < 5 * STALL, "{longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_unix_socket_wait_while_a_new_program_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&folder.path().join("agent"));
    let endpoint = Endpoint::from_shared(agent.endpoint.clone()).unwrap();
    succeed_under_calls(&agent, endpoint).await;
    let socket = PathBuf::from(agent.endpoint.strip_prefix("unix:").unwrap());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (_, status) = agent.terminate();
    assert!(status.success() && !socket.exists(), "{status}");
}

/// Returns the certificate of an authority, and a certificate and key for `name` that it has signed, in PEM.
fn certificates(name: &str) -> [String; 3] {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let signed = params.signed_by(&key, &issuer).unwrap();
    [issuer.pem(), signed.pem(), key.serialize_pem()]
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_tls_and_requests_for_figures_wait_while_a_new_program_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let free = || config::free_address(72);
    let (portal, api, figures) = (free().to_string(), free().to_string(), free());
    let metrics = format!("[metrics]\nlisten = \"{figures}\"");
    let config = config::write(folder.path(), "size = \"1GiB\"", &[&portal], &metrics);
    // One certificate for both sides.
    let pem = certificates("localhost");
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
    for (file, text) in files.iter().zip(&pem) {
        std::fs::write(file, text).unwrap();
    }
    let [ca, cert, key] = files.map(|file| file.display().to_string());
    let unix = format!("listen = \"unix:{}/quarry.sock\"", folder.path().display());
    let tls =
        format!("listen = \"tcp:{api}\"\ntls_cert = {cert:?}\ntls_key = {key:?}\ntls_client_ca = {ca:?}");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&unix, &tls)).unwrap();
    let agent = AgentProcess::start_configured(&config);
    let [ca, cert, key] = pem;
    let endpoint = Endpoint::from_shared(agent.endpoint.clone())
        .unwrap()
        .tls_config(
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(ca))
                .identity(Identity::from_pem(cert, key))
                .domain_name("localhost"),
        )
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let watcher = std::thread::spawn(move || {
        let (mut pages, mut longest) = (0, Duration::ZERO);
        while !told.load(Ordering::Relaxed) {
            let begin = Instant::now();
            figure(figures, "quarry_iscsi_sessions");
            pages += 1;
            longest = longest.max(begin.elapsed());
        }
        (pages, longest)
    });
    succeed_under_calls(&agent, endpoint).await;
    stop.store(true, Ordering::Relaxed);
    let (pages, longest) = watcher.join().expect("no page of figures is refused");
    eprintln!("{pages} pages of figures, the longest took {longest:?}");
    assert!(pages > 0 && longest < 5 * STALL, "{longest:?}");
}
