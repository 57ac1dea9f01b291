//! Names of things. Every id is a UUID chosen by the caller of the API.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

uuid_id! {
    /// Identifies a volume: a writable, thinly provisioned block device.
    VolumeId
}
uuid_id! {
    /// Identifies a snapshot: an immutable point-in-time version of a volume.
    SnapshotId
}
uuid_id! {
    /// Identifies a share: a file system of a fixed size that clients reach over the network.
    ShareId
}
uuid_id! {
    /// Identifies a snapshot of a share: an immutable point-in-time version of it.
    ShareSnapshotId
}
uuid_id! {
    /// Identifies one access rule of a share or of a snapshot of one.
    AccessRuleId
}

/// The name of a pool, as given in the agent's configuration: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a
/// letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

impl PoolName {
    /// Parses a pool name.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 64 {
            return Err(format!(
                "a pool name has 1 to 64 characters, {text:?} has {}",
                text.len()
            ));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(format!(
                "a pool name begins with a letter or digit, not like {text:?}"
            ));
        }
        match text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || ".-_".contains(*c)))
        {
            Some(bad) => Err(format!(
                "a pool name holds only letters, digits, '.', '_' and '-', not {bad:?}"
            )),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_name_accepts_and_refuses_by_its_rules() {
        for good in ["a", "default", "ssd-1.fast_x", "9", &"x".repeat(64)] {
            assert_eq!(PoolName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(PoolName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
