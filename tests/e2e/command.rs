//! The command line, run as a user runs it.

use std::process::{Command, Output};

use serde_json::Value;
use uuid::Uuid;

use crate::agent_process::AgentProcess;

/// What one command did.
#[derive(Debug)]
pub struct Ran {
    line: String,
    output: Output,
}

/// Runs `quarry LINE` against an agent; the line is split at blanks.
pub fn quarry(agent: &AgentProcess, line: &str) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_quarry"))
        .args(line.split_whitespace())
        .env("QUARRY_ENDPOINT", &agent.endpoint)
        .output()
        .unwrap();
    Ran {
        line: line.to_owned(),
        output,
    }
}

/// Runs `quarry LINE -o json`, which must succeed, and returns what it printed.
pub fn json(agent: &AgentProcess, line: &str) -> Value {
    let ran = quarry(agent, &format!("{line} -o json"));
    assert_eq!(ran.code(), 0, "quarry {line}: {}", ran.stderr());
    serde_json::from_slice(&ran.output.stdout).unwrap()
}

/// Runs `quarry LINE`, which must fail with `code`, and returns what it said.
pub fn refused(agent: &AgentProcess, line: &str, code: i32) -> String {
    let ran = quarry(agent, line);
    assert_eq!(
        ran.code(),
        code,
        "quarry {line}: {}{}",
        ran.stdout(),
        ran.stderr()
    );
    assert_eq!(ran.stdout(), "", "quarry {line}");
    ran.stderr()
}

/// Creates a blank volume and returns its id.
pub fn volume(agent: &AgentProcess, size: &str) -> Uuid {
    id(&json(agent, &format!("volume create --size {size}")))
}

/// Takes a snapshot and returns its id.
pub fn snapshot(agent: &AgentProcess, volume: Uuid) -> Uuid {
    id(&json(agent, &format!("snapshot create --volume {volume}")))
}

/// Returns the `id` of an answer.
pub fn id(answer: &Value) -> Uuid {
    answer["id"].as_str().unwrap().parse().unwrap()
}

impl Ran {
    /// Returns the exit code.
    pub fn code(&self) -> i32 {
        self.output
            .status
            .code()
            .unwrap_or_else(|| panic!("quarry {} was killed", self.line))
    }

    /// Returns what it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    /// Returns what it complained about.
    pub fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }
}
