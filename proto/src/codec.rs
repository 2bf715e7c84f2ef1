//! The codec of messages: prost's encoding from and to one contiguous buffer. tonic's own codec goes
//! through its buffers byte by byte, which shows in a profile with messages this small.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{self, DecodeBuf, EncodeBuf},
};

/// The codec of all calls: encodes `E`, decodes `D`.
#[derive(Debug)]
pub struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message + 'static, D: Message + Default + 'static> codec::Codec for Codec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Encoder<E>;
    type Decoder = Decoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder { page: Vec::new(), of: PhantomData }
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(PhantomData)
    }
}

/// Writes messages.
#[derive(Debug)]
pub struct Encoder<E> {
    page: Vec<u8>,
    of: PhantomData<fn(E)>,
}

/// The most bytes of the buffer that are kept for the next message.
const KEPT: usize = 4 << 10;

impl<E: Message> codec::Encoder for Encoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost::bytes::BufMut as _;
        self.page.clear();
        message.encode(&mut self.page).map_err(|error| Status::internal(error.to_string()))?;
        to.put_slice(&self.page);
        self.page.shrink_to(KEPT);
        Ok(())
    }
}

/// Reads messages.
#[derive(Debug)]
pub struct Decoder<D>(PhantomData<fn() -> D>);

impl<D: Message + Default> codec::Decoder for Decoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        use prost::bytes::Buf as _;
        let length = from.remaining();
        let decoded = match from.chunk() {
            whole if whole.len() == length => {
                let decoded = D::decode(whole);
                from.advance(length);
                decoded
            }
            _ => D::decode(from),
        };
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
