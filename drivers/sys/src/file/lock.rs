//! An exclusive lock on a file, and who holds it when it is taken.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another open file holds it.
    #[error("the lock is held by {}", holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The process that took it, where the kernel tells.
        holder: Option<u32>,
    },
    /// The operating system refused.
    #[error("taking the lock")]
    Io(#[source] io::Error),
}

/// Locks a file exclusively, without waiting, until all descriptors of this open file are closed (flock(2)).
/// The kernel releases it when the process dies, however it dies.
///
/// # Errors
/// [`LockError::Held`] when somebody else has it, also in this process.
pub fn lock_exclusive(file: &File) -> Result<(), LockError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(LockError::Held {
            holder: holder_of(file),
        }),
        Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
    }
}

fn holder_of(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    find_holder(&locks, major(device), minor(device), inode)
}

/// Finds the process that holds the flock on a file in the text of proc_locks(5):
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF`, device numbers in hexadecimal. A process of another pid
/// namespace shows as 0.
fn find_holder(locks: &str, major: u64, minor: u64, inode: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == file => pid.parse().ok().filter(|pid| *pid != 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_is_found_by_device_and_inode_and_waiters_are_not_holders() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 fe:01:777 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 33 fe:01:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 44 fe:01:77 0 EOF\n";
        assert_eq!(find_holder(locks, 0xfe, 1, 77), Some(33));
        assert_eq!(find_holder(locks, 0xfe, 2, 77), None);
        assert_eq!(
            find_holder("1: FLOCK  ADVISORY  WRITE 0 fe:01:5 0 EOF", 0xfe, 1, 5),
            None
        );
    }

    #[test]
    fn second_lock_is_refused_with_the_holder_and_granted_after_the_first_is_closed() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let first = File::open(named.path()).unwrap();
        let second = File::open(named.path()).unwrap();
        lock_exclusive(&first).unwrap();
        match lock_exclusive(&second) {
            Err(LockError::Held { holder }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        lock_exclusive(&second).unwrap();
    }
}
