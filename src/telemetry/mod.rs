//! The log: what the agent tells its operator, on stderr.
//!
//! Fields, not sentences; text on a terminal, JSON elsewhere. Secrets never: types that hold one do not show it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts the log of this process. A second call changes nothing.
pub fn start(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error says that a log is running already, as in a test that starts two agents.
    let _ = match config.format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Auto if !is_terminal => log.json().try_init(),
        LogFormat::Auto | LogFormat::Text => log.with_ansi(is_terminal).try_init(),
    };
}
