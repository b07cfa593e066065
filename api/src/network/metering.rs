//! Metering labels and their rules on the wire (Network API v2.0: metering).

use axum::Json;
use axum::extract::State;
use control::model::network::metering::{MeteringLabel, MeteringRule};
use control::service::metering::LabelCreate;
use net::spec::Direction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Chosen, Created, Listed, One, OwnerFields, Shown, invalid, listing, read_subnet, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
use crate::openapi::{Routes, get};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelBody {
    metering_label: LabelFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    shared: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    metering_label_rule: RuleFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFields {
    metering_label_id: String,
    direction: Direction,
    excluded: Option<bool>,
    remote_ip_prefix: Option<String>,
    source_ip_prefix: Option<String>,
    destination_ip_prefix: Option<String>,
    // A rule is its label's.
    #[serde(rename = "project_id")]
    _project_id: Option<String>,
    #[serde(rename = "tenant_id")]
    _tenant_id: Option<String>,
}

/// The routes of labels and rules.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/metering/metering-labels", get(label_list).post(label_create))
        .route("/v2.0/metering/metering-labels/{id}", get(label_show).delete(label_delete))
        .route("/v2.0/metering/metering-label-rules", get(rule_list).post(rule_create))
        .route("/v2.0/metering/metering-label-rules/{id}", get(rule_show).delete(rule_delete))
}

/// A label as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MeteringLabel")]
struct ShownLabel {
    #[serde(flatten)]
    owner: OwnerFields,
    name: String,
    description: String,
    shared: bool,
}

impl Shown for ShownLabel {
    const NAMES: &'static [&'static str; 2] = &["metering_label", "metering_labels"];
}

/// A rule as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MeteringRule")]
struct ShownRule {
    id: String,
    metering_label_id: String,
    #[schemars(with = "String")]
    direction: Direction,
    excluded: bool,
    remote_ip_prefix: Option<String>,
    source_ip_prefix: Option<String>,
    destination_ip_prefix: Option<String>,
}

impl Shown for ShownRule {
    const NAMES: &'static [&'static str; 2] = &["metering_label_rule", "metering_label_rules"];
}

fn label_view(label: &MeteringLabel) -> ShownLabel {
    let standard = &label.standard;
    ShownLabel {
        owner: standard.into(),
        name: standard.name.clone(),
        description: standard.description.clone(),
        shared: label.shared,
    }
}

fn rule_view(rule: &MeteringRule) -> ShownRule {
    ShownRule {
        id: rule.id.clone(),
        metering_label_id: rule.label_id.clone(),
        direction: rule.direction,
        excluded: rule.excluded,
        remote_ip_prefix: rule.remote_ip_prefix.map(|prefix| prefix.to_string()),
        source_ip_prefix: rule.source_ip_prefix.map(|prefix| prefix.to_string()),
        destination_ip_prefix: rule.destination_ip_prefix.map(|prefix| prefix.to_string()),
    }
}

async fn label_create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<LabelBody>,
) -> Created<One<ShownLabel>> {
    let fields = body.metering_label;
    let request = LabelCreate {
        name: fields.name,
        description: fields.description,
        project_id: fields.project_id.or(fields.tenant_id),
        shared: fields.shared.unwrap_or(false),
    };
    let label = state.control.metering_label_create(&caller, request).await?;
    Ok(Status(Json(One(label_view(&label.row)))))
}

async fn label_list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownLabel>> {
    let labels = state.control.network_resources::<MeteringLabel>(&caller).await?;
    listing(labels.iter().map(|label| label_view(&label.row)), &filters, &url)
}

async fn label_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownLabel>>> {
    let label = state.control.network_resource::<MeteringLabel>(&caller, &id).await?;
    Ok(shown(&label_view(&label.row), &filters))
}

async fn label_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.metering_label_delete(&caller, &id).await?;
    Ok(DONE)
}

async fn rule_create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<RuleBody>,
) -> Created<One<ShownRule>> {
    let fields = body.metering_label_rule;
    let [remote, source, destination] = [
        ("remote_ip_prefix", fields.remote_ip_prefix),
        ("source_ip_prefix", fields.source_ip_prefix),
        ("destination_ip_prefix", fields.destination_ip_prefix),
    ]
    .map(|(field, text)| text.map(|text| read_subnet(field, &text)).transpose());
    let rule = MeteringRule {
        id: String::new(),
        label_id: fields.metering_label_id,
        direction: fields.direction,
        excluded: fields.excluded.unwrap_or(false),
        remote_ip_prefix: remote?,
        source_ip_prefix: source?,
        destination_ip_prefix: destination?,
    };
    let two_sided = rule.source_ip_prefix.is_some() || rule.destination_ip_prefix.is_some();
    if rule.remote_ip_prefix.is_some() == two_sided {
        return Err(invalid(
            "Invalid input for operation: either remote_ip_prefix, or source_ip_prefix and destination_ip_prefix.",
        ));
    }
    let rule = state.control.metering_rule_create(&caller, rule).await?;
    Ok(Status(Json(One(rule_view(&rule)))))
}

async fn rule_list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownRule>> {
    let rules = state.control.metering_rules(&caller).await?;
    listing(rules.iter().map(|rule| rule_view(&rule.row)), &filters, &url)
}

async fn rule_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownRule>>> {
    let rule = state.control.metering_rule(&caller, &id).await?;
    Ok(shown(&rule_view(&rule.row), &filters))
}

async fn rule_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.metering_rule_delete(&caller, &id).await?;
    Ok(DONE)
}
