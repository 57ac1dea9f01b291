//! Quarry's public gRPC contract: the messages, clients and servers of `quarry.v1`.
//!
//! The contract itself is written in `quarry/v1/*.proto`, where every service, message, field and value is
//! documented; this crate is what `build.rs` makes of it. Messages that carry a secret do not show it in their
//! `Debug` output.

/// The contract, version 1.
#[allow(missing_docs)] // The generated module scaffolding has none; what the .proto files define is documented.
pub mod v1 {
    tonic::include_proto!("quarry.v1");

    /// The encoded `FileDescriptorSet` of the contract and what it imports, comments included; for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quarry.v1.bin"));

    /// The `domain` of every `google.rpc.ErrorInfo` that the agent sends.
    pub const ERROR_DOMAIN: &str = "quarry";

    impl Reason {
        /// Returns the name as it stands in `google.rpc.ErrorInfo.reason`: without the prefix.
        pub fn as_error_info(self) -> &'static str {
            let name = self.as_str_name();
            name.strip_prefix("REASON_").unwrap_or(name)
        }

        /// Finds the reason that `google.rpc.ErrorInfo.reason` names.
        pub fn from_error_info(name: &str) -> Option<Self> {
            Self::from_str_name(&format!("REASON_{name}"))
        }
    }

    impl std::fmt::Debug for ChapCredentials {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("ChapCredentials")
                .field("username", &self.username)
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for ConnectionInfo {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("ConnectionInfo")
                .field("mode", &self.mode())
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for VolumeKey {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("VolumeKey").finish_non_exhaustive()
        }
    }
}
