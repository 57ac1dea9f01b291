//! In-memory drivers: the contract's smallest honest implementations, used by tests of the layers above.
