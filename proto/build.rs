//! Compiles `syncd/v1/*.proto` with protox, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["syncd/v1/session.proto", "syncd/v1/inspect.proto"];
    println!("cargo:rerun-if-changed=syncd");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::Codec")
        // Rare and large: every other message would be as large.
        .boxed(".syncd.v1.ServerMessage.message.error")
        .boxed(".syncd.v1.Granted.abandoned")
        .compile_fds(descriptors)?;
    Ok(())
}
