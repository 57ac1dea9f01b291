//! Folders, and who has them.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use quarry_sys::file::{LockError, lock_exclusive};

/// Makes a folder with its parents; one that is there is left as it is. `mode` is that of mkdir(2).
///
/// # Errors
/// What the operating system says.
pub fn make(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Takes the folder of a server's state for this process, for as long as the file is open: another agent that wants it is
/// told who has it.
///
/// # Errors
/// [`LockError`], also when the file cannot be made.
pub fn take(folder: &Path) -> Result<File, LockError> {
    let file = File::create(folder.join("lock")).map_err(LockError::Io)?;
    lock_exclusive(&file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_made_with_its_mode_and_taken_once() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("a/b");
        for _ in 0..2 {
            make(&folder, 0o700).unwrap();
        }
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let taken = take(&folder).unwrap();
        assert!(matches!(take(&folder), Err(LockError::Held { .. })));
        drop(taken);
        take(&folder).unwrap();
        assert!(matches!(take(&folder.join("missing")), Err(LockError::Io(_))));
    }
}
