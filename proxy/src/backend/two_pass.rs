//! Classic ESX: a first pass on 902 gives another ticket, which is good for a second pass on the next port, 903.
//!
//! Built from the description of it alone; no transcript of a real host was at hand. Taken as likely: the answer to PASS or to
//! CONNECT is `630 <text> <ticket>` with the ticket as its last word, and the second pass is the ordinary dialogue.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;

use super::esxi_mks::{FirstPass, PORT};
use super::{BackendError, Dial, EsxiMks, dial};
use crate::ticket::{Target, TargetKind};

/// Both passes, up to the second login.
pub(super) async fn login(
    target: &Target,
    vm: &str,
    provider: Arc<CryptoProvider>,
    within: Duration,
    how: Dial<'_>,
) -> Result<EsxiMks, BackendError> {
    let first_port = target.port.unwrap_or(PORT);
    let second_port = first_port
        .checked_add(1)
        .ok_or(BackendError::BadTarget("has no port behind its own for the second pass"))?;
    let cfg_file = target.cfg_file.as_deref().unwrap_or(vm);
    let wire = dial(target, first_port, how).await?;
    let ticket = match EsxiMks::first_pass(wire, target, cfg_file, provider.clone(), within).await? {
        FirstPass::Ticket(ticket) => ticket,
        FirstPass::Console => return Err(BackendError::NoSecondPass),
    };
    let mut second = target.clone();
    (second.kind, second.port, second.ticket) = (TargetKind::EsxiMks, Some(second_port), Some(ticket));
    let wire = dial(&second, second_port, how).await?;
    EsxiMks::login(wire, &second, provider, within).await
}
