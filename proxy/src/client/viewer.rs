//! The viewer's side: the handshake that the VM's stream leaves out, or the reason why there is no console.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::protocol::rfb::{Handshake, RfbError, Step, VERSION};

/// How long a viewer may take for its few bytes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Plays the server's side. Gives the bytes that came behind ClientInit.
pub(super) async fn greet(viewer: &mut TcpStream) -> io::Result<Vec<u8>> {
    let greeting = async {
        let (mut handshake, mut buffer) = (Handshake::new(), Vec::with_capacity(64));
        loop {
            let invalid = |error: RfbError| io::Error::new(io::ErrorKind::InvalidData, error);
            match handshake.step(&mut buffer).map_err(invalid)? {
                Step::Send(bytes) => viewer.write_all(bytes).await?,
                Step::Wait if viewer.read_buf(&mut buffer).await? == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Step::Wait => {}
                Step::Done => return Ok(buffer),
            }
        }
    };
    tokio::time::timeout(DEADLINE, greeting).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// Tells the viewer in RFB's own way why there is no console (RFC 6143, 7.1.2: no security type, a reason).
pub(super) async fn refuse(mut viewer: TcpStream, reason: &str) {
    let refusing = async {
        viewer.write_all(VERSION).await?;
        let mut version = [0; 12];
        viewer.read_exact(&mut version).await?;
        let none: &[u8] = if &version == b"RFB 003.003\n" { &[0; 4] } else { &[0] };
        let reason = &reason.as_bytes()[..reason.len().min(1000)];
        let len = (reason.len() as u32).to_be_bytes();
        viewer.write_all(&[none, &len, reason].concat()).await?;
        viewer.shutdown().await?;
        // Until the viewer closes too, so that no reset overtakes the reason.
        let mut rest = [0; 64];
        while viewer.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Best effort: the reason is on the terminal as well.
    let _ = tokio::time::timeout(Duration::from_secs(5), refusing).await;
}

/// Returns when the viewer hangs up. One that speaks before it is greeted is only noticed later.
pub(super) async fn gone(viewer: &TcpStream) {
    if let Ok(1..) = viewer.peek(&mut [0]).await {
        std::future::pending().await
    }
}
