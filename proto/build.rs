//! Compiles quarry/v1/*.proto with protox (no protoc needed) into Rust and a descriptor set for reflection.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<PathBuf> = fs::read_dir("quarry/v1")?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=quarry");

    // With source information: the comments become Rust documentation and reach reflection.
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("quarry.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Messages that hold a secret get a Debug of their own (lib.rs).
        .skip_debug([
            "quarry.v1.ChapCredentials",
            "quarry.v1.ConnectionInfo",
            "quarry.v1.VolumeKey",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
