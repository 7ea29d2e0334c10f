//! Routes and handlers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Extension, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::{ApiError, SEE_OPENAPI};
use super::page;
use super::peer::Peer;
use super::{
    Admin, BackendList, Closed, Drained, Failure, HistView, Reloaded, RevokeRequest, SessionList, SourceList,
    StatusView, TenantList, TenantView, Upgraded,
};
use crate::metrics;
use crate::session::{Selector, rfc3339};
use crate::xdp::ShedStatus;

/// The description of the API, as served.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Bodies are small JSON objects.
const MAX_BODY: usize = 16 * 1024;

type Answer<T> = Result<Json<T>, ApiError>;

/// One table for the router and for whoever compares it with [`OPENAPI`]: method and path of every route.
pub struct Routes;

impl Routes {
    /// What the Unix socket serves.
    pub fn all() -> Vec<(&'static str, &'static str)> {
        Self::public().into_iter().chain(Self::private()).map(|(method, path, _)| (method, path)).collect()
    }

    /// What the loopback port serves.
    pub fn on_loopback() -> Vec<(&'static str, &'static str)> {
        Self::public().into_iter().map(|(method, path, _)| (method, path)).collect()
    }

    fn public() -> Vec<Route> {
        vec![
            ("GET", "/live", get(live)),
            ("GET", "/ready", get(ready)),
            ("GET", "/metrics", get(metrics_text)),
        ]
    }

    fn private() -> Vec<Route> {
        vec![
            ("GET", "/v1/status", get(status)),
            ("GET", "/v1/sessions", get(sessions)),
            ("DELETE", "/v1/sessions/{id}", delete(close_one)),
            ("POST", "/v1/sessions/close", post(close_many)),
            ("POST", "/v1/tickets/revoke", post(revoke)),
            ("GET", "/v1/tenants", get(tenants)),
            ("GET", "/v1/backends", get(backends)),
            ("GET", "/v1/xdp", get(xdp)),
            ("GET", "/v1/xdp/sources", get(xdp_sources)),
            ("GET", "/v1/hist", get(hist)),
            ("POST", "/v1/reload", post(reload)),
            ("POST", "/v1/upgrade", post(upgrade)),
            ("POST", "/v1/drain", post(drain)),
            ("GET", "/openapi.json", get(openapi)),
        ]
    }
}

type Route = (&'static str, &'static str, MethodRouter<Admin>);

/// The router of the Unix socket.
pub(super) fn router(admin: Admin, longest: Duration) -> Router {
    build(Routes::public().into_iter().chain(Routes::private()), Router::new(), admin, longest)
}

/// The router of the loopback port: the public routes, and a page for people that draws them.
pub(super) fn loopback_router(admin: Admin, names: Arc<[String]>, longest: Duration) -> Router {
    build(Routes::public(), page::router(), admin, longest)
        .layer(Extension(None::<Peer>))
        .layer(from_fn_with_state(names, page::named_as_ours))
}

/// What somebody without permission gets, whatever he asks for.
pub(super) fn forbidden_router(peer: Peer) -> Router {
    Router::new().fallback(move || async move {
        ApiError::new(
            StatusCode::FORBIDDEN,
            format!("user {} may not use this socket", peer.uid),
            "add the user to admin.uids or one of its groups to admin.gids in the configuration, or use root",
        )
    })
}

fn build(
    routes: impl IntoIterator<Item = Route>,
    more: Router<Admin>,
    admin: Admin,
    longest: Duration,
) -> Router {
    routes
        .into_iter()
        .fold(more, |router, (_, path, handler)| router.route(path, handler))
        .fallback(|uri: Uri| async move {
            ApiError::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()), SEE_OPENAPI)
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let error = format!("{} does not take {method}", uri.path());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error, SEE_OPENAPI)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(longest, in_time))
        .with_state(admin)
}

/// A request that takes too long, its body included, is given up.
async fn in_time(State(longest): State<Duration>, request: Request, next: Next) -> Response {
    tokio::time::timeout(longest, next.run(request)).await.unwrap_or_else(|_| {
        let error = format!("the request took longer than {} s", longest.as_secs_f32());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, error, "send the whole body at once; look at the log")
            .into_response()
    })
}

async fn live() -> Json<serde_json::Value> {
    Json(json!({"live": true}))
}

async fn ready(State(admin): State<Admin>) -> Response {
    match admin.control.ready() {
        Ok(()) => Json(json!({"ready": true})).into_response(),
        Err(why) => {
            let remedy = "GET /v1/status says what the appliance is doing";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why, remedy).into_response()
        }
    }
}

async fn metrics_text(State(admin): State<Admin>) -> Result<Response, ApiError> {
    // A sample may be another process's to give.
    let text = off_thread(move || admin.metrics.encode()).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn status(State(admin): State<Admin>) -> Json<StatusView> {
    let (ready, started) = (admin.control.ready(), admin.metrics.started());
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: rfc3339(started),
        uptime_seconds: admin.metrics.uptime().as_millis() as f64 / 1e3,
        ready: ready.is_ok(),
        not_ready: ready.err(),
        sessions: admin.registry.len(),
        service: admin.control.status(),
    })
}

async fn sessions(
    State(admin): State<Admin>,
    selector: Result<Query<Selector>, QueryRejection>,
) -> Answer<SessionList> {
    let Query(selector) = selector.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let now = Instant::now();
    let all = admin.registry.list();
    let meant = all.iter().filter(|session| selector.is_empty() || selector.matches(session));
    Ok(Json(SessionList { sessions: meant.map(|session| admin.registry.view(session, now)).collect() }))
}

async fn close_one(
    State(admin): State<Admin>,
    Extension(peer): Extension<Option<Peer>>,
    id: Result<Path<u64>, PathRejection>,
) -> Answer<Closed> {
    let Path(id) = id.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let closed = close(&admin, peer, &Selector { id: Some(id), ..Selector::default() });
    if closed.is_empty() {
        let remedy = "GET /v1/sessions lists the live ones; it may just have ended";
        return Err(ApiError::new(StatusCode::NOT_FOUND, format!("there is no session {id}"), remedy));
    }
    Ok(Json(Closed { closed }))
}

async fn close_many(
    State(admin): State<Admin>,
    Extension(peer): Extension<Option<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Closed> {
    let selector: Selector = parse(body)?;
    if selector.is_empty() {
        return Err(ApiError::bad_request("the selector names nothing, and that would be every session"));
    }
    Ok(Json(Closed { closed: close(&admin, peer, &selector) }))
}

fn close(admin: &Admin, peer: Option<Peer>, selector: &Selector) -> Vec<u64> {
    let closed = admin.registry.find(selector);
    for &id in &closed {
        admin.control.close(id);
    }
    tracing::info!(by = by(peer), ?selector, closed = closed.len(), "an operator closed sessions");
    closed
}

async fn revoke(
    State(admin): State<Admin>,
    Extension(peer): Extension<Option<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Closed> {
    let what: RevokeRequest = parse(body)?;
    if !what.is_valid() {
        let error = "name one ticket (jti), or a person (user, and tenant if wanted), or a tenant";
        return Err(ApiError::bad_request(error));
    }
    let closed = admin.control.revoke(&what);
    tracing::info!(by = by(peer), ?what, closed = closed.len(), "an operator revoked tickets");
    Ok(Json(Closed { closed }))
}

async fn tenants(State(admin): State<Admin>) -> Answer<TenantList> {
    let control = admin.control.clone();
    let limits = off_thread(move || control.tenants()).await?;
    let mut live: HashMap<_, Live> = HashMap::new();
    let now = Instant::now();
    for session in admin.registry.list() {
        let view = admin.registry.view(&session, now);
        let tenant = live.entry(view.tenant).or_default();
        tenant.sessions += 1;
        tenant.users.insert(view.user);
        tenant.up += view.up_bytes;
        tenant.down += view.down_bytes;
    }
    let tenants = limits
        .into_iter()
        .map(|limits| {
            let live = live.remove(&limits.name).unwrap_or_default();
            TenantView {
                limits,
                sessions: live.sessions,
                users: live.users.len(),
                up_bytes: live.up,
                down_bytes: live.down,
            }
        })
        .collect();
    Ok(Json(TenantList { tenants }))
}

async fn backends(State(admin): State<Admin>) -> Json<BackendList> {
    Json(admin.control.backends())
}

async fn xdp(State(admin): State<Admin>) -> Answer<ShedStatus> {
    let control = admin.control.clone();
    off_thread(move || control.xdp()).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourcesQuery {
    count: Option<usize>,
}

/// Sources of one answer at most.
const MOST_SOURCES: usize = 10_000;

async fn xdp_sources(
    State(admin): State<Admin>,
    query: Result<Query<SourcesQuery>, QueryRejection>,
) -> Answer<SourceList> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let count = query.count.unwrap_or(20);
    if !(1..=MOST_SOURCES).contains(&count) {
        return Err(ApiError::bad_request(format!("count is not 1 to {MOST_SOURCES}")));
    }
    let control = admin.control.clone();
    let sources = off_thread(move || control.top_sources(count)).await?;
    Ok(Json(SourceList { sources }))
}

#[derive(Default)]
struct Live {
    sessions: usize,
    users: HashSet<String>,
    up: u64,
    down: u64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistQuery {
    #[serde(default)]
    format: HistFormat,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HistFormat {
    #[default]
    Json,
    Log,
}

async fn hist(
    State(admin): State<Admin>,
    query: Result<Query<HistQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let now = SystemTime::now();
    Ok(match query.format {
        HistFormat::Log => {
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], admin.metrics.hist_log(now))
                .into_response()
        }
        HistFormat::Json => Json(HistView {
            since: rfc3339(admin.metrics.started()),
            until: rfc3339(now),
            stages: admin.metrics.percentiles(),
        })
        .into_response(),
    })
}

async fn reload(State(admin): State<Admin>, Extension(peer): Extension<Option<Peer>>) -> Answer<Reloaded> {
    tracing::info!(by = by(peer), "an operator asked for a reload");
    let control = admin.control.clone();
    off_thread(move || control.reload())
        .await?
        .map(Json)
        .map_err(|failure| ApiError(StatusCode::UNPROCESSABLE_ENTITY, failure))
}

async fn upgrade(State(admin): State<Admin>, Extension(peer): Extension<Option<Peer>>) -> Answer<Upgraded> {
    tracing::info!(by = by(peer), "an operator asked for an upgrade");
    let control = admin.control.clone();
    off_thread(move || control.upgrade())
        .await?
        .map(Json)
        .map_err(|failure| ApiError(StatusCode::CONFLICT, failure))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainRequest {
    seconds: Option<u32>,
}

async fn drain(
    State(admin): State<Admin>,
    Extension(peer): Extension<Option<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Drained>), ApiError> {
    let body = body.map_err(|error| ApiError::new(error.status(), error.body_text(), SEE_OPENAPI))?;
    let request: DrainRequest = if body.is_empty() { DrainRequest::default() } else { parse(Ok(body))? };
    tracing::info!(by = by(peer), seconds = request.seconds, "an operator asked for a drain");
    admin.control.drain(request.seconds.map(|seconds| Duration::from_secs(seconds.into())));
    Ok((StatusCode::ACCEPTED, Json(Drained { sessions: admin.registry.len() })))
}

fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    let body = body.map_err(|error| ApiError::new(error.status(), error.body_text(), SEE_OPENAPI))?;
    serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("the body: {error}")))
}

/// Runs what reads files beside the control thread.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let Failure { error, remedy } =
            Failure::new("the request failed inside the appliance", "look at its log");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error, remedy)
    })
}

/// Who asked, for the log.
fn by(peer: Option<Peer>) -> String {
    match peer {
        Some(Peer { uid, pid: Some(pid), .. }) => format!("uid {uid} pid {pid}"),
        Some(Peer { uid, pid: None, .. }) => format!("uid {uid}"),
        None => "nobody".to_owned(),
    }
}
