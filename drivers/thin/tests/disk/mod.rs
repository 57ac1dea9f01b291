//! Block devices, as root.

use std::path::Path;

use quarry_contract::conformance::requirement::{LOOP_DEVICES, skip};
use quarry_sys::loop_device::{LoopDevice, LoopMode};

/// Makes a loop device of a file, or says that a test is skipped.
pub fn loop_device(backing: &Path) -> Option<LoopDevice> {
    match LoopDevice::attach(backing, LoopMode::ReadWrite) {
        Ok(device) => Some(device),
        Err(error) => {
            skip(
                LOOP_DEVICES,
                format!("no loop device can be attached here: {error}"),
            );
            None
        }
    }
}
