//! Clients that come all the time, one console after the other, while the service is killed and started again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::support::{PATIENCE, VM, client};

/// Consoles that each client has of the process that comes after.
const AFTER: usize = 5;

/// How a door is passed, up to the dialogue.
pub type Door = fn(TcpStream) -> io::Result<client::Tls>;

/// The raw door.
pub fn authd(mut tcp: TcpStream) -> io::Result<client::Tls> {
    client::plain_line(&mut tcp)?;
    client::Tls::start(tcp)
}

/// The TLS door.
pub fn mks(tcp: TcpStream) -> io::Result<client::Tls> {
    let mut tls = client::Tls::start(tcp)?;
    tls.ask("GET /mks HTTP/1.1\r\nHost: console.example\r\nConnection: Upgrade\r\nUpgrade: mks\r\n")?;
    while !tls.line()?.is_empty() {}
    Ok(tls)
}

/// Runs `kill` amid the consoles of a client at each door; it returns when the process is dead. No client is ever refused by
/// the kernel, and none that comes to a dead process by the next one: it waits, and has its console. The one console that
/// a client had of the dying process may be cut.
pub fn around(kill: impl FnOnce(), doors: &[(SocketAddr, Door, String)]) {
    let dead = AtomicBool::new(false);
    thread::scope(|scope| {
        let knocking: Vec<_> = doors
            .iter()
            .map(|(address, door, ticket)| {
                let (tell, had) = mpsc::channel();
                let dead = &dead;
                let client = scope.spawn(move || knock(*address, *door, ticket, dead, &tell));
                (client, had)
            })
            .collect();
        let end = Dead(&dead);
        let has_one = |(_, had): &(_, Receiver<()>)| had.recv_timeout(PATIENCE).is_ok();
        assert!(knocking.iter().all(has_one), "a console of the first process at each door");
        kill();
        drop(end);
        knocking.into_iter().for_each(|(client, _)| client.join().unwrap());
    });
}

/// Says that the process is dead when it is dropped, by a failed assertion too: the clients come to an end.
struct Dead<'a>(&'a AtomicBool);

impl Drop for Dead<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn knock(address: SocketAddr, door: Door, ticket: &str, dead: &AtomicBool, tell: &mpsc::Sender<()>) {
    let (mut after, mut cut) = (0, 0);
    while after < AFTER {
        let was_dead = dead.load(Ordering::SeqCst);
        let tcp = TcpStream::connect(address).unwrap_or_else(|e| panic!("refused at {address}: {e}"));
        match console(tcp, door, ticket) {
            Ok(()) if was_dead => after += 1,
            Ok(()) => drop(tell.send(())),
            Err(error) => {
                assert!(!was_dead, "came when the process was dead, and was not served: {error}");
                cut += 1;
                assert_eq!(cut, 1, "more than the console that was open at its death: {error}");
            }
        }
    }
}

/// A console from its first word to its end.
fn console(tcp: TcpStream, door: Door, ticket: &str) -> Result<(), String> {
    let mut console = ready(&tcp)
        .and_then(|()| door(tcp))
        .map_err(|e| e.to_string())
        .and_then(|tls| client::open(tls, ticket, VM))?;
    let mut talk = || {
        console.write_all(b"knock knock")?;
        console.read_exact(&mut [0; 11])?;
        console.shutdown(Shutdown::Write)?;
        // Its place is free again when the other side has closed, too.
        console.read_to_end(&mut Vec::new())
    };
    talk().map(drop).map_err(|e| e.to_string())
}

fn ready(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))
}
