//! A real VNC server as a machine's screen: the RFB handshake is played to it, the rest passes.

use std::io;
use std::net::SocketAddr;

use des::Des;
use des::cipher::{Array, BlockCipherEncrypt as _, KeyInit as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::TcpStream;

use super::super::event::Closed;
use super::super::stream::Stream;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
const SECURITY_NONE: u8 = 1;
const SECURITY_VNC: u8 = 2;
/// Longest reason text of a refusal that is read.
const MAX_REASON: u32 = 4096;

/// Where the VNC server is.
#[derive(Clone)]
pub struct VncServer {
    /// Its address.
    pub addr: SocketAddr,
    /// For security type 2.
    pub password: Option<String>,
}

impl VncServer {
    pub(super) async fn serve(&self, stream: &mut Stream) -> Result<(), Closed> {
        let mut server = TcpStream::connect(self.addr).await.map_err(|err| self.error(&err))?;
        server.set_nodelay(true)?;
        self.handshake(&mut server).await.map_err(|err| self.error(&err))?;
        let (mut from_client, mut to_client) = tokio::io::split(stream);
        let (mut from_server, mut to_server) = server.split();
        tokio::select! {
            up = copy(&mut from_client, &mut to_server) => match up {
                Ok(_) => Err(Closed::Client),
                Err(err) => Err(err.into()),
            },
            down = copy(&mut from_server, &mut to_client) => {
                down?;
                Ok(to_client.shutdown().await?)
            }
        }
    }

    fn error(&self, err: &io::Error) -> Closed {
        Closed::Error(format!("VNC server {}: {err}", self.addr))
    }

    /// RFC 6143, 7.1 up to and including ClientInit.
    async fn handshake(&self, server: &mut TcpStream) -> io::Result<()> {
        let mut version = [0; 12];
        server.read_exact(&mut version).await?;
        if &version != VERSION {
            return Err(refused(format!("speaks {:?}, not RFB 3.8", String::from_utf8_lossy(&version))));
        }
        server.write_all(VERSION).await?;
        let count = server.read_u8().await?;
        if count == 0 {
            return Err(refused(reason(server).await?));
        }
        let mut offered = vec![0; usize::from(count)];
        server.read_exact(&mut offered).await?;
        match &self.password {
            None if offered.contains(&SECURITY_NONE) => server.write_u8(SECURITY_NONE).await?,
            Some(password) if offered.contains(&SECURITY_VNC) => {
                server.write_u8(SECURITY_VNC).await?;
                let mut challenge = [0; 16];
                server.read_exact(&mut challenge).await?;
                server.write_all(&vnc_response(password.as_bytes(), challenge)).await?;
            }
            _ => return Err(refused(format!("offers only security types {offered:?}"))),
        }
        if server.read_u32().await? != 0 {
            return Err(refused(reason(server).await?));
        }
        // Shared: other viewers stay.
        server.write_u8(1).await
    }
}

async fn reason(server: &mut TcpStream) -> io::Result<String> {
    let length = server.read_u32().await?.min(MAX_REASON);
    let mut text = vec![0; length as usize];
    server.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// RFC 6143, 7.2.2: DES over the challenge; the key's bytes have their bits mirrored, as in every implementation.
fn vnc_response(password: &[u8], challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (slot, byte) in key.iter_mut().zip(password) {
        *slot = byte.reverse_bits();
    }
    let des = Des::new(&Array::from(key));
    let mut response = challenge;
    for block in response.as_chunks_mut::<8>().0 {
        let mut array = Array::from(*block);
        des.encrypt_block(&mut array);
        block.copy_from_slice(&array);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn des_known_answer() {
        // The classic worked example of DES: key 133457799BBCDFF1. A VNC password is the key with its bits mirrored.
        let password = 0x1334_5779_9bbc_dff1_u64.to_be_bytes().map(u8::reverse_bits);
        let mut challenge = [0; 16];
        challenge[..8].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_be_bytes());
        challenge[8..].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_be_bytes());
        let answer = vnc_response(&password, challenge);
        assert_eq!(answer[..8], 0x85e8_1354_0f0a_b405_u64.to_be_bytes());
        assert_eq!(answer[8..], answer[..8]);
    }
}
