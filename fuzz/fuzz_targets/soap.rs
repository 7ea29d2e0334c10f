//! Any text as SOAP: an element tree within the limits, a call or a refusal, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mksgate::protocol::soap::{Limits, SoapError, call, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let narrow = Limits { bytes: 512, depth: 4, elements: 8 };
    match parse(text, narrow) {
        Ok(_) => assert!(text.len() <= narrow.bytes && parse(text, Limits::REQUEST).is_ok()),
        Err(SoapError::TooLarge(_)) => assert!(text.len() > narrow.bytes),
        Err(_) => {}
    }
    let _ = call(text);
});
