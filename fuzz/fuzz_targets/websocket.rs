//! Any bytes as a peer's frames: however the stream is cut, the decoder says the same, and nothing but what it was given lies
//! in the ranges it names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mksgate::protocol::websocket::{Decoder, Event, Peer, Violation};

/// What a decoder made of a stream: the data, how many pings and pongs, and whether it was closed.
type Seen = (Vec<u8>, usize, usize, bool);

fn run(mut decoder: Decoder, stream: &[u8], cut: usize) -> Result<Seen, Violation> {
    let mut seen = Seen::default();
    for piece in stream.chunks(cut) {
        let (mut piece, mut at) = (piece.to_vec(), 0);
        while let Some(event) = decoder.next(&mut piece, &mut at)? {
            assert!(at <= piece.len());
            match event {
                Event::Header(bytes, len) => seen.0.extend(&bytes[..len]),
                Event::Data(range) => seen.0.extend(&piece[range]),
                Event::Ping(body) => seen.1 += 1 + body.as_bytes().len(),
                Event::Pong => seen.2 += 1,
                Event::Close(_) => seen.3 = true,
            }
        }
        assert_eq!(at, piece.len(), "all of it was taken");
    }
    Ok(seen)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, stream)) = bytes.split_first() else { return };
    let decoder = || {
        let peer = if how & 1 == 0 { Peer::Client } else { Peer::Server };
        let mut decoder = Decoder::new(peer, how & 2 != 0);
        if how & 4 != 0 {
            assert!(decoder.pass_whole());
        }
        decoder
    };
    let whole = run(decoder(), stream, stream.len().max(1));
    assert_eq!(whole, run(decoder(), stream, usize::from(how >> 3) + 1));
});
