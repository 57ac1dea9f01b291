//! Config files for agents that need one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Returns an address with a port that nobody has, on 127.0.0.`own`, which only one test uses: there it stays free until that
/// test has it, and while its agent is away.
pub fn free_address(own: u8) -> SocketAddr {
    let socket = TcpListener::bind((Ipv4Addr::new(127, 0, 0, own), 0)).unwrap();
    socket.local_addr().unwrap()
}

/// Writes a config file into a folder, in which the agent keeps everything, and returns its path. `pool` is what is said of
/// the pool beside where it is, `portals` is where initiators log in, and `more` are further sections.
pub fn write(folder: &Path, pool: &str, portals: &[&str], more: &str) -> PathBuf {
    let config = folder.join("quarry.toml");
    let folder = folder.display();
    let text = format!(
        r#"
[agent]
state_dir = "{folder}/state"
[api]
listen = "unix:{folder}/quarry.sock"
[pool.default]
path = "{folder}/default.pool"
create = true
{pool}
[target]
listen = {portals:?}
{more}
"#
    );
    std::fs::write(&config, text).unwrap();
    config
}
