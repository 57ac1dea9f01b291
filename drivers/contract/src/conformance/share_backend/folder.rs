//! Files of what is mounted in a folder of this machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use nix::sys::statvfs::statvfs;

use super::ShareFiles;

/// The files below a folder in which a share is mounted.
pub struct FolderFiles(pub PathBuf);

impl ShareFiles for FolderFiles {
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Not flushed: a snapshot holds what was completed, wherever it is.
        File::create(self.0.join(name))?.write_all(bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        let told = statvfs(&self.0)?;
        Ok(told.blocks() * told.fragment_size())
    }
}
