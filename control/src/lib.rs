//! The cloud's semantics: store, models, services, scheduler, reconcilers, agent and drivers; it knows no HTTP.
//!
//! [`Control`] is all that `api` may call. Its methods stand beside the rows they work on, one file per resource
//! under [`service`].

pub mod agent;
pub mod boolean;
pub mod bootstrap;
pub mod caller;
pub mod driver;
pub mod error;
pub mod model;
pub mod policy;
pub mod reconcile;
pub mod scheduler;
pub mod service;
pub mod settings;
pub mod steps;
pub mod store;
#[cfg(test)]
mod test;
pub mod token;

use std::path::PathBuf;
use std::sync::Arc;

use storage::download::Sources;
use storage::store::S3Settings;

use crate::driver::provider::Provider;
use crate::error::Result;
use crate::policy::Policy;
use crate::reconcile::image_task::ImageTasks;
use crate::service::auth::oauth::Nonces;
use crate::service::db::Db;
use crate::service::image_store::Images;
use crate::service::password::Passwords;
use crate::settings::IdentitySettings;
use crate::store::Store;
use crate::token::Tokens;

/// What a cloud is told when it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL that clients reach the API by, without a slash at the end; the catalog is made of it.
    pub public_url: String,
    /// The name of the one region.
    pub region: String,
    /// Where keys and image files are.
    pub state_dir: PathBuf,
    /// Where agents put files made of volumes: `{host}/outgoing/{image}`.
    pub volumes_dir: PathBuf,
    /// How long a token holds, in seconds.
    pub token_lifetime_s: u32,
    /// Hosts, or `host:port`, that images may be fetched from though their addresses are not public.
    pub image_sources: Vec<String>,
    /// A bucket that images can be kept in.
    pub image_bucket: Option<S3Settings>,
    /// The physical networks that hosts are on.
    pub providers: Vec<Provider>,
    /// New backups of volumes go to a bucket.
    pub backups_in_bucket: bool,
    /// How the identity service behaves where clouds differ.
    pub identity: IdentitySettings,
    /// Who may do what. What the cloud does of itself, its first start included, is nobody's request: no rule is asked.
    pub policy: Arc<Policy>,
}

impl Settings {
    /// Keystone's default lifetime of a token in seconds.
    pub const TOKEN_LIFETIME_S: u32 = 3600;

    /// The defaults, for a cloud with its files in `state_dir`.
    pub fn new(public_url: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let public_url: String = public_url.into();
        let state_dir: PathBuf = state_dir.into();
        Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            region: "RegionOne".to_owned(),
            volumes_dir: state_dir.parent().map(|above| above.join("volumes")).unwrap_or_default(),
            state_dir,
            token_lifetime_s: Self::TOKEN_LIFETIME_S,
            image_sources: Vec::new(),
            image_bucket: None,
            providers: Vec::new(),
            backups_in_bucket: false,
            identity: IdentitySettings::default(),
            policy: Arc::default(),
        }
    }
}

/// A cloud: what people want of it, and what is seen of it.
#[derive(Debug)]
pub struct Control {
    pub(crate) db: Db,
    pub(crate) settings: Settings,
    pub(crate) compute: reconcile::Compute,
    pub(crate) images: Images,
    pub(crate) image_tasks: ImageTasks,
    pub(crate) tokens: Tokens,
    pub(crate) passwords: Passwords,
    pub(crate) nonces: Nonces,
}

impl Control {
    /// Opens a cloud on a store. Nothing is made in it; see `bootstrap` for the first start.
    pub async fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Arc<Self>> {
        let db = Db::open(store).await?;
        let provider = settings.identity.token_provider;
        let tokens = service::auth::open_tokens(&db, &settings.state_dir, provider).await?;
        let compute = reconcile::Compute::open(&db, tokens.master()).await?;
        let sources = Sources::with_allowed(settings.image_sources.clone());
        let directory = settings.state_dir.join("images");
        let images = Images::open(&directory, settings.image_bucket.as_ref(), sources)?;
        let control = Self {
            db,
            settings,
            compute,
            images,
            image_tasks: ImageTasks::default(),
            tokens,
            passwords: Passwords::new()?,
            nonces: Nonces::default(),
        };
        control.passwords_known();
        control.volume_type_bootstrap().await?;
        control.volume_types_recover().await?;
        control.image_recover().await?;
        Ok(Arc::new(control))
    }

    /// The URL that clients reach the API by, without a slash at the end.
    pub fn public_url(&self) -> &str {
        &self.settings.public_url
    }
}
