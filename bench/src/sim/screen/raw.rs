//! Screens without RFB.

use std::io;
use std::sync::Arc;

use aws_lc_rs::digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::stream::Stream;
use super::BoxFuture;

type Handler = dyn Fn(Stream) -> BoxFuture<io::Result<()>> + Send + Sync;

/// A handler of the bytes after the hand-over.
#[derive(Clone)]
pub struct RawScreen(Arc<Handler>);

impl RawScreen {
    pub(super) fn new<F, R>(handler: F) -> Self
    where
        F: Fn(Stream) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self(Arc::new(move |stream| Box::pin(handler(stream))))
    }

    pub(super) async fn serve(&self, stream: Stream) -> io::Result<()> {
        (self.0)(stream).await
    }

    pub(super) fn echo() -> Self {
        Self::new(|mut stream| async move {
            let mut buf = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buf).await? {
                    0 => return stream.shutdown().await,
                    n => stream.send(&buf[..n]).await?,
                }
            }
        })
    }

    pub(super) fn source(bytes: u64, seed: u64) -> Self {
        Self::new(move |mut stream| async move {
            let mut pattern = Pattern::new(seed);
            let mut buf = vec![0; 64 << 10];
            let mut left = bytes;
            while left > 0 {
                let n = left.min(buf.len() as u64) as usize;
                pattern.fill(&mut buf[..n]);
                stream.write_all(&buf[..n]).await?;
                left -= n as u64;
            }
            stream.shutdown().await?;
            while stream.read(&mut buf).await? > 0 {}
            Ok(())
        })
    }

    pub(super) fn digest() -> Self {
        Self::new(|mut stream| async move {
            let mut hash = digest::Context::new(&digest::SHA256);
            let mut buf = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buf).await? {
                    0 => break,
                    n => hash.update(&buf[..n]),
                }
            }
            stream.send(hash.finish().as_ref()).await?;
            stream.shutdown().await
        })
    }
}

/// Reproducible bytes that look random: both ends of a bulk test make them from the same seed. (SplitMix64.)
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of bytes of this seed, from its start.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, word: [0; 8], used: 8 }
    }

    /// The next bytes; how they are cut into calls does not matter.
    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == 8 {
                self.word = self.next_word().to_le_bytes();
                self.used = 0;
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }

    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = [0; 100];
        Pattern::new(7).fill(&mut whole);
        let mut cut = [0; 100];
        let mut pattern = Pattern::new(7);
        let (head, tail) = cut.split_at_mut(33);
        pattern.fill(head);
        pattern.fill(tail);
        assert_eq!(whole, cut);
        let mut other = [0; 100];
        Pattern::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }
}
