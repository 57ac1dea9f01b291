//! What a thin pool has left, as the device mapper tells it (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
//!
//! - P1: what is free is what can still be *mapped*: no more than the pool's metadata has room for. A pool whose metadata is
//!   full stops for good; one whose data is full refuses writes.

use std::io;

use quarry_contract::PoolState;
use quarry_sys::device_mapper::target_status;

/// A block of a pool's metadata, in bytes.
const METADATA_BLOCK_BYTES: u64 = 4096;
/// What of the metadata is kept back for what is changed and not added: a part in so many.
const METADATA_KEPT_BACK: u64 = 8;
/// What the map of one chunk takes, in bytes: what LVM, too, makes a pool's metadata by.
const MAP_ENTRY_BYTES: u64 = 64;

/// The figures of a thin pool. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolFigures {
    pub(crate) total_bytes: u64,
    /// P1.
    pub(crate) free_bytes: u64,
    pub(crate) state: PoolState,
}

/// Asks the device of a thin pool, which is named after the pool's volume. Where LVM has put volumes above it, that name is
/// another device's, and the pool's goes on with `-tpool`.
pub(crate) fn figures(volume_device: &str, chunk_bytes: u64) -> io::Result<PoolFigures> {
    let told = match target_status(&format!("{volume_device}-tpool")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => target_status(volume_device)?,
        told => told?,
    };
    parse(&told.status, chunk_bytes)
        .ok_or_else(|| io::Error::other(format!("the thin pool {volume_device} says {:?}", told.status)))
}

/// Parses `2 122/1024 1066/49152 - rw no_discard_passdown error_if_no_space - 256`.
fn parse(status: &str, chunk_bytes: u64) -> Option<PoolFigures> {
    let mut words = status.split(' ').skip(1);
    let mut fraction = || {
        let (used, total) = words.next()?.split_once('/')?;
        Some((used.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    };
    let (metadata_used, metadata_total) = fraction()?;
    let (used, total) = fraction()?;
    let rest: Vec<&str> = words.collect();
    let metadata_left = metadata_total
        .saturating_sub(metadata_used)
        .saturating_sub(metadata_total / METADATA_KEPT_BACK);
    let mappable = metadata_left * METADATA_BLOCK_BYTES / MAP_ENTRY_BYTES;
    let is_read_only = rest.contains(&"ro") || rest.contains(&"needs_check");
    let state = match is_read_only {
        true => PoolState::ReadOnly {
            reason: "its metadata has no room or is damaged; deactivate the pool and repair it with \
                     lvconvert --repair"
                .into(),
        },
        false => PoolState::Up,
    };
    Some(PoolFigures {
        total_bytes: total * chunk_bytes,
        free_bytes: total.saturating_sub(used).min(mappable) * chunk_bytes,
        state,
    })
}

/// Asks the device of a thin volume how much of the pool it has, in bytes.
pub(crate) fn mapped_bytes(device: &str) -> io::Result<u64> {
    let told = target_status(device)?;
    let sectors = told
        .status
        .split(' ')
        .next()
        .and_then(|word| word.parse::<u64>().ok());
    let sectors =
        sectors.ok_or_else(|| io::Error::other(format!("the volume {device} says {:?}", told.status)))?;
    Ok(sectors * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 10;

    #[test]
    fn what_a_pool_says_is_read() {
        let said = "2 122/1024 1066/49152 - rw no_discard_passdown error_if_no_space - 256 ";
        let figures = parse(said, CHUNK).unwrap();
        assert_eq!(figures.total_bytes, 3 << 30);
        assert_eq!(figures.free_bytes, (49152 - 1066) * CHUNK);
        assert_eq!(figures.state, PoolState::Up);
        let said = "3 317/1024 49152/49152 - out_of_data_space no_discard_passdown error_if_no_space - 256 ";
        let figures = parse(said, CHUNK).unwrap();
        assert_eq!((figures.free_bytes, figures.state), (0, PoolState::Up));
        let said = "3 317/1024 49152/49152 - ro no_discard_passdown error_if_no_space needs_check 256 ";
        assert!(matches!(
            parse(said, CHUNK).unwrap().state,
            PoolState::ReadOnly { .. }
        ));
        assert_eq!(parse("Fail", CHUNK), None);
    }

    /// P1.
    #[test]
    fn free_is_what_the_metadata_can_map() {
        let said = "2 880/1024 10/49152 - rw discard_passdown error_if_no_space - 256 ";
        assert_eq!(
            parse(said, CHUNK).unwrap().free_bytes,
            (1024 - 880 - 128) * 64 * CHUNK
        );
        let said = "2 1000/1024 10/49152 - rw discard_passdown error_if_no_space - 256 ";
        assert_eq!(parse(said, CHUNK).unwrap().free_bytes, 0);
    }
}
