use proptest::prelude::*;

use super::super::{FrameHeader, put_control, to_utf8};
use super::*;

fn frame(fin: bool, opcode: Opcode, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
    let (header, len) = FrameHeader { fin, opcode, len: payload.len() as u64, mask: key }.bytes();
    let mut bytes = header[..len].to_vec();
    let at = bytes.len();
    bytes.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut bytes[at..], key, 0);
    }
    bytes
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    data: Vec<u8>,
    pings: Vec<Vec<u8>>,
    pongs: usize,
    close: Option<Option<CloseCode>>,
    whole: Vec<u8>,
}

fn run(decoder: &mut Decoder, stream: &[u8], cut: usize) -> Result<Seen, Violation> {
    let mut seen = Seen::default();
    for piece in stream.chunks(cut.max(1)) {
        let (mut piece, mut at) = (piece.to_vec(), 0);
        while let Some(event) = decoder.next(&mut piece, &mut at)? {
            match event {
                Event::Header(bytes, len) => seen.whole.extend(&bytes[..len]),
                Event::Data(range) if decoder.passes_whole() => seen.whole.extend(&piece[range]),
                Event::Data(range) => seen.data.extend(&piece[range]),
                Event::Ping(body) => seen.pings.push(body.as_bytes().to_vec()),
                Event::Pong => seen.pongs += 1,
                Event::Close(code) => seen.close = Some(code),
            }
        }
        assert_eq!(at, piece.len());
    }
    Ok(seen)
}

fn refused(bytes: &[u8]) -> Violation {
    run(&mut Decoder::new(Peer::Client, false), bytes, 1).unwrap_err()
}

const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

#[test]
fn every_rule_has_its_refusal() {
    assert_eq!(refused(&[0xc2]), Violation::ReservedBits);
    assert_eq!(refused(&[0x92]), Violation::ReservedBits);
    for opcode in [3, 7, 11, 15] {
        assert_eq!(refused(&[0x80 | opcode]), Violation::Opcode);
    }
    assert_eq!(refused(&frame(true, Opcode::Binary, b"x", None)), Violation::Unmasked);
    let masked = frame(true, Opcode::Binary, b"x", KEY);
    assert_eq!(run(&mut Decoder::new(Peer::Server, false), &masked, 9).unwrap_err(), Violation::Masked);
    assert_eq!(refused(&frame(false, Opcode::Ping, b"", KEY)), Violation::ControlFrame);
    assert_eq!(refused(&frame(true, Opcode::Ping, &[0; 126], KEY)), Violation::ControlFrame);
    assert_eq!(refused(&frame(true, Opcode::Continuation, b"", KEY)), Violation::Fragments);
    let two = [frame(false, Opcode::Binary, b"", KEY), frame(true, Opcode::Binary, b"", KEY)].concat();
    assert_eq!(refused(&two), Violation::Fragments);
    assert_eq!(refused(&frame(true, Opcode::Text, b"x", KEY)), Violation::DataType);
    assert_eq!(refused(&[0x82, 0xfe, 0, 125, 1, 2, 3, 4]), Violation::Length);
    assert_eq!(refused(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]), Violation::Length);
    assert_eq!(refused(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]), Violation::Length);
    assert_eq!(refused(&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]), Violation::TooBig);
    assert_eq!(refused(&frame(true, Opcode::Close, &[3], KEY)), Violation::CloseBody);
    assert_eq!(refused(&frame(true, Opcode::Close, &[3, 238], KEY)), Violation::CloseBody);
    assert_eq!(refused(&frame(true, Opcode::Close, &[3, 232, 0xc0], KEY)), Violation::Text);
}

#[test]
fn text_is_checked_over_frames_and_at_the_end() {
    let text = |frames: &[(bool, Opcode, &[u8])]| {
        let bytes: Vec<u8> = frames.iter().flat_map(|(fin, op, p)| frame(*fin, *op, p, KEY)).collect();
        run(&mut Decoder::new(Peer::Client, true), &bytes, 3).map(|seen| seen.data)
    };
    let (first, second) = ((false, Opcode::Text, &b"a\xc3"[..]), (true, Opcode::Continuation, &b"\xbf"[..]));
    assert_eq!(text(&[first, second]), Ok(b"a\xff".to_vec()));
    assert_eq!(text(&[(true, Opcode::Text, b"a\xc3")]), Err(Violation::Text));
    assert_eq!(text(&[(true, Opcode::Text, "€".as_bytes())]), Err(Violation::Text));
    assert_eq!(text(&[(true, Opcode::Binary, b"a")]), Err(Violation::DataType));
}

#[test]
fn after_close_nothing_is_read() {
    let bytes = [frame(true, Opcode::Close, b"", KEY), b"\xff\xff\xff".to_vec()].concat();
    let seen = run(&mut Decoder::new(Peer::Client, false), &bytes, 64).unwrap();
    assert_eq!(seen, Seen { close: Some(None), ..Seen::default() });
}

#[derive(Clone, Debug)]
enum Part {
    Message(Vec<Vec<u8>>),
    Ping(Vec<u8>),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let bytes = |n| prop::collection::vec(any::<u8>(), 0..n);
    let message = prop::collection::vec(bytes(300), 1..4).prop_map(Part::Message);
    prop::collection::vec(prop_oneof![3 => message, 1 => bytes(125).prop_map(Part::Ping)], 0..6)
}

proptest! {
    #[test]
    fn however_it_is_cut_the_messages_are_the_same(
        parts in parts(), key: [u8; 4], client: bool, text: bool, cut in 1usize..700,
    ) {
        let (peer, key) = if client { (Peer::Client, Some(key)) } else { (Peer::Server, None) };
        let (mut stream, mut wanted) = (Vec::new(), Seen::default());
        for part in parts {
            match part {
                Part::Message(fragments) => {
                    let last = fragments.len() - 1;
                    for (i, fragment) in fragments.iter().enumerate() {
                        let kind = if text { Opcode::Text } else { Opcode::Binary };
                        let opcode = if i == 0 { kind } else { Opcode::Continuation };
                        let mut payload = Vec::new();
                        if text { to_utf8(fragment, &mut payload) } else { payload.clone_from(fragment) }
                        let bytes = frame(i == last, opcode, &payload, key);
                        wanted.whole.extend(&bytes);
                        wanted.data.extend(fragment);
                        stream.extend(bytes);
                    }
                }
                Part::Ping(body) => {
                    put_control(&mut stream, Opcode::Ping, &body, key);
                    wanted.pings.push(body);
                }
            }
        }
        let seen = run(&mut Decoder::new(peer, text), &stream, cut).unwrap();
        prop_assert_eq!((&seen.data, &seen.pings), (&wanted.data, &wanted.pings));
        let mut whole = Decoder::new(peer, text);
        prop_assert!(whole.pass_whole());
        let seen = run(&mut whole, &stream, cut).unwrap();
        prop_assert_eq!((&seen.whole, &seen.pings), (&wanted.whole, &wanted.pings));
        prop_assert!(whole.between_frames());
    }

    #[test]
    fn any_bytes_end_somewhere(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 1usize..50, client: bool, text: bool) {
        let peer = if client { Peer::Client } else { Peer::Server };
        let whole = run(&mut Decoder::new(peer, text), &bytes, usize::MAX);
        let pieces = run(&mut Decoder::new(peer, text), &bytes, cut);
        prop_assert_eq!(whole.is_ok(), pieces.is_ok());
    }
}
