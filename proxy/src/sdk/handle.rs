//! One request of a client: who it is, whether it may, and the answer.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::sessions::Opened;
use super::{SdkSession, ticket};
use crate::backend::moref;
use crate::backend::vcenter::{ConsoleKind, Forward, Owner, VcenterError, resolve};
use crate::config::{ConsolePower, Tenant};
use crate::gate::{Caller, Gate};
use crate::protocol::http::Head;
use crate::protocol::reply::Reply;
use crate::protocol::soap::allowed::{self, Allowed, Approved, Handling, Scope};
use crate::protocol::soap::request::returned;
use crate::protocol::soap::ticket::ConsoleTicket;
use crate::protocol::soap::{self, Element, Fault, Message, Moref, Version, answer, call, envelope};
use crate::ticket::TargetKind;

/// Longest time one WaitForUpdatesEx is held; the client asks again after it.
const LONGEST_WAIT: u64 = 60;

/// What clients ask first, to learn which versions there are.
const VERSIONS: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<namespaces version=\"1.0\"><namespace><name>urn:vim25</name><version>8.0.0.0</version><priorVersions><version>7.0</version><version>6.7</version><version>6.5</version><version>6.0</version><version>5.5</version></priorVersions></namespace></namespaces>\n";

/// The answer, and whether its client has a session.
pub async fn respond(gate: &Arc<Gate>, caller: &Caller, head: &Head, body: Vec<u8>) -> (Reply, bool) {
    let path = head.target.split('?').next().unwrap_or_default();
    match (head.method.as_str(), path) {
        ("GET", "/sdk/vimServiceVersions.xml") => (Reply::new("200 OK", "text/xml", VERSIONS.into()), false),
        ("POST", "/sdk" | "/sdk/" | "/sdk/vimService") => soap_request(gate, caller, head, body).await,
        (_, "/sdk" | "/sdk/" | "/sdk/vimService") => {
            (Reply::empty("405 Method Not Allowed").header("Allow", "POST"), false)
        }
        _ => (Reply::empty("404 Not Found"), false),
    }
}

async fn soap_request(gate: &Arc<Gate>, caller: &Caller, head: &Head, body: Vec<u8>) -> (Reply, bool) {
    let version = Version::of_action(head.header("soapaction"));
    let request = Request { gate, caller, cookie: cookie(head), version };
    let parsed = String::from_utf8(body).map_err(|_| soap::SoapError::Malformed).and_then(|text| call(&text));
    let operation = match parsed {
        Ok(operation) => operation,
        Err(error) => {
            request.refused("", "sdk_malformed");
            return (fault(&Fault::bad_request(&error.to_string())), false);
        }
    };
    let session = request.session();
    let known = session.is_some();
    let answered = match allowed::open(&operation) {
        Some(line) => request.open(line, &operation, session).await,
        None => match session {
            Some(session) => request.ask(&session, &operation).await,
            None => Err(Fault::not_authenticated()),
        },
    };
    let reply = answered.unwrap_or_else(|said| {
        tracing::debug!(operation = operation.name, fault = said.kind, source = %caller.source, "refused at /sdk");
        fault(&said)
    });
    (reply, known)
}

struct Request<'a> {
    gate: &'a Arc<Gate>,
    caller: &'a Caller,
    cookie: Option<String>,
    version: Version,
}

impl Request<'_> {
    /// The session of the cookie, while its ticket and its tenant are welcome.
    fn session(&self) -> Option<Arc<SdkSession>> {
        let gate = self.gate;
        let (now, clock) = (Instant::now(), SystemTime::now());
        let session = gate.sdk.find(self.cookie.as_deref()?, now, clock)?;
        let config = gate.config.load();
        let elsewhere =
            config.tickets.policy.bind_source && session.source != self.caller.source.ip().to_canonical();
        (!elsewhere && gate.is_welcome(&session)).then_some(session)
    }

    /// What needs no session.
    async fn open(
        &self,
        line: &Allowed,
        operation: &Element,
        session: Option<Arc<SdkSession>>,
    ) -> Result<Reply, Fault> {
        match line.method {
            "RetrieveServiceContent" => {
                Ok(ok(&answer::returns(line.method, answer::service_content("returnval"))))
            }
            "CurrentTime" => {
                let now = answer::date_time(unix(SystemTime::now()));
                Ok(ok(&answer::returns(line.method, Element::text("returnval", now))))
            }
            _ => {
                // A client that comes with another ticket leaves its old session behind.
                if session.is_some() {
                    self.close();
                }
                self.clone_session(operation.child_text("cloneTicket").unwrap_or_default()).await
            }
        }
    }

    async fn clone_session(&self, sealed: &str) -> Result<Reply, Fault> {
        let (gate, caller) = (self.gate, self.caller);
        gate.tidy_sdk();
        let (now, clock) = (Instant::now(), SystemTime::now());
        let permit = {
            // Another process writes down the next use of any ticket, once it has the table.
            let heir = gate.succession.heir();
            if heir.is_some() {
                self.refused("", "draining");
                return Err(Fault::unavailable());
            }
            gate.tickets.open(sealed, caller.source.ip(), clock)
        };
        let permit = permit.map_err(|error| {
            let tenant = error.bearer().map_or("", |bearer| bearer.tenant.as_str());
            self.refused(tenant, error.as_str());
            tracing::info!(reason = error.as_str(), %error, source = %caller.source, "no session at /sdk");
            Fault::invalid_login()
        })?;
        let refuse = |reason: &'static str| {
            self.refused(permit.tenant(), reason);
            Fault::invalid_login()
        };
        if permit.target().kind != TargetKind::Vcenter {
            return Err(refuse("sdk_no_vcenter"));
        }
        let tenant = gate.tenants.get(permit.tenant()).ok_or_else(|| refuse("unknown_tenant"))?;
        if gate.is_draining() {
            return Err(refuse("draining"));
        }
        let client = gate.sdk.next_client();
        let opened = gate.vcenters.open(permit.target().clone(), client, tenant.targets.clone()).await;
        let (key, service) = opened.map_err(|error| {
            self.no_vcenter(permit.tenant(), &error);
            if error.is_failure() { Fault::unavailable() } else { Fault::invalid_login() }
        })?;
        let user = permit.user().to_owned();
        let vm = Moref::vm(moref(permit.target(), permit.vm()));
        let opened = Opened {
            permit,
            vm,
            key: key.clone(),
            collector: service.property_collector,
            source: caller.source.ip().to_canonical(),
        };
        let Some((cookie, session)) = gate.sdk.open(opened, tenant.max_sessions, now, clock) else {
            gate.close_at_vcenter(&key);
            self.refused("", "tenant_full");
            return Err(Fault::new("InvalidState", "Too many sessions are open."));
        };
        let permit = &session.permit;
        tracing::info!(tenant = permit.tenant(), user, vm = %session.vm, jti = permit.jti(), source = %caller.source, "session at /sdk opened");
        let value = user_session("returnval", &session);
        let cookie = format!("{}=\"{cookie}\"; Path=/; HttpOnly; Secure", soap::COOKIE);
        Ok(ok(&answer::returns("CloneSession", value)).header("Set-Cookie", cookie))
    }

    /// What needs one.
    async fn ask(&self, session: &Arc<SdkSession>, operation: &Element) -> Result<Reply, Fault> {
        if let Some(reply) = known_here(session, operation) {
            return Ok(reply);
        }
        let permit = &session.permit;
        let tenant = self.gate.tenants.get(permit.tenant()).ok_or_else(Fault::not_authenticated)?;
        let own = session.own();
        let scope = Scope {
            vm: &session.vm,
            collector: &session.collector,
            own: &own,
            power: tenant.console_power != ConsolePower::None,
        };
        let approved = allowed::check(operation, scope)
            .inspect_err(|_| self.refused(permit.tenant(), "sdk_not_allowed"))?;
        match approved.line.handling {
            Handling::Open => Err(Fault::no_permission()),
            Handling::Local if approved.line.method == "Logout" => {
                self.close();
                Ok(ok(&answer::nothing("Logout")))
            }
            Handling::Local => {
                let (id, user) = (operation.child_text("sessionID"), operation.child_text("userName"));
                let same = id == Some(&session.name) && user == Some(permit.user());
                Ok(ok(&answer::returns(approved.line.method, Element::text("returnval", same.to_string()))))
            }
            Handling::Read => self.forward(session, &tenant, approved).await,
            Handling::Power | Handling::Operate => {
                let line = approved.line;
                tracing::info!(operation = line.method, tenant = permit.tenant(), user = permit.user(), vm = %session.vm, jti = permit.jti(), source = %self.caller.source, "operation on a VM");
                self.forward(session, &tenant, approved).await
            }
            Handling::Ticket => self.console_ticket(session, &tenant, approved).await,
        }
    }

    async fn forward(
        &self,
        session: &Arc<SdkSession>,
        tenant: &Tenant,
        mut approved: Approved,
    ) -> Result<Reply, Fault> {
        let wait = (approved.line.method == "WaitForUpdatesEx").then(|| bound_wait(&mut approved.operation));
        let forwarded = self.at_vcenter(session, tenant, &approved, wait).await?;
        match &forwarded.message {
            Message::Body(body) => {
                let given = returned(approved.line.method, body).ok().flatten().and_then(Element::as_moref);
                if let Some(object) =
                    given.filter(|object| matches!(object.kind.as_str(), "Task" | "PropertyFilter"))
                {
                    session.remember(object);
                }
                Ok(Reply::new("200 OK", soap::CONTENT_TYPE, forwarded.text))
            }
            Message::Fault(_) => {
                Ok(Reply::new("500 Internal Server Error", soap::CONTENT_TYPE, forwarded.text))
            }
        }
    }

    async fn at_vcenter(
        &self,
        session: &SdkSession,
        tenant: &Tenant,
        approved: &Approved,
        wait: Option<Duration>,
    ) -> Result<crate::backend::vcenter::Forwarded, Fault> {
        let _turn = session
            .calls
            .try_acquire()
            .map_err(|_| Fault::new("InvalidState", "Too many calls of this session at once."))?;
        let forward = Forward {
            operation: approved.operation.clone(),
            // Tickets are read here, and the newest versions say the most about the host.
            version: (approved.line.handling != Handling::Ticket).then(|| self.version.clone()),
            wait,
            reach: tenant.targets.clone(),
        };
        let asked = self.gate.vcenters.forward(session.key.clone(), forward).await;
        asked.map_err(|error| {
            self.no_vcenter(session.permit.tenant(), &error);
            match error {
                VcenterError::Fault { fault, .. } if fault.is_session_lost() => Fault::not_authenticated(),
                VcenterError::Login { .. } | VcenterError::NotRunning => Fault::not_authenticated(),
                _ => Fault::unavailable(),
            }
        })
    }

    async fn console_ticket(
        &self,
        session: &Arc<SdkSession>,
        tenant: &Tenant,
        approved: Approved,
    ) -> Result<Reply, Fault> {
        let method = approved.line.method;
        let kind = match (method, approved.operation.child_text("ticketType")) {
            ("AcquireMksTicket", _) | (_, Some("mks")) => ConsoleKind::Mks,
            (_, Some("webmks")) => ConsoleKind::Webmks,
            // Device and guest tickets are for other servers than a console's.
            _ => return Err(Fault::no_permission()),
        };
        let mut forwarded = self.at_vcenter(session, tenant, &approved, None).await?;
        let off = matches!(&forwarded.message, Message::Fault(fault) if fault.is_powered_off());
        if off && tenant.console_power == ConsolePower::Implicit {
            let vm = session.vm.clone();
            let on = self.gate.vcenters.power_on(session.key.clone(), vm, tenant.targets.clone()).await;
            on.map_err(|error| {
                self.no_vcenter(session.permit.tenant(), &error);
                Fault::new("InvalidState", "The virtual machine could not be powered on.")
            })?;
            forwarded = self.at_vcenter(session, tenant, &approved, None).await?;
        }
        let Message::Body(body) = &forwarded.message else {
            return Ok(Reply::new("500 Internal Server Error", soap::CONTENT_TYPE, forwarded.text));
        };
        let resolved = ConsoleTicket::from_answer(method, body)
            .map_err(VcenterError::from)
            .and_then(|given| resolve(given, &session.key.endpoint, kind));
        let resolved = resolved.map_err(|error| {
            self.no_vcenter(session.permit.tenant(), &error);
            Fault::unavailable()
        })?;
        let sealed = ticket::seal(self.gate, self.caller, session, resolved, kind, SystemTime::now());
        let sealed = sealed.map_err(|error| {
            tracing::error!(error, "a console ticket could not be sealed");
            Fault::unavailable()
        })?;
        Ok(ok(&sealed.answer(method, &self.version)))
    }

    fn close(&self) {
        let Some(cookie) = &self.cookie else { return };
        if let Some(session) = self.gate.sdk.close(cookie) {
            self.gate.close_at_vcenter(&session.key);
        }
    }

    fn no_vcenter(&self, tenant: &str, error: &VcenterError) {
        self.refused(tenant, error.as_str());
        tracing::info!(reason = error.as_str(), %error, source = %self.caller.source, "a vCenter did not do what /sdk asked");
    }

    fn refused(&self, tenant: &str, reason: &'static str) {
        self.gate.metrics.refused(self.caller.door, tenant, reason);
    }
}

impl Gate {
    /// Whether a session's ticket and tenant are still good.
    pub fn is_welcome(&self, session: &SdkSession) -> bool {
        let permit = &session.permit;
        !self.tickets.is_revoked(permit.jti()) && self.tenants.get(permit.tenant()).is_some()
    }

    /// Ends the sessions of `/sdk` that are over.
    pub fn tidy_sdk(&self) {
        for gone in self.sdk.take_over(Instant::now(), SystemTime::now(), |session| !self.is_welcome(session))
        {
            self.close_at_vcenter(&gone.key);
        }
    }

    /// Ends a client's session at its vCenter. One that a clone ticket opened is left to its idle time: other connections
    /// of the same ticket are in it, and the ticket cannot open another.
    pub fn close_at_vcenter(&self, key: &crate::backend::vcenter::SessionKey) {
        if matches!(key.owner, Owner::Client(_)) {
            self.vcenters.close(key);
        }
    }
}

/// Reads of the appliance's own objects.
fn known_here(session: &SdkSession, operation: &Element) -> Option<Reply> {
    if !matches!(operation.name.as_str(), "Fetch" | "RetrieveProperties" | "RetrievePropertiesEx") {
        return None;
    }
    let (object, property) = answer::one_property(operation)?;
    let (value, kind) = if answer::is_service_content(&object, property) {
        (answer::service_content("val"), "ServiceContent")
    } else if answer::is_current_session(&object, property) {
        (user_session("val", session), "UserSession")
    } else {
        return None;
    };
    Some(ok(&answer::fetched(&operation.name, &object, property, value, kind)))
}

fn user_session(name: &str, session: &SdkSession) -> Element {
    answer::user_session(name, &session.name, session.permit.user(), &answer::date_time(unix(session.since)))
}

/// Bounds `maxWaitSeconds` to what the appliance holds, and says how long that is.
fn bound_wait(operation: &mut Element) -> Duration {
    let asked = operation.child("options").and_then(|options| options.child_text("maxWaitSeconds"));
    let seconds = asked.and_then(|text| text.parse().ok()).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
    let most = operation.child("options").and_then(|options| options.child("maxObjectUpdates").cloned());
    operation.children.retain(|child| child.name != "options");
    let options = Element::new("options").has("maxWaitSeconds", seconds.to_string()).with_some(most);
    operation.children.push(options);
    Duration::from_secs(seconds)
}

fn ok(answer: &Element) -> Reply {
    Reply::new("200 OK", soap::CONTENT_TYPE, envelope(answer))
}

fn fault(fault: &Fault) -> Reply {
    Reply::new("500 Internal Server Error", soap::CONTENT_TYPE, fault.envelope())
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The session's cookie, out of however many.
fn cookie(head: &Head) -> Option<String> {
    let mut pairs = head
        .values("cookie")
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == soap::COOKIE)?;
    Some(value.trim_matches('"').to_owned())
}
