//! What RFC 6455 allows and forbids a client to send, case by case, and what the appliance must answer. Two clients of other
//! makes run all of it (`web/cases.mjs`, `web/cases.py`); behind the appliance stands an echo.

use serde_json::{Value, json};

/// Bytes in hexadecimal, or `*n`: n bytes of a pattern.
type Data = String;

/// One connection.
pub struct Case(Value);

fn hex(bytes: impl AsRef<[u8]>) -> Data {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pattern(n: usize) -> Data {
    format!("*{n}")
}

fn frame(opcode: u8, data: Data) -> Value {
    json!({"op": opcode, "data": data})
}

fn bytes(text: &str) -> Value {
    frame(2, hex(text))
}

fn text(data: impl AsRef<[u8]>) -> Value {
    frame(1, hex(data))
}

fn more(data: impl AsRef<[u8]>) -> Value {
    frame(0, hex(data))
}

fn ping(data: &str) -> Value {
    frame(9, hex(data))
}

fn pong(data: &str) -> Value {
    frame(10, hex(data))
}

fn close(code: u16, words: impl AsRef<[u8]>) -> Value {
    frame(8, hex([&code.to_be_bytes(), words.as_ref()].concat()))
}

/// Bytes that no client library would write.
fn raw(data: impl AsRef<[u8]>) -> Value {
    json!({"raw": hex(data)})
}

/// Not the last fragment of its message.
fn unfinished(mut frame: Value) -> Value {
    frame["fin"] = false.into();
    frame
}

fn reserved(bits: u8, mut frame: Value) -> Value {
    frame["rsv"] = bits.into();
    frame
}

fn times(n: usize, mut frame: Value) -> Value {
    frame["times"] = n.into();
    frame
}

/// A masked frame's header (the mask is zero) with a length that is written as it stands, and a body.
fn header(first: u8, length: &[u8], body: &[u8]) -> Value {
    raw([&[first], length, &[0; 4], body].concat())
}

impl Case {
    fn new(class: &str, name: impl Into<String>, send: Vec<Value>) -> Self {
        let name = format!("{class}: {}", name.into());
        Self(json!({"name": name, "send": send, "echo": [], "protocol": "binary"}))
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0[key] = value.into();
        self
    }

    /// The echo of these bytes comes.
    fn echo(mut self, data: Data) -> Self {
        self.0["echo"].as_array_mut().unwrap().push(data.into());
        self
    }

    fn echo_text(self, text: &str) -> Self {
        self.echo(hex(text))
    }

    /// The appliance closes with this code; without it the client does, with 1000, and gets that back.
    fn closed(self, code: u16) -> Self {
        self.with("close", code)
    }

    /// The last pong has this body.
    fn pong(self, data: Data) -> Self {
        self.with("pong", data)
    }

    fn protocol(self, name: Option<&str>) -> Self {
        self.with("protocol", name)
    }

    fn uint8utf8(self) -> Self {
        self.protocol(Some("uint8utf8"))
    }

    /// What is sent once the echo of the rest has come.
    fn then(self, send: Vec<Value>) -> Self {
        self.with("then", send)
    }

    /// Everything in one write.
    fn together(self) -> Self {
        self.with("chop", 0)
    }

    /// In writes of so many bytes.
    fn chop(self, n: usize) -> Self {
        self.with("chop", n)
    }
}

/// All of them, as the clients read them.
pub fn all() -> Value {
    let classes = [
        framing(),
        pings(),
        reserved_bits(),
        opcodes(),
        fragments(),
        types(),
        utf8(),
        closing(),
        masks(),
        lengths(),
    ];
    classes.into_iter().flatten().map(|case| case.0).collect()
}

fn framing() -> Vec<Case> {
    let new = |name: &str, send| Case::new("framing", name, send);
    let mut cases = vec![
        new("an empty frame carries nothing and is no end", vec![bytes(""), bytes("x")]).echo_text("x"),
        new("frames in one piece", vec![bytes("a"), bytes("b"), bytes("c")]).together().echo_text("abc"),
        new("one byte at a time", vec![frame(2, pattern(200)), ping("hi")])
            .chop(1)
            .echo(pattern(200))
            .pong(hex("hi")),
    ];
    for n in [1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20] {
        cases.push(new(&format!("{n} bytes in one frame"), vec![frame(2, pattern(n))]).echo(pattern(n)));
    }
    cases
}

fn pings() -> Vec<Case> {
    let new = |name: &str, send| Case::new("pings", name, send);
    vec![
        new("empty", vec![ping("")]).pong(hex("")),
        new("with text", vec![ping("Hello")]).pong(hex("Hello")),
        new("with any bytes", vec![frame(9, "00fffefd00".into())]).pong("00fffefd00".into()),
        new("with 125 bytes", vec![frame(9, pattern(125))]).pong(pattern(125)),
        new("with 126 bytes", vec![header(0x89, &[0xfe, 0, 126], &[0x2a; 126])]).closed(1002),
        new("a pong that nobody asked for", vec![pong(""), pong("x"), ping("y")]).pong(hex("y")),
        new("of ten in one piece the last", vec![times(9, ping("ping")), ping("last")])
            .together()
            .pong(hex("last")),
        new("a flood, and data behind it", vec![times(20_000, ping("flood")), ping("last"), bytes("data")])
            .together()
            .echo_text("data")
            .pong(hex("last")),
    ]
}

fn reserved_bits() -> Vec<Case> {
    let new = |name: String, send| Case::new("reserved bits", name, send).closed(1002);
    let data = (1..8).map(|bits| {
        new(format!("{bits:03b} on data, after good data"), vec![bytes("good")])
            .echo_text("good")
            .then(vec![reserved(bits, bytes("bad"))])
    });
    let control = [("a ping", ping("x")), ("a close frame", close(1000, ""))];
    let control = control.map(|(what, frame)| new(format!("on {what}"), vec![reserved(4, frame)]));
    data.chain(control).collect()
}

fn opcodes() -> Vec<Case> {
    let unknown = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15];
    let case = |op: u8| Case::new("opcodes", op.to_string(), vec![frame(op, hex("x"))]).closed(1002);
    unknown.map(case).into()
}

fn fragments() -> Vec<Case> {
    let new = |name: &str, send| Case::new("fragments", name, send);
    let first = |text| unfinished(bytes(text));
    let mut many = vec![first("")];
    many.extend((0..100).map(|n| unfinished(more(if n % 3 == 0 { "" } else { "x" }))));
    many.push(more(""));
    vec![
        new("a message of two", vec![first("frag"), more("ments")]).echo_text("fragments"),
        new("of many, empty ones among them", many).echo_text(&"x".repeat(66)),
        new("a ping between", vec![first("a"), ping("now?"), more("b")]).echo_text("ab").pong(hex("now?")),
        new("a pong between", vec![first("a"), pong("x"), more("b")]).echo_text("ab"),
        new("a close frame between", vec![first("a")])
            .echo_text("a")
            .then(vec![close(1000, "")])
            .closed(1000),
        new(
            "in pieces of three bytes",
            vec![unfinished(frame(2, pattern(300))), ping("p"), frame(0, pattern(300))],
        )
        .chop(3)
        .echo(pattern(300))
        .echo(pattern(300))
        .pong(hex("p")),
        new("a ping in fragments", vec![unfinished(ping("x"))]).closed(1002),
        new("a pong in fragments", vec![unfinished(pong("x"))]).closed(1002),
        new("a close frame in fragments", vec![unfinished(close(1000, ""))]).closed(1002),
        new("the end of nothing", vec![more("x")]).closed(1002),
        new("the middle of nothing", vec![unfinished(more("x"))]).closed(1002),
        new("the end of what had ended", vec![bytes("a")]).echo_text("a").then(vec![more("b")]).closed(1002),
        new("a message in a message", vec![first("a")]).echo_text("a").then(vec![bytes("b")]).closed(1002),
    ]
}

fn types() -> Vec<Case> {
    let new = |name: &str, send| Case::new("types", name, send);
    vec![
        new("text where binary was agreed", vec![text("text")]).closed(1003),
        new("text where nothing was agreed", vec![text("text")]).protocol(None).closed(1003),
        new("binary where nothing was agreed", vec![bytes("bytes")]).protocol(None).echo_text("bytes"),
        new("binary where uint8utf8 was agreed", vec![bytes("bytes")]).uint8utf8().closed(1003),
    ]
}

fn utf8() -> Vec<Case> {
    let new = |name: &str, send| Case::new("UTF-8", name, send).uint8utf8();
    let every: Vec<u8> = (0..=255).collect();
    let as_text: String = every.iter().map(|byte| char::from(*byte)).collect();
    let first = |data: &[u8]| unfinished(text(data));
    let mut cases = vec![
        new("ASCII", vec![text("Hello")]).echo_text("Hello"),
        new("each byte there is", vec![text(as_text)]).echo(hex(every)),
        new("cut within a character", vec![first(b"\xc3"), more(b"\xbf")]).echo("ff".into()),
        new("cut within a character, a ping inside", vec![first(b"A\xc3"), ping("\u{e9}"), more(b"\xa9")])
            .echo("41e9".into())
            .pong(hex("\u{e9}")),
        new("64 KiB of two bytes each", vec![text("\u{a0}".repeat(65_536))]).echo("a0".repeat(65_536)),
        new("a message that ends within a character", vec![text(b"\xc3")]).closed(1007),
        new("what can come to nothing is refused before its end", vec![first(b"\x80")]).closed(1007),
    ];
    let bad: [(&str, &[u8]); 10] = [
        ("a continuation alone", b"\x80"),
        ("a lead without its continuation", b"\xc3("),
        ("an overlong form", b"\xc0\x80"),
        ("an overlong form of three", b"\xe0\x80\x80"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("a character that stands for no byte", b"\xc4\x80"),
        ("a character of four bytes", b"\xf0\x9f\x98\x80"),
        ("a character beyond Unicode", b"\xf4\x90\x80\x80"),
        ("a byte that never occurs", b"\xff"),
        ("five bytes, as of old", b"\xf8\x88\x80\x80\x80"),
    ];
    cases.extend(
        bad.map(|(name, bad)| new(name, vec![text("OK")]).echo_text("OK").then(vec![text(bad)]).closed(1007)),
    );
    cases
}

fn closing() -> Vec<Case> {
    let new = |name: &str, send| Case::new("closing", name, send);
    let mut cases = vec![
        new("without a code", vec![frame(8, hex(""))]).closed(1005),
        new("with the longest words", vec![close(1000, [b'a'; 123])]).closed(1000),
        new("with half a code", vec![frame(8, "03".into())]).closed(1002),
        new("with words that are no UTF-8", vec![close(1000, b"\xce\xba\x80")]).closed(1007),
        new("with 126 bytes", vec![header(0x88, &[0xfe, 0, 126], &[3; 126])]).closed(1002),
        new("data behind it are not taken", vec![bytes("a")])
            .echo_text("a")
            .then(vec![close(1000, ""), bytes("b")])
            .together()
            .closed(1000),
        new("a ping behind it is not answered", vec![close(1000, ""), ping("x")]).together().closed(1000),
        new("twice", vec![close(1000, ""), close(1001, "")]).together().closed(1000),
    ];
    for code in
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
    {
        cases.push(new(&format!("code {code}"), vec![close(code, "bye")]).closed(code));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        cases.push(new(&format!("code {code}, which may not be sent"), vec![close(code, "")]).closed(1002));
    }
    cases
}

fn masks() -> Vec<Case> {
    let new = |name: &str, send| Case::new("masks", name, send);
    vec![
        new("data without one", vec![raw(b"\x82\x01A")]).closed(1002),
        new("a ping without one", vec![raw(b"\x89\x00")]).closed(1002),
        new("a close frame without one", vec![raw(b"\x88\x02\x03\xe8")]).closed(1002),
        new("of zeros", vec![header(0x82, &[0x81], b"A")]).echo_text("A"),
    ]
}

fn lengths() -> Vec<Case> {
    let new = |name: &str, send| Case::new("lengths", name, send);
    let long = |n: u64, body: &[u8]| header(0x82, &[&[0xff], &n.to_be_bytes()[..]].concat(), body);
    vec![
        new("two bytes for what fits into seven bits", vec![header(0x82, &[0xfe, 0, 5], b"AAAAA")])
            .closed(1002),
        new("eight bytes for what fits into seven bits", vec![long(5, b"AAAAA")]).closed(1002),
        new("eight bytes for what fits into two", vec![long(200, b"")]).closed(1002),
        new("2^63", vec![long(1 << 63, b"")]).closed(1002),
        new("2^64 - 1", vec![long(u64::MAX, b"")]).closed(1002),
        new("2^63 - 1", vec![long(u64::MAX >> 1, b"")]).closed(1009),
        new("4 GiB and one byte", vec![long((1 << 32) + 1, b"")]).closed(1009),
        new("4 GiB of which ten bytes come: they are delivered", vec![long(1 << 32, &[b'a'; 10])])
            .echo_text("aaaaaaaaaa")
            .with("leave", true),
        new("4 MiB in one frame, in pieces", vec![frame(2, pattern(4 << 20))])
            .chop(70_001)
            .echo(pattern(4 << 20)),
        new("4 MiB in frames of 1000 bytes", vec![times(4096, frame(2, pattern(1000)))])
            .together()
            .with("echo", vec![pattern(1000); 4096]),
    ]
}
