//! Imports and tasks (Image API v2: interoperable image import, tasks).

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use control::error::Error;
use control::model::image::{ImageSource, ImageTask, ImageTaskKind, ImageTaskStatus};
use control::service::image::ImageChange;
use control::service::image_import::{IMPORT_METHODS, ImportWish, Stores};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::list::{PageLinks, page_links};
use super::{list, patch, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status, TAKEN, Taken};

/// The most stores that one request may name.
const STORES_MAX: usize = 16;

fn flag(body: &Value, name: &str, default: bool) -> Result<bool, Fault> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Fault::malformed(format!("'{name}' must be boolean value only"))),
    }
}

fn wish_of(body: Value, header_store: Option<&str>) -> Result<ImportWish, Fault> {
    let method =
        body.get("method").ok_or_else(|| Fault::malformed("Import request requires a 'method' field."))?;
    let name = method
        .get("name")
        .and_then(Value::as_str)
        .ok_or_else(|| Fault::malformed("Import request requires a 'name' field."))?;
    let source = match name {
        "glance-direct" => ImageSource::Staged,
        "copy-image" => ImageSource::Copy,
        "web-download" => {
            let url = method.get("uri").and_then(Value::as_str);
            let url = url.ok_or_else(|| Fault::malformed("URI is required for web-download"))?;
            ImageSource::Web { url: url.to_owned() }
        }
        _ => return Err(Fault::malformed(format!("Unknown import method name '{name}'."))),
    };
    let stores = match body.get("stores") {
        None | Some(Value::Null) => header_store.map(str::to_owned).into_iter().collect(),
        Some(Value::Array(stores)) if stores.len() <= STORES_MAX => stores
            .iter()
            .map(|store| store.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Fault::malformed("'stores' must be a list of names"))?,
        Some(_) => return Err(Fault::malformed("'stores' must be a list of names")),
    };
    let all = flag(&body, "all_stores", false)?;
    if all && body.get("stores").is_some_and(|stores| !stores.is_null()) {
        return Err(Fault::malformed("'all_stores' cannot be used with 'stores'"));
    }
    Ok(ImportWish {
        source,
        stores: if all { Stores::All } else { Stores::These(stores) },
        all_must_succeed: flag(&body, "all_stores_must_succeed", true)?,
        request: body,
    })
}

/// Image API v2: import an image.
pub(super) async fn import(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    headers: axum::http::HeaderMap,
    Body(body): Body<Value>,
) -> Result<Taken, Fault> {
    let wish = wish_of(body, super::data::wished_store(&headers)?)?;
    state.control.image_import(&caller, &id, wish).await?;
    Ok(TAKEN)
}

/// How images may be imported.
#[derive(Serialize, JsonSchema)]
pub(super) struct Methods {
    #[serde(rename = "import-methods")]
    methods: MethodValues,
}

#[derive(Serialize, JsonSchema)]
struct MethodValues {
    description: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    value: Vec<&'static str>,
}

/// Image API v2: import methods and values discovery.
pub(super) async fn methods(_: Authenticated) -> Answer<Methods> {
    let description = "Import methods available.";
    let methods = MethodValues { description, kind: "array", value: IMPORT_METHODS.to_vec() };
    Ok(Json(Methods { methods }))
}

/// Image API v2: delete image from store.
pub(super) async fn delete_from_store(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((store, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.image_delete_from_store(&caller, &store, &id).await?;
    Ok(DONE)
}

fn status(status: ImageTaskStatus) -> &'static str {
    match status {
        ImageTaskStatus::Pending => "pending",
        ImageTaskStatus::Processing => "processing",
        ImageTaskStatus::Success => "success",
        ImageTaskStatus::Failure => "failure",
    }
}

fn kind(kind: ImageTaskKind) -> &'static str {
    match kind {
        ImageTaskKind::ApiImageImport => "api_image_import",
        ImageTaskKind::Import => "import",
    }
}

fn task_path(task: &ImageTask) -> String {
    format!("/v2/tasks/{}", task.id)
}

/// A task as lists show it.
#[derive(Serialize, JsonSchema)]
struct TaskStub {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    owner: String,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(rename = "self")]
    own: String,
    schema: &'static str,
}

/// A whole task.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Task")]
pub(super) struct ShownTask {
    #[serde(flatten)]
    stub: TaskStub,
    /// As its client said it.
    input: Value,
    result: Option<TaskResult>,
    message: String,
    image_id: String,
    request_id: String,
    user_id: String,
}

#[derive(Serialize, JsonSchema)]
struct TaskResult {
    image_id: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TasksOfImage {
    tasks: Vec<ShownTask>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Tasks {
    tasks: Vec<TaskStub>,
    #[serde(flatten)]
    page: PageLinks,
}

fn stub(task: &ImageTask) -> TaskStub {
    TaskStub {
        id: task.id.clone(),
        kind: kind(task.kind),
        status: status(task.status),
        owner: task.owner.clone(),
        created_at: time(task.created_at),
        updated_at: time(task.updated_at),
        expires_at: task.expires_at.map(time),
        own: task_path(task),
        schema: "/v2/schemas/task",
    }
}

fn show_task(task: &ImageTask) -> ShownTask {
    let done = task.status == ImageTaskStatus::Success;
    ShownTask {
        stub: stub(task),
        input: task.input.clone(),
        result: done.then(|| TaskResult { image_id: task.image_id.clone() }),
        message: task.message.clone(),
        image_id: task.image_id.clone(),
        request_id: task.request_id.clone(),
        user_id: task.user_id.clone(),
    }
}

/// Image API v2: show tasks associated with image.
pub(super) async fn tasks_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<TasksOfImage> {
    let tasks = state.control.image_tasks_of(&caller, &id).await?;
    Ok(Json(TasksOfImage { tasks: tasks.iter().map(|stored| show_task(&stored.row)).collect() }))
}

/// Image API v2: list tasks.
pub(super) async fn list_tasks(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Tasks> {
    let known = |key: &str, words: &[&str]| match filters.get(key) {
        Some(word) if !words.contains(&word) => Err(Fault::malformed(format!("Invalid {key} value: {word}"))),
        _ => Ok(()),
    };
    known("status", &["pending", "processing", "success", "failure"])?;
    known("type", &["import", "api_image_import", "location_import"])?;
    let page = list::page_of(&filters, &["created_at", "updated_at", "id", "status", "type", "expires_at"])?;
    let mut rows = state.control.image_tasks(&caller).await?;
    rows.retain(|stored| {
        filters.allow("status", status(stored.row.status)) && filters.allow("type", kind(stored.row.kind))
    });
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| {
            let task = &stored.row;
            Some(match key {
                "id" => task.id.as_str().into(),
                "status" => status(task.status).into(),
                "type" => kind(task.kind).into(),
                "created_at" => task.created_at.into(),
                "updated_at" => task.updated_at.into(),
                "expires_at" => task.expires_at.into(),
                _ => return None,
            })
        },
    )?;
    let tasks = slice.rows.iter().map(|stored| stub(&stored.row)).collect();
    Ok(Json(Tasks { tasks, page: page_links("/v2/schemas/tasks", &url, slice.next) }))
}

/// Image API v2: show task details.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<ShownTask> {
    Ok(Json(show_task(&state.control.image_task(&caller, &id).await?.row)))
}

/// Image API v2: create task. The one kind that clients make is `import`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Value>,
) -> Result<Status<201, ([(HeaderName, String); 1], Json<ShownTask>)>, Fault> {
    control::policy::require_admin(&caller, "tasks_api_access")?;
    let required = |of: &Value, name: &str| {
        of.get(name).cloned().ok_or_else(|| Fault::malformed(format!("Task '{name}' is required")))
    };
    if required(&body, "type")? != "import" {
        return Err(Fault::malformed("Provided object does not match schema 'task': type is not import"));
    }
    let input = required(&body, "input")?;
    let text = |name: &str| {
        let value = input.get(name).and_then(Value::as_str);
        value.ok_or_else(|| Fault::malformed(format!("Input does not contain '{name}' field")))
    };
    let url = text("import_from")?;
    text("import_from_format")?;
    let Some(Value::Object(properties)) = input.get("image_properties") else {
        return Err(Fault::malformed("Input does not contain 'image_properties' field"));
    };
    let changes = properties
        .iter()
        .map(|(name, value)| patch::change(name, value.clone(), ImageChange::AddProperty))
        .collect::<Result<Vec<_>, _>>()?;
    let stored = state.control.image_task_create(&caller, url, changes, input.clone()).await?;
    let headers = [(header::LOCATION, task_path(&stored.row))];
    Ok(Status((headers, Json(show_task(&stored.row)))))
}

/// Image API v2: delete task. Tasks go by themselves.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Infallible, Fault> {
    state.control.image_task(&caller, &id).await?;
    Err(Error::Forbidden { action: "deletion of a task" }.into())
}
