//! Enum values of the contract as the words people read: `POOL_STATE_READ_ONLY` becomes `read_only`.

/// Turns a value's name in the contract into its word.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}
