//! Any bytes as a request: a head or a refusal, never a panic; what is behind the head changes nothing, and the head's beginning
//! alone is never taken for all of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mksgate::protocol::console_url::ConsoleUrl;
use mksgate::protocol::http::{Head, MAX_HEAD};
use mksgate::protocol::websocket::negotiate;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some((head, len))) = Head::parse(bytes) else { return };
    assert!(len <= bytes.len() && len <= MAX_HEAD);
    assert_eq!(Head::parse(&bytes[..len]), Ok(Some((head.clone(), len))));
    assert!(!matches!(Head::parse(&bytes[..len - 1]), Ok(Some(_))));
    let _ = negotiate(&head);
    if let Some(Ok(url)) = ConsoleUrl::parse(&head.target) {
        assert!(url.ticket.len() <= head.target.len());
    }
});
