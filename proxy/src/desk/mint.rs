//! From an org's VM to a sealed ticket.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Person;
use crate::backend::VcenterError;
use crate::gate::Gate;
use crate::ticket::{Claims, Target, TargetKind};

/// A ticket that was minted.
pub(super) struct Minted {
    pub(super) sealed: String,
    pub(super) claims: Claims,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum MintError {
    /// Not a VM of that org, or no such VM: the same to whoever asks.
    NotYours,
    /// The vCenter gave no clone ticket.
    Vcenter(VcenterError),
    /// Our own fault.
    Broken(String),
}

impl MintError {
    /// Its name in metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::NotYours => "desk_not_yours",
            Self::Vcenter(error) => error.as_str(),
            Self::Broken(_) => "internal",
        }
    }
}

/// Mints a ticket for a VM of the person's org. The only way from a request to a target is this table.
pub(super) async fn mint(
    gate: &Gate,
    person: &Person,
    vm: &str,
    source: Option<IpAddr>,
    now: SystemTime,
) -> Result<Minted, MintError> {
    let config = gate.config.load_full();
    let desk = config.desk.as_ref().ok_or(MintError::NotYours)?;
    let org = desk.orgs.get(&person.org).ok_or(MintError::NotYours)?;
    let place = org.vms.get(vm).ok_or(MintError::NotYours)?;
    let account = config.vcenter.accounts.get(&place.vcenter).ok_or(MintError::NotYours)?;
    let mut name = [0; 16];
    aws_lc_rs::rand::fill(&mut name).map_err(|_| MintError::Broken("no random bytes".into()))?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let policy = &config.tickets.policy;
    let mut target = Target {
        kind: TargetKind::Vcenter,
        host: account.host.clone(),
        port: Some(account.port),
        ticket: None,
        cfg_file: Some(place.moref.clone()),
        thumbprints: Vec::new(),
        tls: None,
    };
    if desk.clone_tickets {
        let reach = config.tenants.get(&org.tenant).map(|tenant| tenant.targets.clone()).unwrap_or_default();
        let ticket = gate.vcenters.clone_ticket(target.clone(), reach).await.map_err(MintError::Vcenter)?;
        target.ticket = Some(ticket.to_string());
        target.thumbprints = account.thumbprints.iter().map(ToString::to_string).collect();
    }
    let claims = Claims {
        iss: policy.issuer.clone(),
        aud: policy.audience.clone(),
        jti: name.iter().map(|byte| format!("{byte:02x}")).collect(),
        iat: now,
        nbf: now,
        exp: now + policy.first_use.as_secs() + policy.reconnect.as_secs() + 1,
        tenant: org.tenant.clone(),
        user: format!("{}@{}", person.user, person.org),
        vm: vm.into(),
        target,
        source,
        max_connections: None,
        session_seconds: None,
        view_only: false,
    };
    let sealed = gate.tickets.keys().seal(&claims).map_err(|error| MintError::Broken(error.to_string()))?;
    tracing::info!(
        jti = claims.jti,
        tenant = claims.tenant,
        user = claims.user,
        vm = claims.vm,
        "ticket handed out at the desk"
    );
    Ok(Minted { sealed, claims })
}
