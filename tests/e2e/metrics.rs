//! Figures for those who watch an agent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::agent_process::AgentProcess;
use crate::command;
use crate::config;
use crate::initiator::{attach, detach};
use crate::scripted_initiator::{Client, Login};

/// Reads the page and returns the value of one figure.
pub fn figure(address: SocketAddr, name: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let prefix = format!("{name} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
    value
        .unwrap_or_else(|| panic!("no {name} in:\n{page}"))
        .parse()
        .unwrap()
}

#[test]
fn commands_sessions_and_stale_initiators_show_in_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let address = config::free_address(71);
    let metrics = format!("[metrics]\nlisten = \"{address}\"");
    let config = config::write(folder.path(), "size = \"1GiB\"", &["127.0.0.1:0"], &metrics);
    let agent = AgentProcess::start_configured(&config);
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    attached
        .qemu_io(&["write -P 0x31 0 1M", "flush", "read -P 0x31 0 64k"])
        .unwrap();
    let of = |name: &str| figure(address, name);
    assert_eq!(of("quarry_iscsi_command_bytes_total{op=\"write\"}"), 1 << 20);
    assert!(of("quarry_iscsi_command_bytes_total{op=\"read\"}") >= 64 << 10);
    assert!(of("quarry_iscsi_commands_total{op=\"flush\",result=\"good\"}") >= 1);
    assert!(of("quarry_iscsi_command_seconds_count{op=\"write\"}") >= 1);
    let logins = of("quarry_iscsi_logins_total{result=\"ok\"}");
    assert!(logins >= 1);
    assert_eq!(of("quarry_iscsi_sessions"), 0);
    let session = attached.session();
    crate::agent_process::eventually("the session shows", || {
        (of("quarry_iscsi_sessions") == 1).then_some(())
    });
    drop(session);
    let size = of("quarry_pool_size_bytes{pool=\"default\"}");
    assert!((900 << 20..=1 << 30).contains(&size), "{size}");
    assert_eq!(of("quarry_pool_damaged_reads_total{pool=\"default\"}"), 0);

    // A host that keeps trying after it has been detached.
    let data = &attached.connection_info["data"];
    let login = Login {
        initiator: attached.initiator.clone(),
        target: data["target_iqn"].as_str().unwrap().to_owned(),
        user: String::new(),
        secret: String::new(),
        isid: [0x40, 0, 0, 0, 0, 1],
        keys: Vec::new(),
    };
    detach(&agent, &attached);
    for _ in 0..3 {
        assert_eq!(Client::log_in_at(agent.portal, &login).err(), Some(0x0204));
    }
    assert_eq!(of("quarry_iscsi_logins_total{result=\"target_removed\"}"), 3);
    agent.kill();
    let agent = AgentProcess::start_configured(&config);
    assert_eq!(Client::log_in_at(agent.portal, &login).err(), Some(0x0204));
}
