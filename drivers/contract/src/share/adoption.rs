//! What backends answer to those who adopt and release shares, in one wording.

use crate::{DriverError, FieldDifference, ShareId, ShareVersion};

/// Says that nothing that could be adopted has a name.
pub fn nothing_named(name: &str) -> DriverError {
    DriverError::NotFound {
        object: format!("{name:?}, to be adopted,"),
    }
}

/// Says that a share is there, and so is what it was to be made of.
pub fn adopted_as_another(id: ShareId, name: &str) -> DriverError {
    already_exists(ShareVersion::Share(id).to_string(), "another share", name)
}

/// Says that a share cannot be left under a name.
pub fn name_is_taken(name: &str) -> DriverError {
    already_exists(format!("{name:?}"), "something else", "the share")
}

fn already_exists(object: String, existing: &str, requested: &str) -> DriverError {
    DriverError::AlreadyExists {
        object,
        differences: vec![FieldDifference {
            field: "name".into(),
            existing: existing.into(),
            requested: requested.into(),
        }],
    }
}
