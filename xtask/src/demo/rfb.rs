//! A VNC viewer that looks and types: RFB 3.8, security type None, raw encoding.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open screen.
pub struct Viewer {
    tcp: TcpStream,
    pub width: u16,
    pub height: u16,
    pub name: String,
    /// `0x00RRGGBB`, as far as it was sent.
    pixels: Vec<u32>,
}

impl Viewer {
    /// RFC 6143, 7.1 to 7.3.2.
    pub fn open(addr: SocketAddr) -> Result<Self> {
        let mut tcp = TcpStream::connect(addr)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let version: [u8; 12] = read(&mut tcp)?;
        if &version != b"RFB 003.008\n" {
            bail!("the viewer was greeted with {:?}", String::from_utf8_lossy(&version));
        }
        tcp.write_all(&version)?;
        let [count] = read(&mut tcp)?;
        let mut offered = vec![0; usize::from(count)];
        tcp.read_exact(&mut offered)?;
        if !offered.contains(&1) {
            bail!("security types {offered:?}, not None");
        }
        tcp.write_all(&[1])?;
        if read::<4>(&mut tcp)? != [0; 4] {
            bail!("the security handshake failed");
        }
        tcp.write_all(&[1])?;
        let init: [u8; 24] = read(&mut tcp)?;
        let [w1, w0, h1, h0, ..] = init;
        let mut name =
            vec![0; u32::from_be_bytes([init[20], init[21], init[22], init[23]]).min(4096) as usize];
        tcp.read_exact(&mut name)?;
        // 32 bits, little endian, red at 16: what both kinds of screen have by themselves, asked for all the same.
        tcp.write_all(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])?;
        tcp.write_all(&[2, 0, 0, 1, 0, 0, 0, 0])?;
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        let pixels = vec![0; usize::from(width) * usize::from(height)];
        Ok(Self { tcp, width, height, name: String::from_utf8_lossy(&name).into_owned(), pixels })
    }

    /// Presses and releases a key.
    pub fn key(&mut self, keysym: u32) -> Result<()> {
        for down in [1, 0] {
            self.tcp.write_all(&[4, down, 0, 0])?;
            self.tcp.write_all(&keysym.to_be_bytes())?;
        }
        Ok(())
    }

    /// Asks for the screen and waits for the next picture of it; returns how many pixels came.
    pub fn update(&mut self, incremental: bool) -> Result<usize> {
        self.tcp.write_all(&[3, u8::from(incremental), 0, 0, 0, 0])?;
        self.tcp.write_all(&self.width.to_be_bytes())?;
        self.tcp.write_all(&self.height.to_be_bytes())?;
        loop {
            match read::<1>(&mut self.tcp)? {
                [0] => return self.picture(),
                [2] => {}
                [3] => {
                    let head: [u8; 7] = read(&mut self.tcp)?;
                    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
                    std::io::copy(&mut (&self.tcp).take(length.into()), &mut std::io::sink())?;
                }
                [other] => bail!("RFB server message {other}"),
            }
        }
    }

    fn picture(&mut self) -> Result<usize> {
        let [_, r1, r0] = read(&mut self.tcp)?;
        let mut seen = 0;
        for _ in 0..u16::from_be_bytes([r1, r0]) {
            let head: [u8; 12] = read(&mut self.tcp)?;
            let field = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
            let (x, y, w, h) = (field(0), field(2), field(4), field(6));
            let inside = x + w <= usize::from(self.width) && y + h <= usize::from(self.height);
            if head[8..] != [0; 4] || !inside {
                bail!("a rectangle that was not asked for: {head:?}");
            }
            let mut row = vec![0; 4 * w];
            for line in y..y + h {
                self.tcp.read_exact(&mut row)?;
                let start = line * usize::from(self.width) + x;
                for (pixel, bytes) in self.pixels[start..start + w].iter_mut().zip(row.as_chunks::<4>().0) {
                    *pixel = u32::from_le_bytes(*bytes) & 0x00ff_ffff;
                }
            }
            seen += w * h;
        }
        Ok(seen)
    }

    /// Colour of a pixel, `0x00RRGGBB`.
    pub fn pixel(&self, x: u16, y: u16) -> u32 {
        self.pixels[usize::from(y) * usize::from(self.width) + usize::from(x)]
    }

    /// Different colours on the screen.
    pub fn colours(&self) -> usize {
        self.pixels.iter().collect::<BTreeSet<_>>().len()
    }
}

fn read<const N: usize>(tcp: &mut TcpStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes)?;
    Ok(bytes)
}
