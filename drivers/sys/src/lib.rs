//! The one place where Quarry uses unsafe code.
