//! VMware's own browser client (npm `opennebula-wmks`) on a portal's page: vCloud Director's address, the machine named in-band.

mod browser;
mod support;

use std::time::Instant;

use browser::Browser;
use mksgate_bench::sim::{Desktop, Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{HOST_TICKET, PATIENCE, Setup, VM};

const PORTAL: &str = "https://portal.example";

#[test]
fn vmwares_client_shows_the_screen_and_its_keys_arrive_in_binary_and_in_uint8utf8() {
    let Some(mut browser) = Browser::start() else { return };
    let mut gate = Setup::new().with(&format!("[web]\norigins = [\"{PORTAL}\"]")).start();
    let desktop = Desktop::still();
    let host = Esxi::start(
        EsxiConfig::default()
            .vm(Vm::new(VM, Screen::Desktop(desktop.clone())))
            .ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    let (html, script) = (
        browser::folder().join("wmks.html"),
        browser::folder().join("node_modules/opennebula-wmks/dist/wmks.js"),
    );
    browser.portal(PORTAL, &[("/wmks.html", &html), ("/wmks.js", &script)]);

    for (protocol, key, keysym) in [("binary", "b", 0x62), ("uint8utf8", "u", 0x75)] {
        let ticket = gate.ticket(&host);
        let what = serde_json::json!({
            "url": format!("wss://{}/902;{ticket}", gate.tls),
            "vm": VM.trim_start_matches('/'),
            "protocol": protocol,
        });
        let fragment: String = what.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
        browser.open("about:blank");
        browser.open(&format!("{PORTAL}/wmks.html#{fragment}"));
        browser.until("window.states?.includes('connected')");
        assert_eq!(browser.eval("socket.protocol"), protocol);

        let start = Instant::now();
        browser.click_at("canvas", 200, 200);
        browser.press(key);
        while !desktop.keys().ends_with(&[keysym]) {
            assert!(start.elapsed() < 3 * PATIENCE, "no key through {protocol}: {:?}", desktop.keys());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        browser.until(&format!("{} == {}", Browser::pixel(12, 12), Desktop::key_colour(keysym)));
        let (x, y, _) = desktop.pointer().expect("the mouse arrives");
        assert_eq!((x, y), (200, 200), "through {protocol}");
        browser.screenshot(&format!("wmks-{protocol}"));
        browser.eval("viewer.disconnect()");
        assert_eq!(gate.wait_closed(), "client_closed");
    }
}
