//! Every answer that is not a success: [`Fault`] is what went wrong, [`render`] the one place that gives it a
//! status and the body of the service that was asked. Which there may be is in each service's description.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use crate::context::Service;
use crate::{microversion, wording};

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

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// The faults that differ in their status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Kind {
            $($kind),*
        }

        impl Kind {
            const ALL: &[Self] = &[$(Self::$kind),*];
        }
    };
}

kinds! {
    Unauthorized, Forbidden, NotFound, Invalid, Conflict, Precondition, OverQuota, TooLarge, NotImplemented, Unavailable,
    Inside, NoMethod, UnsupportedMediaType, RangeNotSatisfiable, NotAcceptable, TimedOut,
}

impl Kind {
    fn of(fault: &Fault) -> Self {
        match fault {
            Fault::Control(error) => match error {
                Error::Unauthorized(_) => Self::Unauthorized,
                Error::Forbidden { .. } => Self::Forbidden,
                Error::NotFound { .. } => Self::NotFound,
                Error::Invalid { .. } => Self::Invalid,
                Error::Conflict { .. } => Self::Conflict,
                Error::Precondition { .. } => Self::Precondition,
                Error::QuotaExceeded { .. } => Self::OverQuota,
                Error::TooLarge { .. } => Self::TooLarge,
                Error::NotImplemented(_) => Self::NotImplemented,
                Error::Unavailable(_) => Self::Unavailable,
                Error::Store(_) | Error::Transaction(_) | Error::Token(_) | Error::Io { .. } => Self::Inside,
            },
            Fault::Malformed(_) | Fault::Field { .. } => Self::Invalid,
            Fault::NoRoute => Self::NotFound,
            Fault::NoMethod => Self::NoMethod,
            Fault::UnsupportedMediaType => Self::UnsupportedMediaType,
            Fault::RangeNotSatisfiable(_) => Self::RangeNotSatisfiable,
            Fault::NotAcceptable(_) => Self::NotAcceptable,
            Fault::TimedOut => Self::TimedOut,
            Fault::Panicked => Self::Inside,
        }
    }

    fn status(self, service: Service) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Precondition => StatusCode::PRECONDITION_FAILED,
            Self::OverQuota => match service {
                Service::Identity | Service::Compute => StatusCode::FORBIDDEN,
                Service::Network | Service::Placement => StatusCode::CONFLICT,
                Service::Volume | Service::Image => StatusCode::PAYLOAD_TOO_LARGE,
            },
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Inside => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Whether an operation may be answered so. `body`: it reads one.
    fn can_be(self, service: Service, body: bool) -> bool {
        match self {
            // What is described is there.
            Self::NoMethod => false,
            Self::UnsupportedMediaType | Self::TimedOut | Self::TooLarge => body,
            Self::Precondition => service == Service::Network,
            Self::RangeNotSatisfiable => service == Service::Image,
            Self::NotAcceptable => microversion::offer(service).is_some(),
            _ => true,
        }
    }
}

/// The statuses of the faults that an operation of a service may answer. `body`: it reads one.
pub(crate) fn statuses(service: Service, body: bool) -> BTreeSet<StatusCode> {
    let kinds = Kind::ALL.iter().filter(|kind| kind.can_be(service, body));
    kinds.map(|kind| kind.status(service)).collect()
}

/// The schema of a service's faults.
pub(crate) fn schema(service: Service, generator: &mut SchemaGenerator) -> Schema {
    match service {
        Service::Identity => generator.subschema_for::<KeystoneBody>(),
        Service::Compute | Service::Volume => generator.subschema_for::<NovaBody>(),
        Service::Network => generator.subschema_for::<NeutronBody>(),
        Service::Image => generator.subschema_for::<GlanceBody>(),
        Service::Placement => generator.subschema_for::<PlacementBody>(),
    }
}

/// The status of a fault in a service.
pub fn status_of(service: Service, fault: &Fault) -> StatusCode {
    Kind::of(fault).status(service)
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
    let mut response = match service {
        Service::Identity => Json(keystone(status, message)).into_response(),
        Service::Compute | Service::Volume => Json(nova(status, message)).into_response(),
        Service::Network => Json(neutron(fault, message)).into_response(),
        Service::Image => Json(glance(status, message)).into_response(),
        Service::Placement => Json(placement(status, message, request_id)).into_response(),
    };
    *response.status_mut() = status;
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

/// Keystone's form.
#[derive(Serialize, JsonSchema)]
struct KeystoneBody {
    error: KeystoneFault,
}

#[derive(Serialize, JsonSchema)]
struct KeystoneFault {
    code: u16,
    message: String,
    title: &'static str,
}

fn keystone(status: StatusCode, message: String) -> KeystoneBody {
    KeystoneBody { error: KeystoneFault { code: status.as_u16(), message, title: title(status) } }
}

/// Nova's form, which Cinder has too: under the fault's name.
#[derive(Serialize, JsonSchema)]
struct NovaBody(BTreeMap<&'static str, NovaFault>);

#[derive(Serialize, JsonSchema)]
struct NovaFault {
    code: u16,
    message: String,
    #[serde(rename = "retryAfter", skip_serializing_if = "Option::is_none")]
    retry_after: Option<&'static str>,
}

fn nova(status: StatusCode, message: String) -> NovaBody {
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
    let retry_after = (fault == "overLimit").then_some("0");
    NovaBody(BTreeMap::from([(fault, NovaFault { code: status.as_u16(), message, retry_after })]))
}

/// Neutron's form.
#[derive(Serialize, JsonSchema)]
struct NeutronBody {
    #[serde(rename = "NeutronError")]
    error: NeutronFault,
}

#[derive(Serialize, JsonSchema)]
struct NeutronFault {
    #[serde(rename = "type")]
    kind: String,
    message: String,
    detail: &'static str,
}

fn neutron(fault: &Fault, message: String) -> NeutronBody {
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
    NeutronBody { error: NeutronFault { kind, message, detail: "" } }
}

/// Glance's form.
#[derive(Serialize, JsonSchema)]
struct GlanceBody {
    message: String,
    code: String,
    title: &'static str,
}

fn glance(status: StatusCode, message: String) -> GlanceBody {
    let title = title(status);
    GlanceBody { message, code: format!("{} {title}", status.as_u16()), title }
}

/// Placement's form.
#[derive(Serialize, JsonSchema)]
struct PlacementBody {
    errors: [PlacementFault; 1],
}

#[derive(Serialize, JsonSchema)]
struct PlacementFault {
    status: u16,
    title: &'static str,
    detail: String,
    code: &'static str,
    request_id: String,
}

fn placement(status: StatusCode, message: String, request_id: &str) -> PlacementBody {
    PlacementBody {
        errors: [PlacementFault {
            status: status.as_u16(),
            title: title(status),
            detail: message,
            code: "placement.undefined_code",
            request_id: request_id.to_owned(),
        }],
    }
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
        let body = neutron(&Error::not_found("Security group", "x").into(), String::new());
        assert_eq!(body.error.kind, "SecurityGroupNotFound");
    }

    #[test]
    fn inner_failures_are_not_shown() {
        let fault =
            Fault::Control(Error::Io { step: "read /secret/path", source: std::io::Error::other("x") });
        let response = render(Service::Compute, &fault, "req-1", "http://h");
        assert_eq!(response.status(), 500);
    }
}
