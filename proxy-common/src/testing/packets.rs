//! Packets of every shape the reader knows, right and wrong.

use std::{vec, vec::Vec};

/// xorshift64*: the same packets for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A VLAN tag's type and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan(pub u16, pub u16);

/// What a packet is made of; the fields of its headers follow unless told otherwise.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Outer tag first.
    pub vlans: Vec<Vlan>,
    /// Replaces the type that the addresses ask for.
    pub ether_type: Option<u16>,
    /// 4 or 16 bytes.
    pub source: Vec<u8>,
    /// As long as `source`.
    pub destination: Vec<u8>,
    /// Bytes of IPv4 options, a multiple of 4 up to 40.
    pub options: usize,
    /// IPv6 extension headers: type and length in bytes (a multiple of 8, of 4 for type 51).
    pub extensions: Vec<(u8, usize)>,
    /// The fragment field of IPv4, or of every IPv6 fragment header.
    pub fragment: u16,
    /// The transport protocol.
    pub protocol: u8,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP flags.
    pub flags: u8,
    /// Bytes of TCP options, a multiple of 4 up to 40.
    pub tcp_options: usize,
    /// Bytes behind.
    pub payload: usize,
}

impl Shape {
    /// A plain SYN between two addresses of one family.
    pub fn syn(source: &[u8], destination: &[u8], port: u16) -> Shape {
        Shape {
            vlans: Vec::new(),
            ether_type: None,
            source: source.to_vec(),
            destination: destination.to_vec(),
            options: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol: 6,
            ports: (40_000, port),
            sequence: 0x0102_0304,
            flags: 0x02,
            tcp_options: 20,
            payload: 0,
        }
    }

    /// The frame. Checksums are zero: the gate looks at none.
    pub fn build(&self) -> Vec<u8> {
        let v6 = self.source.len() == 16;
        let mut out = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for Vlan(kind, value) in &self.vlans {
            out.extend(kind.to_be_bytes());
            out.extend(value.to_be_bytes());
        }
        out.extend(self.ether_type.unwrap_or(if v6 { 0x86dd } else { 0x0800 }).to_be_bytes());
        let segment = self.segment();
        let network = if v6 { self.v6(segment.len()) } else { self.v4(segment.len()) };
        out.extend(network);
        out.extend(segment);
        out
    }

    fn v4(&self, segment: usize) -> Vec<u8> {
        let header = 20 + self.options;
        let mut out = vec![0x40 | (header / 4) as u8, 0];
        out.extend(((header + segment) as u16).to_be_bytes());
        out.extend([0x12, 0x34]);
        out.extend(self.fragment.to_be_bytes());
        out.extend([64, self.protocol, 0, 0]);
        out.extend(&self.source);
        out.extend(&self.destination);
        out.extend(vec![1; self.options]);
        out
    }

    fn v6(&self, segment: usize) -> Vec<u8> {
        let chain: usize = self.extensions.iter().map(|(_, length)| length).sum();
        let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.push(self.protocol);
        let mut out = vec![0x60, 0, 0, 0];
        out.extend(((chain + segment) as u16).to_be_bytes());
        out.extend([kinds[0], 64]);
        out.extend(&self.source);
        out.extend(&self.destination);
        for (i, (kind, length)) in self.extensions.iter().enumerate() {
            let mut header = vec![0; *length];
            header[0] = kinds[i + 1];
            match kind {
                44 => header[2..4].copy_from_slice(&self.fragment.to_be_bytes()),
                51 => header[1] = (length / 4 - 2) as u8,
                _ => header[1] = (length / 8 - 1) as u8,
            }
            out.extend(header);
        }
        out
    }

    fn segment(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.ports.0.to_be_bytes());
        out.extend(self.ports.1.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend([0; 4]);
        out.extend([((20 + self.tcp_options) / 4 * 16) as u8, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        out.extend(vec![1; self.tcp_options]);
        out.extend(vec![0xab; self.payload]);
        out
    }
}

/// One of each kind, by name: the corpus to start from.
pub fn shapes(source: [&[u8]; 2], destination: [&[u8]; 2], port: u16) -> Vec<(&'static str, Shape)> {
    let v4 = || Shape::syn(source[0], destination[0], port);
    let v6 = || Shape::syn(source[1], destination[1], port);
    let tagged = |shape: Shape, vlans: &[Vlan]| Shape { vlans: vlans.to_vec(), ..shape };
    vec![
        ("v4 syn", v4()),
        ("v6 syn", v6()),
        ("v4 syn with options", Shape { options: 40, ..v4() }),
        ("v4 syn with payload", Shape { payload: 100, ..v4() }),
        ("v4 one tag", tagged(v4(), &[Vlan(0x8100, 5)])),
        ("v6 two tags", tagged(v6(), &[Vlan(0x88a8, 5), Vlan(0x8100, 6)])),
        ("v4 three tags", tagged(v4(), &[Vlan(0x88a8, 5), Vlan(0x8100, 6), Vlan(0x8100, 7)])),
        ("v4 established", Shape { flags: 0x10, payload: 1000, ..v4() }),
        ("v4 syn ack", Shape { flags: 0x12, ..v4() }),
        ("v4 syn rst", Shape { flags: 0x06, ..v4() }),
        ("v4 udp", Shape { protocol: 17, ..v4() }),
        ("v4 icmp", Shape { protocol: 1, ..v4() }),
        ("v4 first fragment", Shape { fragment: 0x2000, ..v4() }),
        ("v4 later fragment", Shape { fragment: 0x2010, ..v4() }),
        ("v6 chain", Shape { extensions: vec![(0, 8), (60, 24), (43, 8), (51, 24)], ..v6() }),
        ("v6 first fragment", Shape { extensions: vec![(44, 8)], fragment: 1, ..v6() }),
        ("v6 later fragment", Shape { extensions: vec![(44, 8)], fragment: 0x80, ..v6() }),
        ("v6 longest chain", Shape { extensions: vec![(60, 8); 6], ..v6() }),
        ("v6 chain too long", Shape { extensions: vec![(60, 8); 7], ..v6() }),
        ("v6 icmp", Shape { protocol: 58, ..v6() }),
        ("arp", Shape { ether_type: Some(0x0806), ..v4() }),
        ("another port", Shape { ports: (1, port + 1), ..v4() }),
    ]
}

/// An endless run of packets, about half of them SYNs to the protected addresses and ports, many of them damaged.
pub struct Packets {
    random: Random,
    sources: Vec<Vec<u8>>,
    destinations: Vec<Vec<u8>>,
    ports: Vec<u16>,
}

impl Packets {
    /// Packets between these; addresses of 4 and of 16 bytes, at least one of each on both sides.
    pub fn new(seed: u64, sources: Vec<Vec<u8>>, destinations: Vec<Vec<u8>>, ports: Vec<u16>) -> Packets {
        Packets { random: Random::new(seed), sources, destinations, ports }
    }

    fn shape(&mut self) -> Shape {
        let r = &mut self.random;
        let source = self.sources[r.below(self.sources.len() as u64) as usize].clone();
        let same: Vec<&Vec<u8>> = self.destinations.iter().filter(|d| d.len() == source.len()).collect();
        let destination = same[r.below(same.len() as u64) as usize].clone();
        let kinds = [0_u8, 43, 44, 51, 60, 135, 139, 140];
        let chain = if r.one_in(3) { r.below(9) } else { 0 };
        let extensions = (0..chain)
            .map(|_| match r.of(&kinds) {
                44 => (44, 8),
                51 => (51, 8 + 4 * r.below(10) as usize),
                kind => (kind, 8 + 8 * if r.one_in(40) { r.below(256) } else { r.below(4) } as usize),
            })
            .collect();
        let vlans = (0..if r.one_in(3) { r.below(4) } else { 0 })
            .map(|_| Vlan(r.of(&[0x8100, 0x88a8]), r.bits() as u16))
            .collect();
        Shape {
            vlans,
            ether_type: r.one_in(30).then(|| r.bits() as u16),
            source,
            destination,
            options: if r.one_in(4) { 4 * r.below(11) as usize } else { 0 },
            extensions,
            fragment: if r.one_in(10) { r.of(&[0x2000, 0x2001, 1, 0x4000, 8, 9]) } else { 0 },
            protocol: if r.one_in(10) { r.bits() as u8 } else { 6 },
            ports: (r.bits() as u16, self.ports[r.below(self.ports.len() as u64) as usize]),
            sequence: r.bits() as u32,
            flags: if r.one_in(4) { r.bits() as u8 } else { 0x02 },
            tcp_options: 4 * r.below(11) as usize,
            payload: if r.one_in(4) { r.below(1200) as usize } else { 0 },
        }
    }

    fn damage(&mut self, packet: &mut Vec<u8>) {
        let r = &mut self.random;
        let length = packet.len() as u64;
        match r.below(4) {
            0 => packet.truncate(r.below(length + 1) as usize),
            1 => (0..1 + r.below(4)).for_each(|_| packet[r.below(length) as usize] ^= 1 << r.below(8)),
            2 => (0..1 + r.below(4)).for_each(|_| packet[r.below(length.min(80)) as usize] = r.bits() as u8),
            _ => packet.extend((0..r.below(600)).map(|_| 0)),
        }
    }
}

impl Iterator for Packets {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut packet = self.shape().build();
        if self.random.one_in(3) {
            self.damage(&mut packet);
        }
        Some(packet)
    }
}
