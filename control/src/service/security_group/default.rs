//! The group that every project has, made at its first use, and what groups a request means by their names.

use super::{DEFAULT_NAME, add_rules, group_row, template};
use crate::Control;
use crate::error::{Error, Result};
use crate::model::network::SecurityGroup;
use crate::model::random_uuid;
use crate::store::{Cache, Txn};

impl Control {
    /// Whether a group is its project's default one, for showing its rules.
    pub fn is_default_group(&self, group_id: &str) -> bool {
        let group = self.db.cache().get::<SecurityGroup>(group_id);
        group.is_some_and(|group| group.row.standard.name == DEFAULT_NAME)
    }

    /// Makes a project's default group at its first use, with the rules that such groups begin with.
    pub(crate) async fn ensure_default_group(&self, project_id: &str) -> Result<String> {
        self.db.caught_up().await?;
        if let Some(id) = default_group(self.db.cache(), project_id) {
            return Ok(id);
        }
        let id = random_uuid();
        self.db
            .transact(|cache| {
                if default_group(cache, project_id).is_some() {
                    return Ok(Txn::new());
                }
                let group = group_row(&id, project_id, DEFAULT_NAME, "Default security group");
                let rules = template::rules_of(cache, &group, true);
                let txn = Txn::new().create(&group).unique(default_key(project_id));
                Ok(add_rules(txn, project_id, &rules, 1))
            })
            .await?;
        default_group(self.db.cache(), project_id)
            .ok_or_else(|| Error::not_found("Security group", DEFAULT_NAME))
    }

    /// The ids of groups given by id or by name within a project, in their order.
    pub(crate) async fn resolve_groups(&self, project_id: &str, wished: &[String]) -> Result<Vec<String>> {
        let default = self.ensure_default_group(project_id).await?;
        if wished.is_empty() {
            return Ok(vec![default]);
        }
        let groups: Vec<_> = self
            .db
            .cache()
            .list::<SecurityGroup>()
            .into_iter()
            .filter(|group| group.row.standard.project_id == project_id)
            .collect();
        let mut ids: Vec<String> = Vec::with_capacity(wished.len());
        for name in wished {
            let by_id = groups.iter().find(|group| group.row.standard.id == *name);
            let id = match by_id {
                Some(group) => group.row.standard.id.clone(),
                None => {
                    let mut named = groups.iter().filter(|group| group.row.standard.name == *name);
                    match (named.next(), named.next()) {
                        (Some(group), None) => group.row.standard.id.clone(),
                        (Some(_), Some(_)) => {
                            return Err(Error::conflict(
                                "NoUniqueMatch",
                                format!(
                                    "Multiple security groups found matching '{name}'. Use an ID to be more specific."
                                ),
                            ));
                        }
                        (None, _) => {
                            return Err(Error::invalid(
                                "SecurityGroupNotFound",
                                format!("Security group {name} not found for project {project_id}."),
                            ));
                        }
                    }
                }
            };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

pub(super) fn default_key(project_id: &str) -> String {
    format!("unique/default-security-group/{project_id}")
}

fn default_group(cache: &Cache, project_id: &str) -> Option<String> {
    cache
        .list::<SecurityGroup>()
        .iter()
        .find(|group| group.row.standard.project_id == project_id && group.row.standard.name == DEFAULT_NAME)
        .map(|group| group.row.standard.id.clone())
}
