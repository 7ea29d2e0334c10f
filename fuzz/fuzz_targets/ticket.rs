//! Any text as a ticket, and any bytes as the claims of a ticket with a good seal: a refusal or a permit, never a panic; what is
//! granted is freed again.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use mksgate::ticket::{Claims, KeyRing, TicketPolicy, Tickets, create_key_file};

static RING: LazyLock<KeyRing> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("mksgate-fuzz-{}", std::process::id()));
    create_key_file(&dir, None, UNIX_EPOCH).expect("a key");
    let ring = KeyRing::load(&dir).expect("a ring");
    std::fs::remove_dir_all(&dir).expect("removed");
    ring
});

fuzz_target!(|bytes: &[u8]| {
    let tickets = Tickets::new(TicketPolicy::default(), RING.clone());
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(tickets.open(text, here, UNIX_EPOCH + Duration::from_secs(1)).is_err(), "sealed by nobody");
    }
    let Ok(claims) = Claims::from_json(bytes) else { return };
    let Ok(sealed) = RING.seal(&claims) else { return };
    assert!(RING.inspect(&sealed).is_ok_and(|(opened, _)| opened == claims));
    let now = UNIX_EPOCH + Duration::from_secs(claims.iat.min(1 << 40));
    for _ in 0..6 {
        let _ = tickets.open(&sealed, claims.source.unwrap_or(here), now);
    }
    assert!(tickets.stats().tracked <= 1);
});
