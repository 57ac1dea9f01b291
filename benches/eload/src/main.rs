//! eload: one load on one volume of a fresh pool, in this process, by one thread and one queue.
//!
//! It measures the thin engine without network and target, the way fio measures a file and `qemu-img bench` a qcow2
//! image. Requests follow each other at a fixed step, as theirs do. What it is used for: benches/README.md.

mod load;
mod options;
mod stage;

use std::process::ExitCode;

use clap::Parser;

use load::Load;
use options::Options;
use stage::Stage;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("eload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<String> {
    let stage = Stage::set(options)?;
    let report = Load::new(options, stage.queue(options.qd)?).run()?;
    stage.strike()?;
    Ok(serde_json::to_string(&report)?)
}
