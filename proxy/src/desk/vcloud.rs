//! The few calls of vCloud Director's XML API that a console needs, answered as it answers them.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_xml::escape::escape;

use super::mint::{MintError, Minted, mint};
use super::{LoginError, Person, session};
use crate::client::url::mks_url;
use crate::gate::{Caller, Gate};
use crate::protocol::http::Head;
use crate::protocol::reply::Reply;
use crate::protocol::soap::{Limits, parse};

const XMLNS: &str = "http://www.vmware.com/vcloud/v1.5";
const TOKEN: &str = "x-vcloud-authorization";
/// API versions whose console calls are these.
const VERSIONS: [&str; 8] = ["1.5", "5.1", "5.5", "9.0", "20.0", "27.0", "31.0", "36.0"];

/// What a request wants.
enum Wanted<'a> {
    Versions,
    Login { old: bool },
    Session,
    Logout,
    Ticket { vm: &'a str, mks: bool },
}

pub(super) async fn respond(gate: &Arc<Gate>, caller: &Caller, head: &Head, body: &[u8]) -> (Reply, bool) {
    let refused = |reason: &'static str| gate.metrics.refused(caller.door, "", reason);
    let wanted = match route(head) {
        Ok(wanted) => wanted,
        Err(reply) => return (reply, false),
    };
    if let Wanted::Versions = wanted {
        return (versions(gate, caller), false);
    }
    let Some(version) = version(head) else {
        refused("desk_bad_request");
        let text =
            "The request has invalid accept header; send Accept: application/*+xml;version=1.5 or later.";
        return (error("406 Not Acceptable", 406, "NOT_ACCEPTABLE", text), false);
    };
    if !body.is_empty()
        && std::str::from_utf8(body).map(|text| parse(text, Limits::REQUEST).is_err()).unwrap_or(true)
    {
        refused("desk_bad_request");
        return (error("400 Bad Request", 400, "BAD_REQUEST", "The body is not well-formed XML."), false);
    }
    let now = SystemTime::now();
    if let Wanted::Login { old } = wanted {
        return match log_in(gate, caller, head, now).await {
            Ok(person) => (logged_in(gate, caller, &person, old, &version, now), true),
            Err(why) => {
                refused(match why {
                    LoginError::TooMany => "desk_too_many",
                    _ => "desk_login",
                });
                tracing::info!(source = %caller.source, ?why, "no login at the desk");
                (no_login(why), false)
            }
        };
    }
    let Some((token, person)) =
        head.header(TOKEN).and_then(|token| Some((token, session::find(gate, token, now)?)))
    else {
        refused("desk_session");
        return (no_login(LoginError::Wrong), false);
    };
    let reply = match wanted {
        Wanted::Versions | Wanted::Login { .. } | Wanted::Session => {
            session_reply(gate, caller, &person, &version)
        }
        Wanted::Logout => {
            session::end(gate, token, now);
            Reply::empty("204 No Content")
        }
        Wanted::Ticket { vm, mks } => match mint(gate, &person, vm, None, now).await {
            Ok(minted) => ticket(gate, caller, &minted, mks, &version),
            Err(why) => {
                refused(why.as_str());
                no_ticket(caller, &person, vm, &why)
            }
        },
    };
    (reply, true)
}

fn route(head: &Head) -> Result<Wanted<'_>, Reply> {
    let path = head.target.split('?').next().unwrap_or_default();
    let rest = path.strip_prefix("/api/vApp/").and_then(|rest| rest.split_once("/screen/action/"));
    let (wanted, methods) = match (path, rest) {
        ("/api/versions", _) => (Wanted::Versions, "GET"),
        ("/api/sessions", _) => (Wanted::Login { old: false }, "POST"),
        ("/api/v1.0/login", _) => (Wanted::Login { old: true }, "POST"),
        ("/api/session" | "/api/session/", _) if head.method == "DELETE" => (Wanted::Logout, "DELETE"),
        ("/api/session" | "/api/session/", _) => (Wanted::Session, "GET"),
        (_, Some((vm, "acquireTicket"))) if vm.starts_with("vm-") => {
            (Wanted::Ticket { vm, mks: false }, "POST")
        }
        (_, Some((vm, "acquireMksTicket"))) if vm.starts_with("vm-") => {
            (Wanted::Ticket { vm, mks: true }, "POST")
        }
        _ => return Err(error("404 Not Found", 404, "NOT_FOUND", "There is nothing here.")),
    };
    if head.method != methods {
        let reply = error("405 Method Not Allowed", 405, "METHOD_NOT_ALLOWED", "Not this way.");
        return Err(reply.header("Allow", methods));
    }
    Ok(wanted)
}

/// The version of `Accept: application/*+xml;version=5.1`; `None` where XML is not asked for, or no version named.
fn version(head: &Head) -> Option<String> {
    head.values("accept").flat_map(|value| value.split(',')).find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next()?;
        let is_xml = matches!(kind, "application/*+xml" | "application/*" | "*/*")
            || (kind.starts_with("application/vnd.vmware.") && kind.ends_with("+xml"));
        let version = parts.find_map(|part| part.strip_prefix("version="))?;
        let fits =
            (1..=12).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        (is_xml && fits).then(|| version.to_owned())
    })
}

/// `Basic user@org:password`, or `Bearer token; org=name` with an identity provider's token.
async fn log_in(
    gate: &Arc<Gate>,
    caller: &Caller,
    head: &Head,
    now: SystemTime,
) -> Result<Person, LoginError> {
    let (scheme, shown) =
        head.header("authorization").and_then(|value| value.split_once(' ')).ok_or(LoginError::Missing)?;
    let source = caller.source.ip();
    if scheme.eq_ignore_ascii_case("bearer") {
        let (token, org) = shown.split_once(';').map_or((shown, None), |(token, more)| (token, Some(more)));
        let org = org.map(|more| more.trim().strip_prefix("org=").map(|org| org.trim_matches('"')));
        // Something else behind the token than an org is not guessed at.
        let org = org.map(|org| org.ok_or(LoginError::Wrong)).transpose()?;
        return gate.desk.log_in_with_token(gate, source, token.trim(), org, now);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(LoginError::Wrong);
    }
    let decoded = STANDARD.decode(shown.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = zeroize::Zeroizing::new(decoded.ok_or(LoginError::Wrong)?);
    let (name, password) = decoded.split_once(':').ok_or(LoginError::Wrong)?;
    if name.len() > 256 {
        return Err(LoginError::Wrong);
    }
    gate.desk.log_in(gate, source, name, password.to_owned()).await
}

/// What there is and where to log in, for clients that ask first.
fn versions(gate: &Gate, caller: &Caller) -> Reply {
    let base = base(gate, caller);
    let listed: String = VERSIONS
        .iter()
        .map(|version| {
            format!("<VersionInfo><Version>{version}</Version><LoginUrl>{base}/api/sessions</LoginUrl></VersionInfo>")
        })
        .collect();
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<SupportedVersions xmlns=\"http://www.vmware.com/vcloud/versions\">{listed}</SupportedVersions>\n"
    );
    Reply::new("200 OK", "text/xml", body)
}

fn logged_in(
    gate: &Gate,
    caller: &Caller,
    person: &Person,
    old: bool,
    version: &str,
    now: SystemTime,
) -> Reply {
    let seconds = gate.config.load().desk.as_ref().map_or(0, |desk| desk.session_seconds);
    let token = match session::begin(gate, person, seconds, now) {
        Ok(token) => token,
        Err(why) => {
            tracing::error!(why, "a login could not be sealed");
            return error("500 Internal Server Error", 500, "INTERNAL_SERVER_ERROR", "Nobody can log in.");
        }
    };
    let reply = if old {
        org_list(gate, caller, person, version)
    } else {
        session_reply(gate, caller, person, version)
    };
    reply.header(TOKEN, token)
}

fn session_reply(gate: &Gate, caller: &Caller, person: &Person, version: &str) -> Reply {
    let (user, org) = (escape(&*person.user), escape(&*person.org));
    let base = base(gate, caller);
    let body = format!(
        "<Session xmlns=\"{XMLNS}\" user=\"{user}\" org=\"{org}\" type=\"application/vnd.vmware.vcloud.session+xml\" href=\"{base}/api/session/\">\
         <Link rel=\"remove\" href=\"{base}/api/session/\"/></Session>"
    );
    xml("session", version, &body)
}

fn org_list(gate: &Gate, caller: &Caller, person: &Person, version: &str) -> Reply {
    let (org, base) = (escape(&*person.org), base(gate, caller));
    let body = format!(
        "<OrgList xmlns=\"{XMLNS}\" type=\"application/vnd.vmware.vcloud.orgList+xml\" href=\"{base}/api/org/\">\
         <Org type=\"application/vnd.vmware.vcloud.org+xml\" name=\"{org}\" href=\"{base}/api/org/{org}\"/></OrgList>"
    );
    xml("orgList", version, &body)
}

fn ticket(gate: &Gate, caller: &Caller, minted: &Minted, mks: bool, version: &str) -> Reply {
    let (vm, sealed) = (&minted.claims.vm, &minted.sealed);
    if !mks {
        let url = mks_url(&gate.console_authority(caller), vm, sealed);
        return xml(
            "screenTicket",
            version,
            &format!("<ScreenTicket xmlns=\"{XMLNS}\">{}</ScreenTicket>", escape(&*url)),
        );
    }
    let body = format!(
        "<MksTicket xmlns=\"{XMLNS}\"><Host>{}</Host><Vmx>{}</Vmx><Ticket>{}</Ticket><Port>{}</Port></MksTicket>",
        escape(&*gate.console_host(caller)),
        escape(&**vm),
        escape(&**sealed),
        gate.console_tls_port()
    );
    xml("mksTicket", version, &body)
}

fn no_ticket(caller: &Caller, person: &Person, vm: &str, why: &MintError) -> Reply {
    match why {
        MintError::NotYours => {
            tracing::info!(source = %caller.source, user = person.user, org = person.org, "a VM that is not the org's was asked for");
            let text = format!("No access to entity \"com.vmware.vcloud.entity.vm:{vm}\".");
            error("403 Forbidden", 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", &text)
        }
        MintError::Vcenter(why) => {
            tracing::info!(reason = why.as_str(), error = %why, "no clone ticket for the desk");
            let text = "The machine's vCenter does not answer just now.";
            error("503 Service Unavailable", 503, "SERVICE_UNAVAILABLE", text)
        }
        MintError::Broken(why) => {
            tracing::error!(why, "a ticket could not be minted");
            let text = "The ticket could not be made.";
            error("500 Internal Server Error", 500, "INTERNAL_SERVER_ERROR", text)
        }
    }
}

fn no_login(why: LoginError) -> Reply {
    match why {
        LoginError::Missing => error(
            "403 Forbidden",
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "The request has no Authorization header.",
        ),
        LoginError::Wrong => {
            error("401 Unauthorized", 401, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "Unauthorized")
                .header("WWW-Authenticate", "Basic realm=\"VMware vCloud Director\"")
        }
        LoginError::TooMany => {
            error("429 Too Many Requests", 429, "TOO_MANY_REQUESTS", "Too many tries. Wait a minute.")
                .header("Retry-After", "60")
        }
        LoginError::Broken => {
            error("503 Service Unavailable", 503, "SERVICE_UNAVAILABLE", "Nobody can log in just now.")
        }
    }
}

fn error(status: &'static str, major: u16, minor: &str, message: &str) -> Reply {
    let (minor, message) = (escape(minor), escape(message));
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error xmlns=\"{XMLNS}\" message=\"{message}\" majorErrorCode=\"{major}\" minorErrorCode=\"{minor}\"/>\n"
    );
    Reply::new(status, "application/vnd.vmware.vcloud.error+xml", body)
}

fn xml(kind: &str, version: &str, body: &str) -> Reply {
    let kind = format!("application/vnd.vmware.vcloud.{kind}+xml;version={version}");
    Reply::new("200 OK", &kind, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}\n"))
}

fn base(gate: &Gate, caller: &Caller) -> String {
    format!("https://{}", gate.console_authority(caller))
}
