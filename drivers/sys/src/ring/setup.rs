//! Which io_uring features a ring asks for, and whether there is io_uring at all.

use std::io;

use io_uring::IoUring;

/// Tells whether io_uring can be used, by making a small ring.
///
/// # Errors
/// What the kernel says: `PermissionDenied` where a seccomp filter or the sysctl `kernel.io_uring_disabled`
/// forbids it, `Unsupported` on kernels that lack it.
pub fn probe() -> io::Result<()> {
    build(1, 2).map(drop)
}

/// Makes a ring, with fewer features where the kernel refuses the best set.
///
/// `COOP_TASKRUN` spares the interrupt that would force a running thread into the kernel for each completion;
/// `TASKRUN_FLAG` says when completions wait for such an entry. `SINGLE_ISSUER` and `DEFER_TASKRUN` would tie
/// the ring to the thread that made it, and with it the right to drop a queue elsewhere.
pub(super) fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(completions).dontfork();
    let mut best = builder.clone();
    best.setup_coop_taskrun().setup_taskrun_flag();
    match best.build(entries) {
        // Linux before 5.19 does not know the flags.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(entries),
        made => made,
    }
}
