//! OS-EP-FILTER: which endpoints a project has in its catalog, one by one and by groups.

use std::collections::BTreeMap;

use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::catalog::{Endpoint, EndpointFilter, EndpointGroup};
use control::model::identity::Project;
use control::model::random_hex_id;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::catalog::Endpoints;
use super::fields::{Fields, Result, invalid};
use super::project::Projects;
use super::resource::{Many, Resource, body, collection, fits, single, whole};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};
use crate::openapi::{Routes, get, put};

/// Groups of endpoints as clients see them.
pub(super) struct EndpointGroups;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnEndpointGroup {
    id: String,
    name: String,
    description: Option<String>,
    filters: BTreeMap<String, String>,
}

impl Resource for EndpointGroups {
    type Row = EndpointGroup;
    type Own = OwnEndpointGroup;
    const OPEN: bool = false;
    const ONE: &'static str = "endpoint_group";
    const MANY: &'static str = "endpoint_groups";
    const PATH: &'static str = "OS-EP-FILTER/endpoint_groups";

    fn show(_: &AppState, row: &EndpointGroup) -> OwnEndpointGroup {
        OwnEndpointGroup {
            id: row.id.clone(),
            name: row.name.clone(),
            description: row.description.clone(),
            filters: row.filters.clone(),
        }
    }

    fn wanted(filters: &Filters, row: &EndpointGroup) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<EndpointGroup> {
        Ok(EndpointGroup { id: random_hex_id(), ..EndpointGroup::default() })
    }

    fn apply(row: &mut EndpointGroup, mut fields: Fields) -> Result<()> {
        fields.name("name", &mut row.name)?;
        fields.optional("description", &mut row.description)?;
        if let Some(filters) = fields.take("filters") {
            row.filters = serde_json::from_value(filters)
                .map_err(|_| invalid("Invalid input for field 'filters': it is not an object of strings"))?;
        }
        fields.take("id");
        fields.end()
    }
}

/// The parts of a path that are there.
#[derive(Debug, Deserialize)]
pub(super) struct FilterPath {
    project_id: Option<String>,
    endpoint_id: Option<String>,
    endpoint_group_id: Option<String>,
}

impl FilterPath {
    /// The row of a project's endpoint or group; both must be there.
    async fn filter(&self, state: &AppState, caller: &Caller) -> Result<EndpointFilter, Fault> {
        let project = self.project_id.as_deref().ok_or(Fault::NoRoute)?;
        state.control.entity_get::<Project>(caller, project).await?;
        let id = match (&self.endpoint_id, &self.endpoint_group_id) {
            (Some(id), _) => {
                state.control.entity_get::<Endpoint>(caller, id).await?;
                format!("{project}/endpoint/{id}")
            }
            (None, Some(id)) => {
                state.control.entity_get::<EndpointGroup>(caller, id).await?;
                format!("{project}/group/{id}")
            }
            (None, None) => return Err(Fault::NoRoute),
        };
        Ok(EndpointFilter { id })
    }
}

/// All routes of the extension.
pub(super) fn routes() -> Routes {
    let base = "/v3/OS-EP-FILTER";
    let group = format!("{base}/endpoint_groups/{{endpoint_group_id}}");
    Routes::new()
        .route(&format!("{base}/endpoint_groups"), collection::<EndpointGroups>())
        .route(&group, single::<EndpointGroups>())
        .route(&format!("{group}/endpoints"), get(endpoints_of_group))
        .route(&format!("{group}/projects"), get(projects))
        .route(&format!("{group}/projects/{{project_id}}"), put(add).get(check).delete(remove))
        .route(&format!("{base}/endpoints/{{endpoint_id}}/projects"), get(projects))
        .route(&format!("{base}/projects/{{project_id}}/endpoints"), get(endpoints_of_project))
        .route(&format!("{base}/projects/{{project_id}}/endpoint_groups"), get(groups_of_project))
        .route(
            &format!("{base}/projects/{{project_id}}/endpoints/{{endpoint_id}}"),
            put(add).get(check).delete(remove),
        )
}

async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<FilterPath>,
) -> Result<Done, Fault> {
    let filter = path.filter(&state, &caller).await?;
    state.control.endpoint_filter_set(&caller, &filter, true).await?;
    Ok(DONE)
}

async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<FilterPath>,
) -> Result<Done, Fault> {
    let filter = path.filter(&state, &caller).await?;
    state.control.endpoint_filter_set(&caller, &filter, false).await?;
    Ok(DONE)
}

async fn check(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<FilterPath>,
) -> Result<Done, Fault> {
    let filter = path.filter(&state, &caller).await?;
    let all = state.control.endpoint_filter_list(&caller).await?;
    if all.iter().any(|stored| stored.row == filter) {
        return Ok(DONE);
    }
    Err(Error::not_found("Endpoint of the project", filter.id).into())
}

async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<FilterPath>,
    url: RequestUrl,
) -> Answer<Many<Projects>> {
    let suffix = match (&path.endpoint_id, &path.endpoint_group_id) {
        (Some(id), _) => {
            format!("/endpoint/{}", state.control.entity_get::<Endpoint>(&caller, id).await?.row.id)
        }
        (None, Some(id)) => {
            format!("/group/{}", state.control.entity_get::<EndpointGroup>(&caller, id).await?.row.id)
        }
        (None, None) => return Err(Fault::NoRoute),
    };
    let all = state.control.endpoint_filter_list(&caller).await?;
    let ids = all.iter().filter_map(|stored| stored.row.id.strip_suffix(&suffix));
    let rows = ids.filter_map(|id| state.control.look_up::<Project>(id));
    Ok(whole(rows.map(|row| body(&state, &row.row)).collect(), &url))
}

async fn endpoints_of_group(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Many<Endpoints>> {
    let group = state.control.entity_get::<EndpointGroup>(&caller, &id).await?;
    let all = state.control.entity_list::<Endpoint>(&caller).await?;
    let own = all.iter().filter(|endpoint| group.row.holds(&endpoint.row));
    Ok(whole(own.map(|row| body(&state, &row.row)).collect(), &url))
}

/// The ids of a project's endpoints or groups.
async fn own_ids(state: &AppState, caller: &Caller, project: &str, kind: &str) -> Result<Vec<String>> {
    state.control.entity_get::<Project>(caller, project).await?;
    let prefix = format!("{project}/{kind}/");
    let all = state.control.endpoint_filter_list(caller).await?;
    Ok(all.iter().filter_map(|stored| stored.row.id.strip_prefix(&prefix).map(str::to_owned)).collect())
}

async fn groups_of_project(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Many<EndpointGroups>> {
    let ids = own_ids(&state, &caller, &id, "group").await?;
    let rows = ids.iter().filter_map(|id| state.control.look_up::<EndpointGroup>(id));
    Ok(whole(rows.map(|row| body(&state, &row.row)).collect(), &url))
}

async fn endpoints_of_project(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Many<Endpoints>> {
    let ids = own_ids(&state, &caller, &id, "endpoint").await?;
    let groups = own_ids(&state, &caller, &id, "group").await?;
    let groups: Vec<_> = groups.iter().filter_map(|id| state.control.look_up::<EndpointGroup>(id)).collect();
    let all = state.control.entity_list::<Endpoint>(&caller).await?;
    let own = all.iter().filter(|stored| {
        let endpoint = &stored.row;
        ids.contains(&endpoint.id) || groups.iter().any(|group| group.row.holds(endpoint))
    });
    Ok(whole(own.map(|row| body(&state, &row.row)).collect(), &url))
}
