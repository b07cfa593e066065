//! Domains.

use super::fields::Result;
use control::caller::Caller;
use control::model::identity::{Domain, Extra};
use control::model::random_hex_id;
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::Fields;
use super::project::tags_fit;
use super::resource::{Resource, fits, fits_flag};
use crate::context::{AppState, Filters};
use crate::error::Fault;

/// Domains as clients see them.
pub(super) struct Domains;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnDomain {
    id: String,
    name: String,
    description: String,
    enabled: bool,
    tags: Vec<String>,
    options: Extra,
}

impl Resource for Domains {
    type Row = Domain;
    type Own = OwnDomain;
    const ONE: &'static str = "domain";
    const MANY: &'static str = "domains";
    const PATH: &'static str = "domains";

    fn show(_: &AppState, row: &Domain) -> OwnDomain {
        OwnDomain {
            id: row.id.clone(),
            name: row.name.clone(),
            description: row.description.clone(),
            enabled: row.enabled,
            tags: row.tags.clone(),
            options: row.options.clone(),
        }
    }

    fn extra(row: &Domain) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &Domain) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name)
            && fits_flag(filters, "enabled", row.enabled)
            && tags_fit(filters, &row.tags))
    }

    fn blank(_: &AppState, _: &Caller, fields: &mut Fields) -> Result<Domain> {
        let explicit = fields.nullable("explicit_domain_id")?.flatten();
        if let Some(id) = &explicit
            && (id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(super::fields::invalid("explicit_domain_id is not a UUID of 32 digits"));
        }
        Ok(Domain { id: explicit.unwrap_or_else(random_hex_id), enabled: true, ..Domain::default() })
    }

    fn apply(row: &mut Domain, mut fields: Fields) -> Result<()> {
        fields.name("name", &mut row.name)?;
        fields.text("description", &mut row.description)?;
        fields.flag("enabled", &mut row.enabled)?;
        fields.texts("tags", &mut row.tags)?;
        fields.options(&mut row.options)?;
        for own in ["is_domain", "parent_id", "domain_id"] {
            fields.take(own);
        }
        fields.rest(&mut row.extra);
        Ok(())
    }
}
