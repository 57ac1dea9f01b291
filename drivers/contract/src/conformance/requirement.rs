//! What a test needs of the machine that it runs on.

use std::fmt::Display;

/// Says that a test, or a part of it, is skipped, unless `variable` is set in the environment: whoever sets it says that the
/// machine has what the test needs.
///
/// # Panics
/// When it is set.
pub fn skip(variable: &str, why: impl Display) {
    assert!(
        std::env::var_os(variable).is_none(),
        "{variable} is set, but {why}"
    );
    println!("SKIPPED: {why}");
}

/// Loop devices can be attached, and file systems mounted: as root, where the kernel has loop devices.
pub const LOOP_DEVICES: &str = "QUARRY_REQUIRE_LOOP_DEVICES";

/// io_uring is allowed.
pub const URING: &str = "QUARRY_REQUIRE_URING";

/// Control groups that limit memory can be made.
pub const MEMORY_GROUP: &str = "QUARRY_REQUIRE_MEMORY_GROUP";
