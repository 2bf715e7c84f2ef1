//! The wire protocol of syncd: generated messages and gRPC code, endpoints, and the socket between
//! client and daemon.

pub mod codec;
pub mod endpoint;
pub mod socket;

pub use endpoint::Endpoint;

/// The version of the session protocol, as in `Open.protocol`.
pub const PROTOCOL: u32 = 1;

/// The `.proto` files as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Package `syncd.v1`, generated from `syncd/v1/*.proto`, whose comments are the reference.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("syncd.v1");
}
