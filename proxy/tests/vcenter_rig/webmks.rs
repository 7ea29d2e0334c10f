//! An ESXi host's WebMKS: `wss://host/ticket/T`, each ticket once, RFB in frames; behind it a VNC server.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mksgate::protocol::http::Head;
use mksgate::protocol::websocket::{Decoder, Event, FrameHeader, Opcode, Peer, negotiate};
use mksgate::tls::Thumbprint;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub struct WebMks {
    pub address: SocketAddr,
    pub thumbprint: String,
    used: Arc<Mutex<HashSet<String>>>,
}

impl WebMks {
    pub fn start(vnc: SocketAddr) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["esxi.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let der = made.cert.der().clone();
        let thumbprint = Thumbprint::sha1(&der).to_string();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let used = Arc::<Mutex<HashSet<String>>>::default();
        let (acceptor, spent) = (TlsAcceptor::from(Arc::new(config)), used.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    // An error is the end of a connection.
                    tokio::spawn(serve(acceptor.clone(), tcp, vnc, spent.clone()));
                }
            });
        });
        Self { address, thumbprint, used }
    }

    /// Tickets that were used.
    pub fn used(&self) -> usize {
        self.used.lock().unwrap().len()
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    vnc: SocketAddr,
    used: Arc<Mutex<HashSet<String>>>,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut tls = acceptor.accept(tcp).await?;
    let mut request = Vec::new();
    let (head, len) = loop {
        if tls.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if let Some(whole) = Head::parse(&request).map_err(io::Error::other)? {
            break whole;
        }
    };
    let ticket = head.target.strip_prefix("/ticket/").unwrap_or_default().to_owned();
    if !ticket.starts_with("console-ticket-") || !used.lock().unwrap().insert(ticket) {
        return tls.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    }
    let (response, _) = negotiate(&head).map_err(io::Error::other)?;
    tls.write_all(response.as_bytes()).await?;
    let early = request.split_off(len);
    let (mut from_client, mut to_client) = tokio::io::split(tls);
    let (mut from_vnc, mut to_vnc) = TcpStream::connect(vnc).await?.into_split();
    let up = async move {
        let (mut decoder, mut piece) = (Decoder::new(Peer::Client, false), early);
        loop {
            let mut at = 0;
            while let Some(event) = decoder.next(&mut piece, &mut at).map_err(io::Error::other)? {
                match event {
                    Event::Data(range) => to_vnc.write_all(&piece[range]).await?,
                    Event::Close(_) => return io::Result::Ok(()),
                    _ => {}
                }
            }
            piece.clear();
            if from_client.read_buf(&mut piece).await? == 0 {
                return Ok(());
            }
        }
    };
    let down = async move {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let n = from_vnc.read(&mut piece).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
            let header = FrameHeader { fin: true, opcode: Opcode::Binary, len: n as u64, mask: None };
            let (header, len) = header.bytes();
            to_client.write_all(&[&header[..len], &piece[..n]].concat()).await?;
            to_client.flush().await?;
        }
    };
    tokio::select! { ended = up => ended, ended = down => ended }
}
