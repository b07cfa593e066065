//! The configuration of single domains: all of it, a group, an option.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::identity::domain_config::{Config, Options, Part, PartOf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Either, Status};
use crate::openapi::{Routes, get};

/// The parts of a path that are there.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigPath {
    domain_id: Option<String>,
    group: Option<String>,
    option: Option<String>,
}

impl ConfigPath {
    fn part(self) -> (String, Part) {
        (self.domain_id.unwrap_or_default(), Part { group: self.group, option: self.option })
    }
}

/// All routes of configurations.
pub(super) fn routes() -> Routes {
    let own = "/v3/domains/{domain_id}/config";
    let part = || get(show).patch(update).delete(delete);
    Routes::new()
        .route("/v3/domains/config/default", get(default))
        .route("/v3/domains/config/{group}/default", get(default))
        .route("/v3/domains/config/{group}/{option}/default", get(default))
        .route(own, part().put(set))
        .route(&format!("{own}/{{group}}"), part())
        .route(&format!("{own}/{{group}}/{{option}}"), part())
}

/// Groups of options, or one option.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Shown {
    Groups(BTreeMap<String, BTreeMap<String, Value>>),
    Option(BTreeMap<String, Value>),
}

#[derive(Serialize, JsonSchema)]
pub(super) struct DomainConfiguration {
    config: Shown,
}

impl From<PartOf> for DomainConfiguration {
    fn from(part: PartOf) -> Self {
        let config = match part {
            PartOf::Groups(groups) => Shown::Groups(groups),
            PartOf::Option(option) => Shown::Option(option),
        };
        Self { config }
    }
}

/// A whole configuration, or a part of one.
#[derive(Deserialize)]
pub(super) struct ConfigBody {
    config: BTreeMap<String, Value>,
}

impl ConfigBody {
    fn groups(self) -> Result<Config, Fault> {
        let options = |(group, value): (String, Value)| match value {
            Value::Object(options) => Ok((group, options.into_iter().collect::<Options>())),
            _ => {
                Err(Fault::malformed(format!("The value of group {group} should be a dictionary of options")))
            }
        };
        self.config.into_iter().map(options).collect()
    }
}

/// Identity API v3: create domain configuration.
async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<ConfigPath>,
    Body(body): Body<ConfigBody>,
) -> Result<Either<Created<DomainConfiguration>, Json<DomainConfiguration>>, Fault> {
    let (id, _) = path.part();
    let (config, new) = state.control.domain_config_set(&caller, &id, &body.groups()?).await?;
    let shown = Json(DomainConfiguration { config: Shown::Groups(config) });
    Ok(if new { Either::One(Status(shown)) } else { Either::Other(shown) })
}

/// Identity API v3: show domain configuration, a group of it, an option.
async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<ConfigPath>,
) -> Answer<DomainConfiguration> {
    let (id, part) = path.part();
    Ok(Json(state.control.domain_config(&caller, &id, &part).await?.into()))
}

/// Identity API v3: update domain configuration, a group of it, an option. The body about an option has no group.
async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<ConfigPath>,
    Body(body): Body<ConfigBody>,
) -> Answer<DomainConfiguration> {
    let (id, part) = path.part();
    let config = match (&part.group, &part.option) {
        (Some(group), Some(_)) => Config::from([(group.clone(), body.config)]),
        _ => body.groups()?,
    };
    let config = state.control.domain_config_update(&caller, &id, &part, &config).await?;
    Ok(Json(DomainConfiguration { config: Shown::Groups(config) }))
}

/// Identity API v3: delete domain configuration, a group of it, an option.
async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<ConfigPath>,
) -> Result<Done, Fault> {
    let (id, part) = path.part();
    state.control.domain_config_delete(&caller, &id, &part).await?;
    Ok(DONE)
}

/// Identity API v3: show default configuration settings, those of a group, of an option.
async fn default(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<ConfigPath>,
) -> Answer<DomainConfiguration> {
    let (_, part) = path.part();
    Ok(Json(state.control.domain_config_default(&caller, &part)?.into()))
}
