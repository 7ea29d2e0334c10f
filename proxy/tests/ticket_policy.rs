//! Which tickets open, seen from outside: every bad one is refused by name, every good one opens, nothing is left behind.

use std::net::IpAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mksgate::ticket::{
    Claims, KeyRing, MAX_SEALED, Permit, Revocation, TicketError, TicketPolicy, Tickets, create_key_file,
};
use serde_json::json;

const T0: u64 = 1_800_000_000;
const HERE: &str = "192.0.2.7";

struct Gate {
    keys: KeyRing,
    tickets: Tickets,
}

fn keys() -> KeyRing {
    let dir = tempfile::tempdir().unwrap();
    create_key_file(dir.path(), None, at(0.0)).unwrap();
    KeyRing::load(dir.path()).unwrap()
}

fn gate(edit: impl FnOnce(&mut TicketPolicy)) -> Gate {
    let mut policy = TicketPolicy { reconnect: Duration::from_secs(60), ..TicketPolicy::default() };
    edit(&mut policy);
    let keys = keys();
    Gate { tickets: Tickets::new(policy, keys.clone()), keys }
}

fn claims(jti: &str) -> Claims {
    serde_json::from_value(json!({
        "jti": jti, "iat": T0, "nbf": T0, "exp": T0 + 50, "tenant": "acme", "user": "ada", "vm": "vm-61",
        "target": {"kind": "esxi-mks", "host": "esx1.example", "ticket": "cst-very-secret"},
    }))
    .unwrap()
}

/// Seconds after `T0`.
fn at(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(T0) + Duration::from_secs_f64(seconds.max(0.0))
        - Duration::from_secs_f64((-seconds).max(0.0))
}

impl Gate {
    fn seal(&self, edit: impl FnOnce(&mut Claims)) -> String {
        let mut claims = claims("j1");
        edit(&mut claims);
        self.keys.seal(&claims).unwrap()
    }

    fn open_from(&self, sealed: &str, source: &str, seconds: f64) -> Result<Permit, TicketError> {
        self.tickets.open(sealed, source.parse::<IpAddr>().unwrap(), at(seconds))
    }

    fn open(&self, sealed: &str, seconds: f64) -> Result<Permit, TicketError> {
        self.open_from(sealed, HERE, seconds)
    }

    fn tracked(&self) -> usize {
        self.tickets.stats().tracked
    }
}

fn refusal(result: Result<Permit, TicketError>) -> &'static str {
    let error = result.expect_err("a refusal");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    error.as_str()
}

#[test]
fn a_good_ticket_opens_and_says_what_it_allows() {
    let gate = gate(|_| {});
    let permit = gate.open(&gate.seal(|c| c.session_seconds = Some(90)), 1.0).unwrap();
    assert_eq!((permit.jti(), permit.tenant(), permit.user(), permit.vm()), ("j1", "acme", "ada", "vm-61"));
    assert_eq!(permit.target().ticket.as_deref(), Some("cst-very-secret"));
    assert_eq!(permit.session(), Some(Duration::from_secs(90)));
    assert_eq!((permit.expires(), permit.reconnect_until()), (at(50.0), at(52.0)));
    assert!(permit.is_first_use() && !format!("{permit:?}").contains("very-secret"));
}

#[test]
fn cut_and_forged_tickets_are_refused_and_leave_nothing() {
    let gate = gate(|_| {});
    let whole = gate.seal(|_| {});
    for len in 0..whole.len() {
        refusal(gate.open(&whole[..len], 1.0));
    }
    for at in 0..whole.len() {
        for flip in [1u8, 2, 4, 8] {
            let mut forged = whole.clone().into_bytes();
            forged[at] ^= flip;
            refusal(gate.open(std::str::from_utf8(&forged).unwrap(), 1.0));
        }
    }
    assert_eq!(refusal(gate.open(&"A".repeat(1 << 20), 1.0)), "ticket_oversize");
    assert_eq!(refusal(gate.open(&format!("{whole}{}", "A".repeat(MAX_SEALED)), 1.0)), "ticket_oversize");
    assert_eq!(gate.tracked(), 0);
    assert!(gate.open(&whole, 1.0).is_ok());
}

#[test]
fn another_key_does_not_open_it() {
    let (gate, other) = (gate(|_| {}), gate(|_| {}));
    assert_eq!(refusal(gate.open(&other.seal(|_| {}), 1.0)), "ticket_unknown_key");
    // The same kid with another key behind it.
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [a, b] = dirs.map(|dir| {
        create_key_file(dir.path(), Some("k"), at(0.0)).unwrap();
        KeyRing::load(dir.path()).unwrap()
    });
    gate.tickets.reload(TicketPolicy::default(), a);
    assert_eq!(refusal(gate.open(&b.seal(&claims("j1")).unwrap(), 1.0)), "ticket_forged");
}

#[test]
fn times_are_kept_to_the_second_with_two_of_skew() {
    for (seconds, refused) in [
        (-2.1, Some("ticket_not_yet_valid")),
        (-2.0, None),
        (0.0, None),
        (32.0, None),
        (32.1, Some("ticket_used_too_late")),
        (51.9, Some("ticket_used_too_late")),
        (52.0, Some("ticket_expired")),
        (1e9, Some("ticket_expired")),
    ] {
        let gate = gate(|_| {});
        let result = gate.open(&gate.seal(|_| {}), seconds);
        assert_eq!(result.err().map(|e| e.as_str()), refused, "at {seconds}");
    }
    let gate = gate(|_| {});
    assert_eq!(refusal(gate.open(&gate.seal(|c| c.nbf += 10), 7.9)), "ticket_not_yet_valid");
    assert!(gate.open(&gate.seal(|c| c.nbf += 10), 8.0).is_ok());
    assert_eq!(
        refusal(gate.tickets.open(&gate.seal(|_| {}), HERE.parse().unwrap(), UNIX_EPOCH)),
        "ticket_not_yet_valid"
    );
    // Absurd times do not overflow.
    let absurd = gate.seal(|c| (c.jti, c.exp) = ("j2".into(), u64::MAX));
    assert!(gate.open(&absurd, 1.0).is_ok());
    let absurd = gate.seal(|c| (c.jti, c.iat, c.exp) = ("j3".into(), u64::MAX - 1, u64::MAX));
    assert_eq!(refusal(gate.open(&absurd, 1.0)), "ticket_not_yet_valid");
}

#[test]
fn it_reconnects_within_its_window_and_not_later() {
    let gate = gate(|p| p.reconnect = Duration::from_secs(20));
    let ticket = gate.seal(|c| c.exp = T0 + 1000);
    assert!(gate.open(&ticket, 30.0).unwrap().is_first_use());
    assert!(!gate.open(&ticket, 49.9).unwrap().is_first_use());
    assert_eq!(refusal(gate.open(&ticket, 50.0)), "ticket_reconnect_over");
    assert_eq!(refusal(gate.open(&ticket, 51.0)), "ticket_used_too_late");
    let short = gate.seal(|c| (c.jti, c.iat, c.nbf, c.exp) = ("j2".into(), T0 + 60, T0 + 60, T0 + 65));
    assert!(gate.open(&short, 61.0).is_ok());
    assert_eq!(refusal(gate.open(&short, 67.0)), "ticket_expired");
}

#[test]
fn without_a_window_a_ticket_works_once() {
    let gate = gate(|p| p.reconnect = Duration::ZERO);
    let ticket = gate.seal(|_| {});
    assert!(gate.open(&ticket, 1.0).is_ok());
    assert_eq!(refusal(gate.open(&ticket, 1.0)), "ticket_reconnect_over");
}

#[test]
fn connections_at_once_are_counted_and_freed() {
    let gate = gate(|_| {});
    let ticket = gate.seal(|_| {});
    let mut open: Vec<_> = (0..4).map(|_| gate.open(&ticket, 1.0).unwrap()).collect();
    assert_eq!(refusal(gate.open(&ticket, 1.0)), "ticket_too_many_connections");
    open.pop();
    let held = gate.open(&ticket, 2.0).unwrap().into_use();
    assert_eq!(refusal(gate.open(&ticket, 2.0)), "ticket_too_many_connections");
    drop(held);
    assert!(gate.open(&ticket, 2.0).is_ok());
    // A ticket's own limit may be lower, and a higher one does not count.
    for (own, allowed) in [(1, 1), (3, 3), (4, 4), (1000, 4)] {
        let ticket = gate.seal(|c| (c.jti, c.max_connections) = (format!("own-{own}"), Some(own)));
        let held: Vec<_> = (0..10).map_while(|_| gate.open(&ticket, 1.0).ok()).collect();
        assert_eq!(held.len(), allowed);
    }
}

#[test]
fn a_ticket_is_bound_to_the_address_it_names_or_was_used_from() {
    let bound = gate(|p| p.bind_source = false);
    let ticket = bound.seal(|c| c.source = Some("::ffff:192.0.2.7".parse().unwrap()));
    assert_eq!(refusal(bound.open_from(&ticket, "192.0.2.8", 1.0)), "ticket_other_source");
    assert_eq!(bound.tracked(), 0, "a stranger's try does not start the reconnect window");
    assert!(bound.open_from(&ticket, HERE, 1.0).is_ok());
    assert!(bound.open_from(&ticket, "::ffff:192.0.2.7", 1.0).is_ok());
    let free = bound.seal(|c| c.jti = "j2".into());
    assert!(bound.open_from(&free, HERE, 1.0).is_ok() && bound.open_from(&free, "2001:db8::1", 1.0).is_ok());

    let sticky = gate(|_| {});
    let ticket = sticky.seal(|_| {});
    assert!(sticky.open_from(&ticket, "::ffff:192.0.2.7", 1.0).is_ok());
    assert!(sticky.open_from(&ticket, HERE, 1.0).is_ok());
    for other in ["192.0.2.8", "2001:db8::1", "::192.0.2.7"] {
        assert_eq!(refusal(sticky.open_from(&ticket, other, 1.0)), "ticket_other_source", "{other}");
    }
}

#[test]
fn issuer_audience_and_reserved_claims() {
    let gate = gate(|p| {
        p.issuer = Some("portal".into());
        p.audience = Some("cell-1".into());
    });
    let with = |iss: Option<&str>, aud: Option<&str>, view_only| {
        gate.open(
            &gate.seal(|c| {
                (c.iss, c.aud, c.view_only) = (iss.map(Into::into), aud.map(Into::into), view_only)
            }),
            1.0,
        )
    };
    assert_eq!(refusal(with(None, Some("cell-1"), false)), "ticket_wrong_issuer");
    assert_eq!(refusal(with(Some("other"), Some("cell-1"), false)), "ticket_wrong_issuer");
    assert_eq!(refusal(with(Some("portal"), None, false)), "ticket_wrong_audience");
    assert_eq!(refusal(with(Some("portal"), Some("cell-2"), false)), "ticket_wrong_audience");
    assert_eq!(refusal(with(Some("portal"), Some("cell-1"), true)), "ticket_view_only");
    assert!(with(Some("portal"), Some("cell-1"), false).is_ok());
}

#[test]
fn a_second_ticket_with_the_same_name_is_not_the_first() {
    let gate = gate(|_| {});
    assert!(gate.open(&gate.seal(|_| {}), 1.0).is_ok());
    for edit in [
        |c: &mut Claims| c.iat -= 1,
        |c: &mut Claims| c.user = "bob".into(),
        |c: &mut Claims| c.tenant = "other".into(),
    ] {
        let error = gate.open(&gate.seal(edit), 1.0).unwrap_err();
        assert_eq!((error.as_str(), error.bearer().map(|b| &*b.jti)), ("ticket_jti_reused", Some("j1")));
    }
    assert!(gate.open(&gate.seal(|_| {}), 1.0).is_ok(), "sealed again, the same ticket");
}

#[test]
fn a_full_table_refuses_new_tickets_and_forgets_no_used_one() {
    let gate = gate(|p| (p.max_tracked, p.reconnect) = (10, Duration::from_secs(10)));
    let ticket = |n: usize| gate.seal(|c| (c.jti, c.exp) = (format!("j{n}"), T0 + 1000));
    for n in 0..10 {
        assert!(gate.open(&ticket(n), 1.0).is_ok());
    }
    for n in 10..15 {
        assert_eq!(refusal(gate.open(&ticket(n), 2.0)), "ticket_table_full");
    }
    let stats = gate.tickets.stats();
    assert_eq!((stats.tracked, stats.capacity, stats.refused_full, stats.keys), (10, 10, 5, 1));
    assert!(gate.open(&ticket(3), 2.0).is_ok(), "a used ticket needs no room");
    assert_eq!(refusal(gate.open(&ticket(3), 30.0)), "ticket_reconnect_over");
    // All ten stay until 32, when they are too old for a first use too.
    let later = |n: usize| gate.seal(|c| (c.jti, c.iat) = (format!("l{n}"), T0 + 20));
    assert_eq!(refusal(gate.open(&later(0), 32.0)), "ticket_table_full");
    assert!(gate.open(&later(0), 32.1).is_ok());
    assert_eq!(gate.tracked(), 1);
    assert_eq!(refusal(gate.open(&ticket(3), 32.2)), "ticket_used_too_late");
}

#[test]
fn a_relaxed_policy_does_not_bring_used_tickets_back() {
    let gate = gate(|p| p.reconnect = Duration::ZERO);
    let (used, unused) =
        (gate.seal(|c| c.exp += 10_000), gate.seal(|c| (c.jti, c.iat) = ("n".into(), T0 + 1)));
    assert!(gate.open(&used, 1.0).is_ok());
    let day = Duration::from_secs(86_400);
    let policy = TicketPolicy { first_use: day, reconnect: day, ..TicketPolicy::default() };
    gate.tickets.reload(policy, gate.keys.clone());
    assert_eq!(refusal(gate.open(&used, 2.0)), "ticket_reconnect_over");
    assert_eq!(refusal(gate.open(&used, 40.0)), "ticket_used_too_late");
    assert!(gate.open(&unused, 40.0).is_ok(), "younger than anything forgotten");
}

#[test]
fn rotation_keeps_old_tickets_open_until_the_old_key_goes() {
    let dir = tempfile::tempdir().unwrap();
    create_key_file(dir.path(), Some("one"), at(0.0)).unwrap();
    let keys = KeyRing::load(dir.path()).unwrap();
    let tickets = Tickets::new(TicketPolicy::default(), keys.clone());
    let open = |sealed: &str| tickets.open(sealed, HERE.parse().unwrap(), at(1.0));
    let old = keys.seal(&claims("old")).unwrap();
    create_key_file(dir.path(), Some("two"), at(1.0)).unwrap();
    let keys = KeyRing::load(dir.path()).unwrap();
    assert_eq!(refusal(open(&keys.seal(&claims("new")).unwrap())), "ticket_unknown_key");
    tickets.reload(TicketPolicy::default(), keys.clone());
    assert!(open(&keys.seal(&claims("new")).unwrap()).is_ok() && open(&old).is_ok());
    std::fs::remove_file(dir.path().join("one.jwk")).unwrap();
    tickets.reload(TicketPolicy::default(), KeyRing::load(dir.path()).unwrap());
    assert_eq!(refusal(open(&old)), "ticket_unknown_key");
}

#[test]
fn revoked_tickets_are_refused_used_or_not() {
    let user = |tenant: Option<&str>| Revocation::User { tenant: tenant.map(Into::into), user: "ada".into() };
    for what in
        [Revocation::Jti("j1".into()), Revocation::Tenant("acme".into()), user(None), user(Some("acme"))]
    {
        for used in [false, true] {
            let gate = gate(|_| {});
            let (ticket, other) = (
                gate.seal(|_| {}),
                gate.seal(|c| (c.jti, c.tenant, c.user) = ("x".into(), "x".into(), "x".into())),
            );
            assert!(!used || gate.open(&ticket, 1.0).is_ok());
            gate.tickets.revoke(&what, at(2.0));
            assert_eq!(refusal(gate.open(&ticket, 3.0)), "ticket_revoked", "{what:?}");
            assert_eq!(refusal(gate.open(&ticket, 31.0)), "ticket_revoked", "{what:?}");
            assert!(gate.open(&other, 3.0).is_ok());
            let minted_later = gate.seal(|c| (c.jti, c.iat) = ("j2".into(), T0 + 5));
            assert!(gate.open(&minted_later, 5.0).is_ok(), "{what:?}");
        }
    }
}

#[test]
fn more_revocations_than_room_revoke_too_much_rather_than_too_little() {
    let gate = gate(|p| p.max_tracked = 2);
    let (used, unused) = (gate.seal(|_| {}), gate.seal(|c| c.jti = "unused".into()));
    let held = gate.open(&used, 1.0).unwrap();
    for n in 0..3 {
        gate.tickets.revoke(&Revocation::Jti(format!("other-{n}")), at(2.0));
    }
    assert_eq!(gate.tickets.stats().revocations, 2);
    assert!(gate.open(&used, 3.0).is_ok());
    assert_eq!(refusal(gate.open(&unused, 3.0)), "ticket_revoked");
    let fresh = gate.seal(|c| (c.jti, c.iat) = ("fresh".into(), T0 + 5));
    assert!(gate.open(&fresh, 5.0).is_ok());
    drop(held);
}

#[test]
fn the_next_process_knows_what_this_one_knew() {
    let gate = gate(|_| {});
    let (used, revoked) = (gate.seal(|_| {}), gate.seal(|c| c.jti = "r".into()));
    let _live = gate.open(&used, 1.0).unwrap();
    gate.tickets.revoke(&Revocation::Jti("r".into()), at(2.0));
    let state = serde_json::to_string(&gate.tickets.export()).unwrap();
    assert!(!state.contains("secret"));

    let next =
        Gate { tickets: Tickets::new(TicketPolicy::default(), gate.keys.clone()), keys: gate.keys.clone() };
    next.tickets.import(serde_json::from_str(&state).unwrap());
    assert_eq!(next.tickets.export(), gate.tickets.export());
    assert_eq!(refusal(next.open(&revoked, 3.0)), "ticket_revoked");
    assert_eq!(refusal(next.open_from(&used, "192.0.2.8", 3.0)), "ticket_other_source");
    let _adopted = next.tickets.adopt("j1").unwrap();
    assert!(next.tickets.adopt("never-used").is_none());
    let more: Vec<_> = (0..9).map_while(|_| next.open(&used, 3.0).ok()).collect();
    assert_eq!(more.len(), 3, "the adopted session counts");
    assert!(!more[0].is_first_use());
}

#[test]
fn many_threads_get_exactly_what_there_is() {
    let gate = gate(|p| p.max_tracked = 50);
    let same = gate.seal(|_| {});
    let sealed: Vec<_> = (0..100).map(|n| gate.seal(|c| c.jti = format!("t{n}"))).collect();
    let (start, granted, tracked) = (Barrier::new(8), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let held: Vec<_> = (0..4).filter_map(|_| gate.open(&same, 1.0).ok()).collect();
                granted.fetch_add(held.len(), Ordering::SeqCst);
                // Nobody frees a use before everybody has asked for theirs.
                start.wait();
                drop(held);
                for ticket in &sealed {
                    match gate.open(ticket, 1.0) {
                        Ok(permit) => drop(tracked.fetch_add(permit.is_first_use().into(), Ordering::SeqCst)),
                        Err(error) => assert!(
                            ["ticket_table_full", "ticket_too_many_connections"].contains(&error.as_str()),
                            "{error}"
                        ),
                    }
                }
            });
        }
    });
    assert_eq!(granted.load(Ordering::SeqCst), 4);
    assert_eq!(tracked.load(Ordering::SeqCst), 49);
    let held: Vec<_> = (0..9).map_while(|_| gate.open(&same, 2.0).ok()).collect();
    assert_eq!(held.len(), 4, "every use was freed");
}
