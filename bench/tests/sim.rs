//! The simulated host from outside, with a client of another make.

#[path = "common/mod.rs"]
mod client;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use client::{NONCE, connect, line, open, server_init};
use mksgate_bench::sim::cert::TlsVersions;
use mksgate_bench::sim::config::BANNER_PLAIN;
use mksgate_bench::sim::screen::Pattern;
use mksgate_bench::sim::{
    Closed, Cut, Desktop, Drip, Esxi, EsxiConfig, EventKind, Fault, Faults, Screen, Slow, Step, Ticket, Vm,
};

const VM: &str = "[ds 1] web (prod)/web.vmx";
const TICKET: &str = "52b1-7f";
const SOON: Duration = Duration::from_secs(20);

fn host(screen: Screen) -> Esxi {
    Esxi::start(config(Vm::new(VM, screen))).unwrap()
}

fn config(vm: Vm) -> EsxiConfig {
    EsxiConfig::default().vm(vm).ticket(Ticket::new(TICKET, VM))
}

fn how_it_ended(esxi: &Esxi) -> Closed {
    let closed =
        |event: &_| matches!(event, &mksgate_bench::sim::Event { kind: EventKind::Closed { .. }, .. });
    match esxi.events().wait_blocking(SOON, closed).map(|event| event.kind) {
        Some(EventKind::Closed { how, .. }) => how,
        other => panic!("no end: {other:?}"),
    }
}

#[test]
fn a_console_by_the_books_in_every_tls_version() {
    for tls in [TlsVersions::Tls12, TlsVersions::Tls13, TlsVersions::Both] {
        let desktop = Desktop::still().named("web");
        let vm = Vm::new(VM, Screen::Desktop(desktop.clone()));
        let esxi = Esxi::start(EsxiConfig { tls, ..config(vm) }).unwrap();

        let first = connect(esxi.addr()).unwrap();
        assert_eq!(first.host_sha1, esxi.thumbprint_sha1().replace(':', "").to_lowercase());
        let mut console = first.console(TICKET, VM).unwrap();
        assert_eq!(server_init(&mut console).unwrap(), (640, 400, "web".to_owned()));

        // VMware's type 127, a key, then the whole screen: the mark at (8, 8) is the key.
        console.write_all(&[127, 4, 0, 10, 0, 1, 0, 2, 0, 0]).unwrap();
        console.write_all(&[4, 1, 0, 0, 0, 0, 0, 0x6b]).unwrap();
        console.write_all(&[3, 0, 0, 8, 0, 8, 0, 1, 0, 1]).unwrap();
        let mut update = [0; 4 + 12 + 4];
        console.read_exact(&mut update).unwrap();
        assert_eq!(update[..16], [0, 0, 0, 1, 0, 8, 0, 8, 0, 1, 0, 1, 0, 0, 0, 0]);
        let pixel = u32::from_le_bytes(update[16..].try_into().unwrap());
        assert_eq!(pixel, Desktop::key_colour(0x6b));
        assert_eq!(desktop.keys(), [0x6b]);

        drop(console);
        assert_eq!(how_it_ended(&esxi), Closed::Client);
        assert_eq!(esxi.open_connections(), 0);
        esxi.stop();
    }
}

#[test]
fn the_desktop_moves_by_itself() {
    let esxi = host(Screen::desktop());
    let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    server_init(&mut console).unwrap();
    let mut changes = Vec::new();
    for incremental in [0, 1, 1] {
        console.write_all(&[3, incremental, 0, 0, 0, 0, 2, 128, 1, 144]).unwrap();
        let mut head = [0; 4];
        console.read_exact(&mut head).unwrap();
        let rects = u16::from_be_bytes([head[2], head[3]]);
        let mut pixels = 0;
        for _ in 0..rects {
            let mut rect = [0; 12];
            console.read_exact(&mut rect).unwrap();
            let area = usize::from(u16::from_be_bytes([rect[4], rect[5]]))
                * usize::from(u16::from_be_bytes([rect[6], rect[7]]));
            console.read_exact(&mut vec![0; 4 * area]).unwrap();
            pixels += area;
        }
        changes.push(pixels);
    }
    assert_eq!(changes[0], 640 * 400);
    assert!(changes[1..].iter().all(|pixels| (1..640 * 400 / 4).contains(pixels)), "{changes:?}");
}

#[test]
fn commands_out_of_order_get_authds_own_codes() {
    let esxi = host(Screen::echo());
    esxi.add_vm(Vm::new("[ds] other.vmx", Screen::echo())).unwrap();
    let mut client = connect(esxi.addr()).unwrap();
    let mut code = |command: &str| client.ask(command).unwrap()[..3].parse::<u16>().unwrap();
    assert_eq!(code("PASS x"), 503);
    assert_eq!(code(&format!("THUMBPRINT {NONCE}")), 530);
    assert_eq!(code(&format!("CONNECT {VM} mks")), 530);
    assert_eq!(code("PROXY nfc"), 500);
    assert_eq!(code("USER"), 501);
    assert_eq!(code(&format!("USER {TICKET}")), 331);
    assert_eq!(code("PASS wrong"), 530);
    assert_eq!(code("USER nobody"), 331);
    assert_eq!(code("PASS nobody"), 530);
    assert_eq!(code(&format!("USER {TICKET}")), 331);
    assert_eq!(code(&format!("PASS {TICKET}")), 230);
    assert_eq!(code(&format!("CONNECT {VM} mks")), 503);
    assert_eq!(code("THUMBPRINT short"), 501);
    assert_eq!(code(&format!("THUMBPRINT {NONCE}")), 200);
    assert_eq!(code(&format!("CONNECT {VM} vmrc")), 554);
    assert_eq!(code("CONNECT [ds] none.vmx mks"), 553);
    assert_eq!(code("CONNECT [ds] other.vmx mks"), 550);
    assert_eq!(code("QUIT"), 221);
    assert_eq!(how_it_ended(&esxi), Closed::Host);
}

#[test]
fn a_one_time_ticket_opens_one_console() {
    let esxi = host(Screen::echo());
    esxi.add_ticket(Ticket::new("once", VM).one_time());
    let mut console = connect(esxi.addr()).unwrap().console("once", VM).unwrap();
    console.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    console.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
    assert_eq!(connect(esxi.addr()).unwrap().log_in("once").unwrap(), "530 Login incorrect.");
}

#[test]
fn a_machine_has_only_so_many_consoles() {
    let esxi = Esxi::start(config(Vm::new(VM, Screen::echo()).max_consoles(1))).unwrap();
    let console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    let refused = || {
        let mut second = connect(esxi.addr()).unwrap();
        second.log_in(TICKET).unwrap();
        second.ask(&format!("THUMBPRINT {NONCE}")).unwrap();
        second.ask(&format!("CONNECT {VM} mks")).unwrap()
    };
    assert_eq!(refused(), "552 Virtual machine is busy");
    drop(console);
    how_it_ended(&esxi);
    let mut events = esxi.events();
    events.wait_blocking(SOON, |event| event.kind == EventKind::Tls1 && event.conn == 2).unwrap();
    events.wait_blocking(SOON, |event| matches!(event.kind, EventKind::Closed { .. }) && event.conn == 1);
    connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
}

#[test]
fn another_nonce_in_tls_no_2_is_refused() {
    let esxi = host(Screen::echo());
    let mut client = connect(esxi.addr()).unwrap();
    client.log_in(TICKET).unwrap();
    let (_, raw) = client.hand_over(VM).unwrap();
    let (mut console, _) = client::tls(raw).unwrap();
    console.write_all(b"AAAAAAAAAAAAAAAA").unwrap();
    assert!(matches!(how_it_ended(&esxi), Closed::Error(text) if text.contains("nonce")));
}

#[test]
fn faults_happen_where_they_were_asked_for() {
    let esxi = host(Screen::echo());
    for (step, code) in [
        (Step::User, 502),
        (Step::Pass, 530),
        (Step::Pass, 630),
        (Step::Thumbprint, 512),
        (Step::Connect, 552),
    ] {
        let name = format!("{}-{code}", step.as_str());
        esxi.add_ticket(Ticket::new(&name, VM).faults(Faults::none().at(step, Fault::code(code))));
        let mut client = connect(esxi.addr()).unwrap();
        let replies = [
            client.ask(&format!("USER {name}")).unwrap(),
            client.ask(&format!("PASS {name}")).unwrap(),
            client.ask(&format!("THUMBPRINT {NONCE}")).unwrap(),
            client.ask(&format!("CONNECT {VM} mks")).unwrap(),
        ];
        let at = Step::ALL.iter().position(|known| *known == step).unwrap() - 2;
        assert!(replies[at].starts_with(&code.to_string()), "{name}: {replies:?}");
    }

    esxi.set_faults(Faults::none().at(Step::Tls1, Fault::WrongCertificate));
    let other = connect(esxi.addr()).unwrap().host_sha1;
    assert_ne!(other, esxi.thumbprint_sha1().replace(':', "").to_lowercase());

    for step in [Step::Thumbprint, Step::Tls2] {
        esxi.set_faults(Faults::none().at(step, Fault::WrongCertificate));
        let mut client = connect(esxi.addr()).unwrap();
        client.log_in(TICKET).unwrap();
        let (announced, raw) = client.hand_over(VM).unwrap();
        assert_ne!(announced, client::tls(raw).unwrap().1, "{}", step.as_str());
    }

    esxi.set_faults(Faults::none().at(Step::Banner, Fault::Reply(b"\0\xff garbage".to_vec())));
    let mut got = [0; 10];
    open(esxi.addr()).unwrap().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"\0\xff garbage");
}

#[test]
fn stalls_closes_and_resets_at_every_step() {
    let esxi = host(Screen::echo());
    for fault in [Fault::Close, Fault::Reset, Fault::Stall] {
        for step in Step::ALL {
            esxi.set_faults(Faults::none().at(step, fault.clone()));
            let mut tcp = open(esxi.addr()).unwrap();
            let conn = esxi.events().wait_blocking(SOON, {
                let local = tcp.local_addr().unwrap();
                move |event| event.kind == EventKind::Accepted { peer: local }
            });
            let conn = conn.unwrap().conn;
            let ended = |event: &mksgate_bench::sim::Event| {
                event.conn == conn && matches!(event.kind, EventKind::Closed { .. })
            };
            tcp.set_read_timeout(Some(Duration::from_millis(if fault == Fault::Stall {
                200
            } else {
                20_000
            })))
            .unwrap();
            let keep = tcp.try_clone().unwrap();
            let failed = walk(&mut tcp).unwrap_err();
            let name = format!("{} {fault:?}: {failed:?}", step.as_str());
            match fault {
                Fault::Stall => {
                    assert_eq!(failed.kind(), ErrorKind::WouldBlock, "{name}");
                    assert!(!esxi.events().drain().iter().any(ended), "{name}");
                    keep.shutdown(Shutdown::Both).unwrap();
                }
                Fault::Reset => assert_ne!(failed.kind(), ErrorKind::WouldBlock, "{name}"),
                _ => assert_ne!(failed.kind(), ErrorKind::WouldBlock, "{name}"),
            }
            let end = esxi.events().wait_blocking(SOON, ended).unwrap().kind;
            let expected = if fault == Fault::Stall { Closed::Client } else { Closed::Fault };
            assert!(matches!(end, EventKind::Closed { how, .. } if how == expected), "{name}");
        }
    }
    assert_eq!(esxi.open_connections(), 0);
}

/// The whole way of a console on an open stream; ends with the error of the fault.
fn walk(tcp: &mut std::net::TcpStream) -> std::io::Result<()> {
    line(tcp)?;
    let (tls1, host_sha1) = client::tls(tcp.try_clone()?)?;
    let mut client = client::Console { tls1, host_sha1 };
    client.ask(&format!("USER {TICKET}"))?;
    client.ask(&format!("PASS {TICKET}"))?;
    client.ask(&format!("THUMBPRINT {NONCE}"))?;
    client.ask(&format!("CONNECT {VM} mks"))?;
    let (mut console, _) = client::tls(client.tls1.sock.tcp)?;
    console.write_all(NONCE.as_bytes())?;
    console.write_all(b"x")?;
    console.read_exact(&mut [0])
}

#[test]
fn bulk_bytes_arrive_whole_in_both_directions() {
    const BYTES: u64 = 8 << 20;
    for plain in [false, true] {
        let make = if plain { Vm::plain } else { Vm::new };
        let esxi = Esxi::start(config(make(VM, Screen::source(BYTES, 5)))).unwrap();
        let mut expected = vec![0; BYTES as usize];
        Pattern::new(5).fill(&mut expected);
        let mut got = Vec::new();
        read_console(&esxi, plain, &mut got);
        assert!(got == expected, "source, plain {plain}");

        esxi.add_vm(make(VM, Screen::digest())).unwrap();
        let sent = expected;
        let mut hash = Vec::new();
        if plain {
            let mut tcp = raw_console(&esxi);
            tcp.write_all(&sent).unwrap();
            tcp.shutdown(Shutdown::Write).unwrap();
            tcp.read_to_end(&mut hash).unwrap();
        } else {
            let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
            console.write_all(&sent).unwrap();
            console.conn.send_close_notify();
            console.flush().unwrap();
            console.read_to_end(&mut hash).unwrap();
        }
        assert_eq!(hash, aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sent).as_ref());
    }
}

fn raw_console(esxi: &Esxi) -> std::net::TcpStream {
    let mut client = connect(esxi.addr()).unwrap();
    client.log_in(TICKET).unwrap();
    client.hand_over(VM).unwrap().1
}

fn read_console(esxi: &Esxi, plain: bool, got: &mut Vec<u8>) {
    if plain {
        raw_console(esxi).read_to_end(got).unwrap();
    } else {
        connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap().read_to_end(got).unwrap();
    }
}

#[test]
fn a_dripping_host_is_slow_and_right() {
    let esxi = host(Screen::echo());
    esxi.set_faults(Faults::none().drip(Drip::byte_by_byte()));
    let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    console.write_all(b"drip").unwrap();
    let mut back = [0; 4];
    console.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"drip");
}

#[test]
fn a_slow_reader_stops_the_writer() {
    let slow = Slow { bytes: 1024, every: Duration::from_millis(100) };
    let esxi = Esxi::start(config(Vm::plain(VM, Screen::echo()))).unwrap();
    esxi.set_faults(Faults::none().slow_reader(slow));
    let raw = raw_console(&esxi);
    raw.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    refuses_64_mib(raw);

    let esxi = host(Screen::echo());
    esxi.set_faults(Faults::none().slow_reader(slow));
    let console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    console.sock.tcp.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    refuses_64_mib(console);
}

fn refuses_64_mib(mut console: impl std::io::Write) {
    let chunk = vec![0; 64 << 10];
    let stopped = (0..1024).find_map(|_| console.write_all(&chunk).err());
    let kind = stopped.expect("64 MiB were taken").kind();
    // rustls says WriteZero when its buffer is full of what the socket did not take.
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::WriteZero), "{kind:?}");
}

#[test]
fn a_plain_banner_means_a_plain_dialogue() {
    let esxi = Esxi::start(config(Vm::plain(VM, Screen::echo())).banner(BANNER_PLAIN)).unwrap();
    let mut tcp = open(esxi.addr()).unwrap();
    assert!(!line(&mut tcp).unwrap().contains("SSL"));
    for (command, reply) in [("USER", "331"), ("PASS", "230")] {
        tcp.write_all(format!("{command} {TICKET}\r\n").as_bytes()).unwrap();
        assert!(line(&mut tcp).unwrap().starts_with(reply));
    }
    // Pipelined behind CONNECT: belongs to the console.
    tcp.write_all(format!("CONNECT {VM} mks\r\nfirst").as_bytes()).unwrap();
    assert!(line(&mut tcp).unwrap().starts_with("200 Connect"));
    let mut back = [0; 5];
    tcp.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"first");
}

#[test]
fn a_cut_ends_every_console() {
    let esxi = host(Screen::echo());
    for how in [Cut::Close, Cut::Reset] {
        let mut consoles: Vec<_> = (0..3)
            .map(|_| {
                let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
                console.write_all(b"x").unwrap();
                console.read_exact(&mut [0]).unwrap();
                console
            })
            .collect();
        esxi.cut(how);
        for console in &mut consoles {
            let end = console.sock.read(&mut [0; 64]);
            match how {
                Cut::Close => assert_eq!(end.unwrap(), 0),
                Cut::Reset => assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset),
            }
        }
    }
}

#[test]
fn over_long_and_malformed_lines_are_refused() {
    let esxi = host(Screen::echo());
    let mut client = connect(esxi.addr()).unwrap();
    client.tls1.write_all(&[b'A'; 5000]).unwrap();
    assert_eq!(line(&mut client.tls1).unwrap(), "502 Line too long");
    let mut client = connect(esxi.addr()).unwrap();
    client.tls1.write_all(b"USER \xff\xfe\r\n").unwrap();
    assert_eq!(line(&mut client.tls1).unwrap(), "502 Malformed command");
}

/// A VNC server that wants the password `secret12`, played by hand.
#[test]
fn a_vnc_server_is_bridged_with_its_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let vnc = mksgate_bench::sim::screen::VncServer {
        addr: listener.local_addr().unwrap(),
        password: Some("secret12".to_owned()),
    };
    let esxi = host(Screen::Vnc(vnc));
    let server = std::thread::spawn(move || {
        let mut tcp = listener.accept().unwrap().0;
        tcp.write_all(b"RFB 003.008\n").unwrap();
        tcp.read_exact(&mut [0; 12]).unwrap();
        tcp.write_all(&[1, 2]).unwrap();
        tcp.read_exact(&mut [0; 1]).unwrap();
        tcp.write_all(&[7; 16]).unwrap();
        let mut answer = [0; 16];
        tcp.read_exact(&mut answer).unwrap();
        tcp.write_all(&[0; 4]).unwrap();
        let mut shared = [0; 1];
        tcp.read_exact(&mut shared).unwrap();
        tcp.write_all(b"ServerInit").unwrap();
        let mut input = [0; 3];
        tcp.read_exact(&mut input).unwrap();
        (answer, shared, input)
    });
    let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    let mut first = [0; 10];
    console.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"ServerInit", "no RFB handshake on an authd console");
    console.write_all(b"key").unwrap();
    let (answer, shared, input) = server.join().unwrap();
    assert_eq!((shared, &input), ([1], b"key"));
    assert_eq!(answer[..8], answer[8..], "ECB over two equal blocks");
    assert_ne!(answer, [7; 16]);
}

#[test]
fn a_vnc_server_that_is_not_there_ends_the_console() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let esxi = host(Screen::vnc(gone));
    let mut console = connect(esxi.addr()).unwrap().console(TICKET, VM).unwrap();
    assert!(console.read_exact(&mut [0; 24]).is_err());
    assert!(matches!(how_it_ended(&esxi), Closed::Error(text) if text.contains("VNC server")));
}
