//! Metering labels and their rules: which traffic is counted by which label. Routers count; [`super::traffic`] asks them.

use std::sync::Arc;

use super::network::{check_text, new_standard, owner_project};
use super::network_resource::{at_once, made, network_resources, new_ids, only, visible};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::metering::{MeteringLabel, MeteringRule};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::store::{Stored, Txn};

/// The most rules of one label: they go with it in one transaction.
pub const RULES_MAX: usize = 100;

/// What a label is made from.
#[derive(Debug, Clone, Default)]
pub struct LabelCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if it is for another project.
    pub project_id: Option<String>,
    /// It is every project's.
    pub shared: bool,
}

network_resources! {
    MeteringLabel: "Metering label", "get_metering_label", |row, _cache, caller| {
        caller.is_admin() || row.shared && caller.role.is_some()
    };
}

impl Control {
    /// Makes a label.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks.
    pub async fn metering_label_create(
        &self,
        caller: &Caller,
        request: LabelCreate,
    ) -> Result<Arc<Stored<MeteringLabel>>> {
        require_admin(caller, "create_metering_label")?;
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_metering_label")?;
        check_text("name", &request.name)?;
        check_text("description", &request.description)?;
        let ids = new_ids(1);
        self.db
            .transact(|_| {
                let mut standard = new_standard(ids[0].clone(), project_id.clone(), request.name.clone());
                standard.description.clone_from(&request.description);
                Ok(Txn::new().create(&MeteringLabel { standard, shared: request.shared }))
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Deletes a label with its rules.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks; `NotFound`.
    pub async fn metering_label_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = visible::<MeteringLabel>(cache, caller, id)?;
                require_admin(caller, "delete_metering_label")?;
                let rules = cache.filter::<MeteringRule>(|rule| rule.label_id == id);
                at_once(rules.iter().fold(Txn::new().delete(&stored), |txn, rule| txn.delete(rule)))
            })
            .await
    }

    /// Adds a rule to a label; its id is chosen here.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks; `NotFound` for the label; `Invalid` for too many.
    pub async fn metering_rule_create(&self, caller: &Caller, rule: MeteringRule) -> Result<MeteringRule> {
        require_admin(caller, "create_metering_label_rule")?;
        self.db.caught_up().await?;
        let rule = MeteringRule { id: random_uuid(), ..rule };
        self.db
            .transact(|cache| {
                let label = visible::<MeteringLabel>(cache, caller, &rule.label_id)?;
                if cache.filter::<MeteringRule>(|other| other.label_id == rule.label_id).len() >= RULES_MAX {
                    let message =
                        format!("Invalid input for operation: a label has at most {RULES_MAX} rules.");
                    return Err(Error::invalid("InvalidInput", message));
                }
                // The label's row is written too: its deletion and a new rule exclude each other.
                Ok(Txn::new().update(&label, &label.row).create(&rule))
            })
            .await?;
        Ok(rule)
    }

    /// All rules.
    ///
    /// # Errors
    /// What the store says.
    pub async fn metering_rules(&self, caller: &Caller) -> Result<Vec<Arc<Stored<MeteringRule>>>> {
        self.db.caught_up().await?;
        Ok(if caller.is_admin() { self.db.list() } else { Vec::new() })
    }

    /// One rule.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn metering_rule(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<MeteringRule>>> {
        self.db.caught_up().await?;
        let rule = self.db.get::<MeteringRule>(id).filter(|_| caller.is_admin());
        rule.ok_or_else(|| Error::not_found("Metering label rule", id))
    }

    /// Deletes a rule.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks; `NotFound`.
    pub async fn metering_rule_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "delete_metering_label_rule")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let rule = cache.get::<MeteringRule>(id);
                let rule = rule.ok_or_else(|| Error::not_found("Metering label rule", id))?;
                Ok(Txn::new().delete(&rule))
            })
            .await
    }
}
