//! Every answer that is not a success: [`Fault`] is what went wrong, [`render`] the one place that gives it a
//! status and the body of the service that was asked.

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use serde_json::{Value, json};

use crate::context::Service;
use crate::wording;

/// Why a request was refused. Handlers return it with `?`; the frame around each service writes it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The cloud refused.
    #[error(transparent)]
    Control(#[from] Error),
    /// The request itself cannot be understood.
    #[error("{0}")]
    Malformed(String),
    /// A field of the body does not fit; `reason` is in the words of JSON schema.
    #[error("{field}: {reason}")]
    Field {
        /// Where, with dots between names.
        field: String,
        /// Why not.
        reason: String,
    },
    /// Nothing is at this path.
    #[error("The resource could not be found.")]
    NoRoute,
    /// Something is at this path, but not by this method.
    #[error("The method is not allowed for this resource.")]
    NoMethod,
    /// The body is of a kind that is not taken here.
    #[error("Unsupported Content-Type")]
    UnsupportedMediaType,
    /// A range of bytes that what is asked for does not have.
    #[error("{0}")]
    RangeNotSatisfiable(String),
    /// A microversion outside of what is offered.
    #[error("{0}")]
    NotAcceptable(String),
    /// The body came too slowly.
    #[error("the request took too long to arrive")]
    TimedOut,
    /// A handler broke; the panic is in the log.
    #[error("the handler panicked")]
    Panicked,
}

impl Fault {
    /// The request itself cannot be understood.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::Malformed(message.into())
    }

    /// No valid credentials.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::Control(Error::Unauthorized(message.into()))
    }

    /// The protocol has it, Wisp does not.
    pub fn not_implemented(what: &'static str) -> Self {
        Self::Control(Error::NotImplemented(what))
    }
}

/// Carries the fault to the frame, which alone knows the service.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// The status of a fault in a service.
pub fn status_of(service: Service, fault: &Fault) -> StatusCode {
    match fault {
        Fault::Control(error) => match error {
            Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Error::Forbidden { .. } => StatusCode::FORBIDDEN,
            Error::NotFound { .. } => StatusCode::NOT_FOUND,
            Error::Invalid { .. } => StatusCode::BAD_REQUEST,
            Error::Conflict { .. } => StatusCode::CONFLICT,
            Error::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            Error::QuotaExceeded { .. } => match service {
                Service::Identity | Service::Compute => StatusCode::FORBIDDEN,
                Service::Network | Service::Placement => StatusCode::CONFLICT,
                Service::Volume | Service::Image => StatusCode::PAYLOAD_TOO_LARGE,
            },
            Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Error::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Store(_) | Error::Transaction(_) | Error::Token(_) | Error::Io { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        },
        Fault::Malformed(_) | Fault::Field { .. } => StatusCode::BAD_REQUEST,
        Fault::NoRoute => StatusCode::NOT_FOUND,
        Fault::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
        Fault::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Fault::RangeNotSatisfiable(_) => StatusCode::RANGE_NOT_SATISFIABLE,
        Fault::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
        Fault::TimedOut => StatusCode::REQUEST_TIMEOUT,
        Fault::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The whole answer: status, the service's body, and the headers that belong to the status.
pub fn render(service: Service, fault: &Fault, request_id: &str, public_url: &str) -> Response {
    let status = status_of(service, fault);
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(request.id = request_id, error = chain(fault), "a request failed inside the cloud");
    }
    // What went wrong inside is for the log, not for the client.
    let message = if status == StatusCode::INTERNAL_SERVER_ERROR {
        format!("The request failed inside the cloud; its id is {request_id}.")
    } else {
        sentence(service, fault)
    };
    let body = match service {
        Service::Identity => keystone(status, &message),
        Service::Compute | Service::Volume => nova(status, &message),
        Service::Network => neutron(fault, &message),
        Service::Image => glance(status, &message),
        Service::Placement => placement(status, &message, request_id),
    };
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED
        && let Ok(value) = HeaderValue::from_str(&format!("Keystone uri=\"{public_url}/identity\""))
    {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
    let over_quota = matches!(fault, Fault::Control(Error::QuotaExceeded { .. }));
    if over_quota && service == Service::Volume {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("0"));
    }
    response
}

fn chain(fault: &Fault) -> String {
    let mut text = fault.to_string();
    let mut source = std::error::Error::source(fault);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The fault's message, as a sentence: the services' own messages begin with a capital and end with a stop.
fn sentence(service: Service, fault: &Fault) -> String {
    let text = match fault {
        Fault::Control(Error::NotFound { kind, id }) => format!("{kind} {id} could not be found."),
        Fault::Control(Error::Forbidden { action }) => {
            format!("Policy doesn't allow {action} to be performed.")
        }
        Fault::Field { field, reason } => wording::sentence(service, field, reason),
        other => other.to_string(),
    };
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => text,
    }
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

fn keystone(status: StatusCode, message: &str) -> Value {
    json!({"error": {"code": status.as_u16(), "message": message, "title": title(status)}})
}

fn nova(status: StatusCode, message: &str) -> Value {
    let fault = match status.as_u16() {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 | 429 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    };
    let mut inner = json!({"code": status.as_u16(), "message": message});
    if fault == "overLimit" {
        inner["retryAfter"] = json!("0");
    }
    json!({ fault: inner })
}

fn neutron(fault: &Fault, message: &str) -> Value {
    let kind = match fault {
        Fault::Control(error) => match error {
            Error::Unauthorized(_) => "Unauthorized".to_owned(),
            Error::Forbidden { .. } => "PolicyNotAuthorized".to_owned(),
            Error::NotFound { kind, .. } => {
                let words = kind.split([' ', '_']).map(|word| {
                    let mut chars = word.chars();
                    chars
                        .next()
                        .map(|first| first.to_ascii_uppercase())
                        .into_iter()
                        .chain(chars)
                        .collect::<String>()
                });
                format!("{}NotFound", words.collect::<String>())
            }
            Error::Invalid { reason, .. }
            | Error::Conflict { reason, .. }
            | Error::Precondition { reason, .. } => (*reason).to_owned(),
            Error::QuotaExceeded { .. } => "OverQuota".to_owned(),
            Error::TooLarge { .. } => "RequestTooLarge".to_owned(),
            Error::NotImplemented(_) => "NotImplementedError".to_owned(),
            Error::Unavailable(_) => "ServiceUnavailable".to_owned(),
            Error::Store(_) | Error::Transaction(_) | Error::Token(_) | Error::Io { .. } => {
                "HTTPInternalServerError".to_owned()
            }
        },
        Fault::Malformed(_) | Fault::Field { .. } => "HTTPBadRequest".to_owned(),
        Fault::NoRoute => "HTTPNotFound".to_owned(),
        Fault::NoMethod => "HTTPMethodNotAllowed".to_owned(),
        Fault::UnsupportedMediaType => "HTTPUnsupportedMediaType".to_owned(),
        Fault::RangeNotSatisfiable(_) => "HTTPRequestRangeNotSatisfiable".to_owned(),
        Fault::NotAcceptable(_) => "HTTPNotAcceptable".to_owned(),
        Fault::TimedOut => "HTTPRequestTimeout".to_owned(),
        Fault::Panicked => "HTTPInternalServerError".to_owned(),
    };
    json!({"NeutronError": {"type": kind, "message": message, "detail": ""}})
}

fn glance(status: StatusCode, message: &str) -> Value {
    json!({"message": message, "code": format!("{} {}", status.as_u16(), title(status)), "title": title(status)})
}

fn placement(status: StatusCode, message: &str, request_id: &str) -> Value {
    json!({"errors": [{
        "status": status.as_u16(),
        "title": title(status),
        "detail": message,
        "code": "placement.undefined_code",
        "request_id": request_id,
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota() -> Fault {
        Error::QuotaExceeded { resource: "instances", requested: 1, used: 10, limit: 10 }.into()
    }

    #[test]
    fn over_quota_has_each_services_status() {
        let code = |service| status_of(service, &quota()).as_u16();
        assert_eq!(
            [code(Service::Compute), code(Service::Network), code(Service::Volume), code(Service::Image)],
            [403, 409, 413, 413]
        );
    }

    #[test]
    fn not_found_of_neutron_names_the_kind() {
        let body = neutron(&Error::not_found("Security group", "x").into(), "");
        assert_eq!(body["NeutronError"]["type"], "SecurityGroupNotFound");
    }

    #[test]
    fn inner_failures_are_not_shown() {
        let fault =
            Fault::Control(Error::Io { step: "read /secret/path", source: std::io::Error::other("x") });
        let response = render(Service::Compute, &fault, "req-1", "http://h");
        assert_eq!(response.status(), 500);
    }
}
