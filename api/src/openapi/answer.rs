//! What handlers answer, as their own types say: which status, and the schema of the very structure that is serialised.
//! A handler whose type says neither is described as one that answers something.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::context::Service;
use crate::error::{self, Fault};
use crate::microversion;

/// What an answer's type adds to the description.
pub(crate) trait Answered {
    /// Says it.
    fn describe(answers: &mut Answers);
}

/// What an operation answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    successes: BTreeMap<u16, Content>,
    faults: bool,
    /// Something else too, of which the type says nothing.
    untold: bool,
}

/// What comes with a status.
#[derive(Debug, Clone, Copy)]
enum Content {
    Nothing,
    Data,
    Text,
    Form,
    /// Nothing, or JSON.
    Maybe(fn(&mut SchemaGenerator) -> Schema),
    Json(fn(&mut SchemaGenerator) -> Schema),
}

impl Answers {
    /// Moves what is said to be answered with 200 to another status.
    fn moved_to(&mut self, status: u16, other: Self) {
        self.faults |= other.faults;
        self.untold |= other.untold;
        let contents = other.successes.into_iter();
        self.successes
            .extend(contents.map(|(code, content)| (if code == 200 { status } else { code }, content)));
    }

    /// What this type says too, where nothing may be said with the same status.
    pub(crate) fn or<T: Answered>(&mut self) {
        let mut other = Self::default();
        T::describe(&mut other);
        for (status, content) in other.successes {
            let content = match (self.successes.get(&status), content) {
                (Some(Content::Nothing), Content::Json(schema)) => Content::Maybe(schema),
                (_, content) => content,
            };
            self.successes.insert(status, content);
        }
    }

    /// The service's faults, whatever the type says: who asks may be refused before.
    pub(super) fn refuses(&mut self) {
        self.faults = true;
    }

    /// Bytes, with this status.
    pub(crate) fn data(&mut self, status: StatusCode) {
        self.successes.insert(status.as_u16(), Content::Data);
    }

    /// Nothing, with this status.
    pub(crate) fn nothing(&mut self, status: StatusCode) {
        self.successes.insert(status.as_u16(), Content::Nothing);
    }

    /// The `responses` of an operation.
    pub(super) fn responses(&self, service: Service, body: bool, generator: &mut SchemaGenerator) -> Value {
        let mut responses = Map::new();
        for (status, content) in &self.successes {
            let mut response = json!({"description": reason(*status)});
            match content {
                Content::Nothing => {}
                Content::Data => response["content"] = json!({"application/octet-stream": {"schema": {}}}),
                Content::Text => response["content"] = json!({"text/plain": {"schema": {"type": "string"}}}),
                Content::Form => {
                    let content = json!({"schema": {"type": "string"}});
                    response["content"] = json!({"application/x-www-form-urlencoded": content});
                }
                Content::Maybe(schema) | Content::Json(schema) => {
                    response["content"] = json!({"application/json": {"schema": schema(generator)}});
                }
            }
            if let Content::Maybe(_) = content {
                response["x-wisp-content"] = json!("There may be none.");
            }
            responses.insert(status.to_string(), response);
        }
        if self.untold {
            responses.insert("2XX".into(), json!({"description": "It is done, or will be."}));
        }
        // A microversion that is none, or none that is offered, is refused before anybody is asked.
        let refused = [StatusCode::BAD_REQUEST, StatusCode::NOT_ACCEPTABLE];
        let statuses = match (self.faults, microversion::offer(service)) {
            (true, _) => error::statuses(service, body),
            (false, Some(_)) => refused.into(),
            (false, None) => BTreeSet::new(),
        };
        for status in statuses {
            let place = format!("#/components/responses/{}", fault_name(status));
            responses.insert(status.as_u16().to_string(), json!({"$ref": place}));
        }
        Value::Object(responses)
    }
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("An answer")
}

fn fault_name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("Fault").replace(' ', "")
}

/// The `responses` that all operations of a service share: its faults, in its own form.
pub(super) fn faults(service: Service, generator: &mut SchemaGenerator) -> Value {
    let schema = error::schema(service, generator);
    let response = |status: StatusCode| {
        let said = json!({
            "description": status.canonical_reason().unwrap_or("A fault"),
            "content": {"application/json": {"schema": schema}},
        });
        (fault_name(status), said)
    };
    error::statuses(service, true).into_iter().map(response).collect::<Map<_, _>>().into()
}

/// Makes the schemas of answers, which refer to each other below `components/schemas`.
pub(super) fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.with_transform(close).into_generator()
}

/// A structure has the fields that it has: nothing else is answered.
fn close(schema: &mut Schema) {
    transform_subschemas(&mut close, schema);
    let Some(object) = schema.as_object_mut() else { return };
    let several = ["anyOf", "oneOf", "allOf", "$ref"].iter().any(|word| object.contains_key(*word));
    if object.contains_key("properties") && !several {
        object.entry("additionalProperties").or_insert(json!(false));
    }
}

/// An answer of another status than 200.
#[derive(Debug, Clone)]
pub(crate) struct Status<const CODE: u16, T>(pub T);

/// What was made.
pub(crate) type Created<T> = Status<201, Json<T>>;
/// What is on its way.
pub(crate) type Accepted<T> = Status<202, Json<T>>;
/// No content.
pub(crate) type Done = Status<204, ()>;
/// Accepted, and no more to say.
pub(crate) type Taken = Status<202, ()>;

/// It is done, and there is no more to say of it.
pub(crate) const DONE: Done = Status(());
/// It will be done.
pub(crate) const TAKEN: Taken = Status(());

impl<const CODE: u16, T: IntoResponse> IntoResponse for Status<CODE, T> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(CODE).expect("a described status is one of HTTP's");
        (status, self.0).into_response()
    }
}

impl<const CODE: u16, T: Answered> Answered for Status<CODE, T> {
    fn describe(answers: &mut Answers) {
        let mut inner = Answers::default();
        T::describe(&mut inner);
        answers.moved_to(CODE, inner);
    }
}

/// Parameters in the form of a query.
#[derive(Debug, Clone)]
pub(crate) struct Form(pub(crate) String);

impl IntoResponse for Form {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/x-www-form-urlencoded")], self.0).into_response()
    }
}

impl Answered for Form {
    fn describe(answers: &mut Answers) {
        answers.successes.insert(200, Content::Form);
    }
}

/// One of two answers.
#[derive(Debug, Clone)]
pub(crate) enum Either<A, B> {
    /// The first.
    One(A),
    /// The second.
    Other(B),
}

impl<A: IntoResponse, B: IntoResponse> IntoResponse for Either<A, B> {
    fn into_response(self) -> Response {
        match self {
            Self::One(answer) => answer.into_response(),
            Self::Other(answer) => answer.into_response(),
        }
    }
}

impl<A: Answered, B: Answered> Answered for Either<A, B> {
    fn describe(answers: &mut Answers) {
        A::describe(answers);
        B::describe(answers);
    }
}

impl<T: JsonSchema> Answered for Json<T> {
    fn describe(answers: &mut Answers) {
        answers.successes.insert(200, Content::Json(SchemaGenerator::subschema_for::<T>));
    }
}

impl Answered for () {
    fn describe(answers: &mut Answers) {
        answers.successes.insert(200, Content::Nothing);
    }
}

/// Never a success.
impl Answered for std::convert::Infallible {
    fn describe(_: &mut Answers) {}
}

impl Answered for String {
    fn describe(answers: &mut Answers) {
        answers.successes.insert(200, Content::Text);
    }
}

impl<T: Answered> Answered for Result<T, Fault> {
    fn describe(answers: &mut Answers) {
        T::describe(answers);
        answers.faults = true;
    }
}

impl Answered for Fault {
    fn describe(answers: &mut Answers) {
        answers.faults = true;
    }
}

/// Headers before an answer.
impl<H, const N: usize, T: Answered> Answered for ([H; N], T) {
    fn describe(answers: &mut Answers) {
        T::describe(answers);
    }
}

macro_rules! untold {
    ($($answer:ty),* $(,)?) => {
        $(
            impl Answered for $answer {
                fn describe(answers: &mut Answers) {
                    answers.untold = true;
                }
            }
        )*
    };
}

untold! { Response, StatusCode }

impl<T> Answered for (StatusCode, T) {
    fn describe(answers: &mut Answers) {
        answers.untold = true;
    }
}

impl<H, T> Answered for (StatusCode, H, T) {
    fn describe(answers: &mut Answers) {
        answers.untold = true;
    }
}
