//! The end of an export, after the table has let go of it: clients get nothing of it any more, and what they still hold
//! keeps its file system busy.
//!
//! In this order: the kernel is asked to give up what clients hold of this file system, which it does for all of it from
//! Linux 6.9 on, for nothing of NFSv4 before; then the mount is ended. As long as that does not work, the clients that hold
//! something are ended, and with them all that they hold of other exports: they get it again by themselves, save for locks.
//! So a client that has locks of another export is left alone, and named.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use quarry_contract::DriverError;
use quarry_sys::filesystem::{mounts_below, unmount};
use tracing::{debug, warn};

use crate::clients::{Client, clients, device_text};
use crate::writer::Writer;

/// The clients that the kernel knows.
pub(crate) const CLIENTS: &str = "/proc/fs/nfsd/clients";
const UNLOCK: &str = "/proc/fs/nfsd/unlock_filesystem";
/// How long the kernel may keep files open that no client holds: it does so for some seconds.
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// How often the kernel is told to let go of what it remembers of the path: clients that ask for it have it remember anew.
const PURGE_PAUSE: Duration = Duration::from_secs(2);

/// Tells whether something is mounted at a path.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(mounts_below(path)?.iter().any(|mount| mount.at == path))
}

/// Ends the mount of what is no longer exported, and removes its folder. False when there is none. `object` is for errors.
///
/// # Errors
/// `Busy` with the addresses of the clients that hold it.
pub(crate) async fn release(writer: &Writer, folder: &Path, object: &str) -> Result<bool, DriverError> {
    let unavailable = |what: &str, source: io::Error| DriverError::Unavailable {
        object: object.to_owned(),
        problem: format!("{what} {}", folder.display()),
        source: Some(source),
    };
    let mut was_mounted = false;
    let began = Instant::now();
    let mut purged: Option<Instant> = None;
    while is_mounted(folder).map_err(|error| unavailable("looking for", error))? {
        was_mounted = true;
        let device = fs::metadata(folder)
            .map_err(|error| unavailable("looking at", error))?
            .dev();
        let device = device_text(device);
        // One line; without its end the kernel does not take it.
        if let Err(error) = fs::write(UNLOCK, format!("{}\n", folder.display())) {
            debug!(object, %error, "the kernel does not give up what clients hold");
        }
        match unmount(folder) {
            Ok(()) => continue,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(unavailable("unmounting", error)),
        }
        if purged.is_none_or(|at| at.elapsed() > PURGE_PAUSE) {
            if let Err(error) = writer.purge().await {
                warn!(object, %error, "the kernel keeps what it remembers of an export that has ended");
            }
            purged = Some(Instant::now());
            continue;
        }
        let holders = holders(&device);
        for client in holders.iter().filter(|client| !client.has_locks_beside(&device)) {
            if let Err(error) = client.expire() {
                warn!(object, client = client.address, %error, "the client's state cannot be ended");
            }
        }
        if began.elapsed() > DEADLINE {
            return Err(DriverError::Busy {
                object: object.to_owned(),
                blockers: blockers(&holders),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unavailable("removing", error)),
        _ => Ok(was_mounted),
    }
}

fn holders(device: &str) -> Vec<Client> {
    let clients = clients(Path::new(CLIENTS)).unwrap_or_default();
    clients
        .into_iter()
        .filter(|client| client.holds(device))
        .collect()
}

fn blockers(holders: &[Client]) -> Vec<String> {
    let mut names: Vec<String> = holders
        .iter()
        .map(|client| format!("NFS client {}", client.address))
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        names.push("files that are open on this machine, or in the kernel's NFS server".to_owned());
    }
    names
}
