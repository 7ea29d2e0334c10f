//! Errors as the API says them: what, and what to do about it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Why something was not done, and the remedy: the body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong, and where.
    pub error: String,
    /// What to do about it.
    pub remedy: String,
}

impl Failure {
    /// Both sentences.
    pub fn new(error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { error: error.into(), remedy: remedy.into() }
    }
}

/// A failure with its HTTP status.
pub(super) struct ApiError(pub(super) StatusCode, pub(super) Failure);

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(status, Failure::new(error, remedy))
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, SEE_OPENAPI)
    }
}

/// The remedy of a request that the API does not know.
pub(super) const SEE_OPENAPI: &str = "GET /openapi.json describes every request";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}
