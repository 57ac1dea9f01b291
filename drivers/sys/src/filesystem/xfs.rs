//! The size of a mounted XFS, and what it keeps back (xfs/libxfs/xfs_fs.h).

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

/// `struct xfs_fsop_resblks`.
#[repr(C)]
struct Reserve {
    wanted_blocks: u64,
    held_blocks: u64,
}

const _: () =
    assert!(size_of::<Geometry>() == 256 && size_of::<Growth>() == 16 && size_of::<Reserve>() == 16);

mod ioctls {
    use super::{Geometry, Growth, Reserve};

    nix::ioctl_read!(geometry, b'X', 126, Geometry);
    nix::ioctl_read!(reserve, b'X', 115, Reserve);
    nix::ioctl_readwrite!(set_reserve, b'X', 114, Reserve);
    // Declared as one that reads, and does not write to what the pointer is to.
    nix::ioctl_write_ptr_bad!(
        going_down,
        nix::request_code_read!(b'X', 125, size_of::<u32>()),
        u32
    );
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

/// What a mounted XFS keeps back: free blocks that what is written does not get, only what must not fail, as taking files
/// away. `statfs` does not count them as free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XfsReserve {
    /// How many it is to keep back, in blocks.
    pub wanted_blocks: u64,
    /// How many it does: less, when fewer were free, or when some were needed.
    pub held_blocks: u64,
}

/// Returns what a mounted XFS keeps back.
///
/// # Errors
/// What the operating system says; `ENOTTY` when it is no XFS.
pub fn xfs_reserve(root: &File) -> io::Result<XfsReserve> {
    let mut found = Reserve {
        wanted_blocks: 0,
        held_blocks: 0,
    };
    // SAFETY: XFS_IOC_GET_RESBLKS writes one `struct xfs_fsop_resblks` through the pointer, whose size `Reserve` has
    // (asserted above); the descriptor is open while `root` is borrowed. `std` has no call for it.
    unsafe { ioctls::reserve(root.as_raw_fd(), &mut found) }?;
    Ok(XfsReserve {
        wanted_blocks: found.wanted_blocks,
        held_blocks: found.held_blocks,
    })
}

/// Has a mounted XFS keep back this many of its free blocks, or as many as are free. Needs `CAP_SYS_ADMIN`, and waits
/// while the file system is frozen.
///
/// # Errors
/// What the operating system says.
pub fn set_xfs_reserve(root: &File, blocks: u64) -> io::Result<()> {
    let mut wanted = Reserve {
        wanted_blocks: blocks,
        held_blocks: 0,
    };
    // SAFETY: XFS_IOC_SET_RESBLKS reads and writes one `struct xfs_fsop_resblks` through the pointer, whose size
    // `Reserve` has (asserted above); the descriptor is open while `root` is borrowed. `std` has no call for it.
    unsafe { ioctls::set_reserve(root.as_raw_fd(), &mut wanted) }?;
    Ok(())
}
