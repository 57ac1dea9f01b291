//! Quarry's public gRPC contract.
