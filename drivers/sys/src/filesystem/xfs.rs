//! The size of a mounted XFS (xfs/libxfs/xfs_fs.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// How a mounted XFS is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XfsGeometry {
    /// The size of a block, in bytes.
    pub block_bytes: u32,
    /// The size of the data part, the log in it included, in blocks.
    pub data_blocks: u64,
    /// The size of the log, in blocks.
    pub log_blocks: u32,
    /// How much of it inodes may take, in percent.
    pub inode_percent: u32,
    /// Its identity.
    pub uuid: [u8; 16],
}

/// `struct xfs_fsop_geom`.
#[repr(C)]
struct Geometry {
    block_size: u32,
    rt_extent_size: u32,
    ag_blocks: u32,
    ag_count: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    inode_percent: u32,
    data_blocks: u64,
    rt_blocks: u64,
    rt_extents: u64,
    log_start: u64,
    uuid: [u8; 16],
    rest: [u64; 22],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct Growth {
    new_blocks: u64,
    inode_percent: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Geometry>() == 256 && size_of::<Growth>() == 16);

mod ioctls {
    use super::{Geometry, Growth};

    nix::ioctl_read!(geometry, b'X', 126, Geometry);
    nix::ioctl_write_ptr!(grow, b'X', 110, Growth);
}

/// Returns how the XFS is laid out that something is open on.
///
/// # Errors
/// What the operating system says; `ENOTTY` when it is no XFS.
pub fn xfs_geometry(root: &File) -> io::Result<XfsGeometry> {
    let mut found = Geometry {
        block_size: 0,
        rt_extent_size: 0,
        ag_blocks: 0,
        ag_count: 0,
        log_blocks: 0,
        sector_size: 0,
        inode_size: 0,
        inode_percent: 0,
        data_blocks: 0,
        rt_blocks: 0,
        rt_extents: 0,
        log_start: 0,
        uuid: [0; 16],
        rest: [0; 22],
    };
    // SAFETY: XFS_IOC_FSGEOMETRY writes one `struct xfs_fsop_geom` through the pointer, whose size `Geometry` has
    // (asserted above); the descriptor is open while `root` is borrowed. `std` has no call for it.
    unsafe { ioctls::geometry(root.as_raw_fd(), &mut found) }?;
    Ok(XfsGeometry {
        block_bytes: found.block_size,
        data_blocks: found.data_blocks,
        log_blocks: found.log_blocks,
        inode_percent: found.inode_percent,
        uuid: found.uuid,
    })
}

/// Grows a mounted XFS to `data_blocks`. Its device is that large already. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the operating system says.
pub fn grow_xfs(root: &File, data_blocks: u64) -> io::Result<()> {
    let growth = Growth {
        new_blocks: data_blocks,
        inode_percent: xfs_geometry(root)?.inode_percent,
        padding: 0,
    };
    // SAFETY: XFS_IOC_FSGROWFSDATA reads one `struct xfs_growfs_data` through the pointer, whose layout `Growth` has
    // (asserted above); the descriptor is open while `root` is borrowed. `std` has no call for it.
    unsafe { ioctls::grow(root.as_raw_fd(), &growth) }?;
    Ok(())
}
