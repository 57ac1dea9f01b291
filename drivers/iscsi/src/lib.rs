//! Quarry's native iSCSI target.
