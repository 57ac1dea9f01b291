//! Config files for agents that need one.

use std::path::{Path, PathBuf};

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
