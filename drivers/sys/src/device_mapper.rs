//! What the device mapper says of a device (linux/dm-ioctl.h). Devices are made and changed by who owns their
//! metadata, as LVM's tools.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// Where the kernel is asked.
const CONTROL: &str = "/dev/mapper/control";
/// The version of the interface that is spoken, which every kernel since 2.6 knows.
const VERSION: [u32; 3] = [4, 0, 0];
/// Room for what one target says, in bytes.
const ROOM_BYTES: usize = 4096;
/// `DM_BUFFER_FULL_FLAG`: there was more than room for it.
const BUFFER_FULL: u32 = 1 << 8;

const NAME_BYTES: usize = 128;

/// `struct dm_ioctl`, with room behind it.
#[repr(C)]
struct Request {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_number: u32,
    padding: u32,
    device: u64,
    name: [u8; NAME_BYTES],
    uuid: [u8; 129],
    filler: [u8; 7],
    room: [u8; ROOM_BYTES],
}

/// The size of `struct dm_ioctl`, in bytes.
const HEADER_BYTES: usize = 312;
/// The size of `struct dm_target_spec`, in bytes.
const SPEC_BYTES: usize = 40;

const _: () = assert!(size_of::<Request>() == HEADER_BYTES + ROOM_BYTES);

mod ioctls {
    use super::{HEADER_BYTES, Request};

    nix::ioctl_readwrite_bad!(
        table_status,
        nix::request_code_readwrite!(0xfd, 12, HEADER_BYTES),
        Request
    );
}

/// What a device's first target says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// Its kind: `linear`, `thin`, `thin-pool`.
    pub kind: String,
    /// Its length, in bytes.
    pub length_bytes: u64,
    /// What it says, in the words of its kind (Documentation/admin-guide/device-mapper).
    pub status: String,
}

/// Asks a device for its status by its name, as in /dev/mapper. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `NotFound` when there is no such device, or no device mapper; what else the operating system says.
pub fn target_status(name: &str) -> io::Result<TargetStatus> {
    if name.len() >= NAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name} is too long for a device"),
        ));
    }
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let mut request = Box::new(Request {
        version: VERSION,
        data_size: (HEADER_BYTES + ROOM_BYTES) as u32,
        data_start: HEADER_BYTES as u32,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_number: 0,
        padding: 0,
        device: 0,
        name: [0; NAME_BYTES],
        uuid: [0; 129],
        filler: [0; 7],
        room: [0; ROOM_BYTES],
    });
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: DM_TABLE_STATUS reads one `struct dm_ioctl` through the pointer and writes at most `data_size` bytes, which is
    // the size of `Request` (asserted above); the descriptor is open while `control` lives. `std` has no call for it.
    match unsafe { ioctls::table_status(control.as_raw_fd(), &mut *request) } {
        Ok(_) => {}
        Err(nix::errno::Errno::ENXIO) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no device {name}"),
            ));
        }
        Err(error) => return Err(error.into()),
    }
    if request.flags & BUFFER_FULL != 0 || request.target_count == 0 {
        return Err(io::Error::other(format!("device {name} does not say what it is")));
    }
    // Where the kernel has put it: behind what it calls the header.
    let at = (request.data_start as usize).checked_sub(HEADER_BYTES);
    at.and_then(|at| parse_target(request.room.get(at..)?))
        .ok_or_else(|| io::Error::other(format!("device {name} says something that is not understood")))
}

/// Parses a `struct dm_target_spec` and the text behind it.
fn parse_target(bytes: &[u8]) -> Option<TargetStatus> {
    let spec = bytes.get(..SPEC_BYTES)?;
    let sectors = u64::from_ne_bytes(spec[8..16].try_into().ok()?);
    let text = |bytes: &[u8]| {
        let text = CStr::from_bytes_until_nul(bytes).ok()?;
        Some(text.to_str().ok()?.to_owned())
    };
    Some(TargetStatus {
        length_bytes: sectors.checked_mul(512)?,
        kind: text(&spec[24..])?,
        status: text(&bytes[SPEC_BYTES..])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_from_what_the_kernel_writes() {
        let mut bytes = vec![0; SPEC_BYTES];
        bytes[8..16].copy_from_slice(&6_291_456_u64.to_ne_bytes());
        bytes[24..33].copy_from_slice(b"thin-pool");
        bytes.extend_from_slice(b"2 122/1024 1066/49152 - rw\0");
        let target = parse_target(&bytes).unwrap();
        assert_eq!(
            (target.kind.as_str(), target.length_bytes),
            ("thin-pool", 3 << 30)
        );
        assert_eq!(target.status, "2 122/1024 1066/49152 - rw");
        bytes.pop();
        assert_eq!(parse_target(&bytes), None, "without an end");
        assert_eq!(parse_target(&bytes[..SPEC_BYTES - 1]), None);
    }

    #[test]
    fn what_is_not_there_is_told() {
        let error = target_status("quarry-nothing").unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ),
            "{error}"
        );
        assert_eq!(
            target_status(&"a".repeat(128)).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
