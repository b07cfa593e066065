//! Who may see and change an image. What can be seen at all is by its visibility, as in Glance's database; the policy's
//! rules are asked over that.

use std::sync::Arc;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageMember};
use crate::policy::{Default, Target, allowed};
use crate::store::{Cache, Stored};

/// Whether a rule allows the caller something with an image. `member` is the project that the image is shared with.
pub(crate) fn allows(
    rule: &str,
    default: Default,
    caller: &Caller,
    image: &Image,
    member: Option<&str>,
) -> bool {
    // What is shared with nobody has no member, not one without a name.
    holds((rule, default), caller, image, || member)
}

/// As [`allows`]; the member is looked up for whom nothing else lets, since lists ask of every image.
fn holds<'m>(
    (rule, default): (&str, Default),
    caller: &Caller,
    image: &Image,
    member: impl Fn() -> Option<&'m str>,
) -> bool {
    let owner = image.owner.as_deref().unwrap_or_default();
    let keys = [
        ("project_id", owner),
        ("owner", owner),
        ("visibility", image.visibility.as_str()),
        ("image_id", image.id.as_str()),
    ];
    allowed(rule, default, caller, &Target::of(&keys).with("member_id", &|| member()))
}

/// The caller's project, if the image is shared with it.
fn membership<'c>(cache: &Cache, caller: &'c Caller, image: &Image) -> Option<&'c str> {
    let shared = |project: &&str| cache.get::<ImageMember>(&ImageMember::key(&image.id, project)).is_some();
    caller.project_id().filter(|_| image.visibility == "shared").filter(shared)
}

/// Whether the caller may see an image: its owner's project, everybody if it is public or community, and the projects
/// it is shared with; and of those whom the policy lets.
pub(crate) fn may_see(cache: &Cache, caller: &Caller, image: &Image) -> bool {
    let member = || membership(cache, caller, image);
    let reaches = matches!(image.visibility.as_str(), "public" | "community")
        || image.owner.as_deref().map_or(caller.is_admin(), |owner| caller.reaches(owner))
        || member().is_some();
    reaches && holds(("get_image", Default::VisibleReader), caller, image, member)
}

/// An image that the caller may see.
pub(crate) fn visible_image(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Image>>> {
    let stored = cache.get::<Image>(id).filter(|stored| may_see(cache, caller, &stored.row));
    stored.ok_or_else(|| Error::not_found("Image", id))
}

/// An image that the caller may see, with which a rule allows it something.
pub(crate) fn allowed_image(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    rule: &'static str,
    default: Default,
) -> Result<Arc<Stored<Image>>> {
    let stored = visible_image(cache, caller, id)?;
    if holds((rule, default), caller, &stored.row, || membership(cache, caller, &stored.row)) {
        Ok(stored)
    } else {
        Err(Error::Forbidden { action: rule })
    }
}

/// An image that the caller may change.
pub(crate) fn owned_image(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Image>>> {
    allowed_image(cache, caller, id, action, Default::Member)
}
