//! The list of images with its filters (Image API v2: list images).

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::image::Image;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::description::{ShownImage, show_image, status};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl};
use crate::error::Fault;
use crate::page::{Direction, Page, SORT_KEYS_MAX, SortValue};

/// Parameters that choose the page or which images are looked at, not by a column.
const NOT_COLUMNS: [&str; 8] =
    ["limit", "marker", "sort", "sort_key", "sort_dir", "member_status", "visibility", "os_hidden"];
/// What images can be sorted by.
const SORT_KEYS: [&str; 8] =
    ["name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at"];
/// How many rows a page has if the request does not say (Glance's `limit_param_default`).
const LIMIT_DEFAULT: usize = 25;

/// The page that a request asks for, by Glance's rules: newest first unless it says otherwise, `sort=key:dir,…` or as
/// many `sort_dir` as `sort_key`, but not both.
pub(super) fn page_of(filters: &Filters, sort_keys: &[&str]) -> Result<Page, Fault> {
    let direction = |text: &str| match text.trim() {
        "asc" => Ok(Direction::Ascending),
        "desc" | "" => Ok(Direction::Descending),
        other => Err(Fault::malformed(format!("Invalid sort direction: {other}"))),
    };
    let keys: Vec<&str> = filters.all("sort_key").collect();
    let directions: Vec<&str> = filters.all("sort_dir").collect();
    let mut sort = Vec::new();
    if let Some(list) = filters.get("sort") {
        if !keys.is_empty() || !directions.is_empty() {
            return Err(Fault::malformed("Old and new sorting syntax cannot be combined"));
        }
        for entry in list.split(',') {
            let (key, dir) = entry.split_once(':').unwrap_or((entry, ""));
            sort.push((key.trim().to_owned(), direction(dir)?));
        }
    } else {
        let keys = if keys.is_empty() { vec!["created_at"] } else { keys };
        if directions.len() > 1 && directions.len() != keys.len() {
            return Err(Fault::malformed("Number of sort dirs does not match the number of sort keys"));
        }
        for (index, key) in keys.into_iter().enumerate() {
            let dir = directions.get(index).or(directions.first()).copied().unwrap_or_default();
            sort.push((key.trim().to_owned(), direction(dir)?));
        }
    }
    if let Some((key, _)) = sort.iter().find(|(key, _)| !sort_keys.contains(&key.as_str())) {
        let known = sort_keys.join(", ");
        return Err(Fault::malformed(format!(
            "Invalid sort key: {key}. It must be one of the following: {known}."
        )));
    }
    if sort.len() > SORT_KEYS_MAX {
        return Err(Fault::malformed(format!("at most {SORT_KEYS_MAX} sort keys are allowed")));
    }
    let limit = match filters.get("limit") {
        None => LIMIT_DEFAULT,
        Some(text) => text
            .parse::<u32>()
            .map_err(|_| Fault::malformed("limit param must be an integer that is not negative"))?
            as usize,
    };
    let marker = filters.get("marker").filter(|marker| !marker.is_empty()).map(str::to_owned);
    Ok(Page { limit: Some(limit), marker, sort, reverse: false })
}

/// A page as Glance writes it: links are paths below the service's own root.
#[derive(Serialize, JsonSchema)]
pub(super) struct PageLinks {
    first: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    schema: &'static str,
}

pub(super) fn page_links(schema: &'static str, url: &RequestUrl, next: Option<String>) -> PageLinks {
    let below = |target: String| target.trim_start_matches("/image").to_owned();
    PageLinks {
        first: below(url.target_with_marker(None)),
        next: next.map(|next| below(url.target_with_marker(Some(&next)))),
        schema,
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Images {
    images: Vec<ShownImage>,
    #[serde(flatten)]
    page: PageLinks,
}

pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Images> {
    let page = page_of(&filters, &SORT_KEYS)?;
    let hidden = flag(&filters, "os_hidden")?;
    check_words(&filters)?;
    let columns = Column::all_of(&filters)?;
    let mut rows = state.control.image_list(&caller).await?;
    rows.retain(|stored| {
        let image = &stored.row;
        image.hidden == hidden
            && columns.iter().all(|column| column.matches(image))
            && is_listed(&state, &caller, &filters, image)
    });
    let slice = page.cut(rows, |stored| &stored.row.id, |stored, key| sort_value(&stored.row, key))?;
    let images = slice.rows.iter().map(|stored| show_image(&stored.row)).collect();
    Ok(Json(Images { images, page: page_links("/v2/schemas/images", &url, slice.next) }))
}

/// A query's yes or no; no if there is none. Glance takes two words and not all of oslo's, in any case of `os_hidden` at least.
fn flag(filters: &Filters, key: &str) -> Result<bool, Fault> {
    match filters.get(key) {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(text) => Err(Fault::malformed(format!(
            "Invalid value '{text}' for '{key}' filter. Valid values are 'true' or 'false'."
        ))),
    }
}

/// Refuses words that are none of Glance's.
fn check_words(filters: &Filters) -> Result<(), Fault> {
    let known = |key: &str, words: &[&str]| match filters.get(key) {
        Some(word) if !words.contains(&word) => {
            Err(Fault::malformed(format!("Invalid {} value: {word}", key.trim_start_matches("member_"))))
        }
        _ => Ok(()),
    };
    known("visibility", &["public", "community", "shared", "private", "all"])?;
    known("member_status", &["pending", "accepted", "rejected", "all"])?;
    if filters.get("changes-since").is_some_and(|since| !since.is_empty()) {
        return Err(Fault::malformed("The \"changes-since\" filter is no longer available on v2."));
    }
    Ok(())
}

/// Whether a list without further columns shows an image: community images only if asked for by that visibility,
/// shared ones only once accepted.
pub(crate) fn is_listed(state: &AppState, caller: &Caller, filters: &Filters, image: &Image) -> bool {
    let own = image.owner.as_deref().is_some_and(|owner| caller.project_id() == Some(owner));
    match filters.get("visibility") {
        Some("all") => true,
        Some(wanted) if wanted != image.visibility => false,
        Some("shared") | None if image.visibility == "shared" && !own => {
            let membership = state.control.image_membership(caller, &image.id);
            match (membership, filters.get("member_status").unwrap_or("accepted")) {
                (Some(_), "all") => true,
                (Some(member), wanted) => member.row.status == wanted,
                (None, _) => caller.is_admin(),
            }
        }
        None => own || image.visibility != "community",
        Some(_) => true,
    }
}

/// What one parameter asks of an image, understood once for all images.
enum Column<'a> {
    Id(AnyOf<'a>),
    Name(AnyOf<'a>),
    Status(AnyOf<'a>),
    DiskFormat(AnyOf<'a>),
    ContainerFormat(AnyOf<'a>),
    Owner(&'a str),
    Checksum(&'a str),
    Hash(&'a str),
    Tag(&'a str),
    Protected(bool),
    MinDisk(u64),
    MinRam(u64),
    SizeMin(u64),
    SizeMax(u64),
    Created(Compare, i64),
    Updated(Compare, i64),
    Property(&'a str, &'a str),
}

impl<'a> Column<'a> {
    fn all_of(filters: &'a Filters) -> Result<Vec<Self>, Fault> {
        let columns = filters.pairs().iter().filter(|(key, _)| !NOT_COLUMNS.contains(&key.as_str()));
        columns.map(|(key, wanted)| Self::of(filters, key, wanted)).collect()
    }

    fn of(filters: &Filters, key: &'a str, wanted: &'a str) -> Result<Self, Fault> {
        let time = |column: fn(Compare, i64) -> Self| -> Result<Self, Fault> {
            let (operator, at) = Compare::of(key, wanted)?;
            Ok(column(operator, at))
        };
        Ok(match key {
            "id" => Self::Id(AnyOf::of(key, wanted)?),
            "name" => Self::Name(AnyOf::of(key, wanted)?),
            "status" => Self::Status(AnyOf::of(key, wanted)?),
            "disk_format" => Self::DiskFormat(AnyOf::of(key, wanted)?),
            "container_format" => Self::ContainerFormat(AnyOf::of(key, wanted)?),
            "owner" => Self::Owner(wanted),
            "checksum" => Self::Checksum(wanted),
            "os_hash_value" => Self::Hash(wanted),
            "tag" => Self::Tag(wanted.trim()),
            "protected" => Self::Protected(flag(filters, key)?),
            "min_disk" => Self::MinDisk(number(key, wanted)?),
            "min_ram" => Self::MinRam(number(key, wanted)?),
            "size_min" => Self::SizeMin(number(key, wanted)?),
            "size_max" => Self::SizeMax(number(key, wanted)?),
            "created_at" => time(Self::Created)?,
            "updated_at" => time(Self::Updated)?,
            property => Self::Property(property, wanted),
        })
    }

    fn matches(&self, image: &Image) -> bool {
        // Clients know whole seconds only.
        match self {
            Self::Id(any) => any.has(&image.id),
            Self::Name(any) => image.name.as_deref().is_some_and(|name| any.has(name)),
            Self::Status(any) => any.has(status(image.status)),
            Self::DiskFormat(any) => image.disk_format.as_deref().is_some_and(|format| any.has(format)),
            Self::ContainerFormat(any) => {
                image.container_format.as_deref().is_some_and(|format| any.has(format))
            }
            Self::Owner(wanted) => image.owner.as_deref() == Some(wanted),
            Self::Checksum(wanted) => image.checksum.as_deref() == Some(wanted),
            Self::Hash(wanted) => image.sha512.as_deref() == Some(wanted),
            Self::Tag(wanted) => image.tags.iter().any(|tag| tag == wanted),
            Self::Protected(wanted) => image.protected == *wanted,
            Self::MinDisk(wanted) => u64::from(image.min_disk_gib) == *wanted,
            Self::MinRam(wanted) => u64::from(image.min_ram_mib) == *wanted,
            Self::SizeMin(wanted) => image.size_bytes.unwrap_or(0) >= *wanted,
            Self::SizeMax(wanted) => image.size_bytes.unwrap_or(0) <= *wanted,
            Self::Created(operator, at) => operator.holds(image.created_at.as_second(), *at),
            Self::Updated(operator, at) => operator.holds(image.updated_at.as_second(), *at),
            Self::Property(name, wanted) => image.properties.get(*name).is_some_and(|value| value == wanted),
        }
    }
}

/// One value, or `in:a,b` for any of several; a value with a comma stands in double quotes.
struct AnyOf<'a>(Vec<&'a str>);

impl<'a> AnyOf<'a> {
    fn of(key: &str, wanted: &'a str) -> Result<Self, Fault> {
        let Some(list) = wanted.strip_prefix("in:") else { return Ok(Self(vec![wanted])) };
        let bad = || Fault::malformed(format!("Invalid filter value {list} of {key}: quotes do not match"));
        let mut values = Vec::new();
        let mut rest = list;
        loop {
            let value;
            if let Some(quoted) = rest.strip_prefix('"') {
                let (inside, after) = quoted.split_once('"').ok_or_else(bad)?;
                value = inside;
                rest = after;
                if !(rest.is_empty() || rest.starts_with(',')) {
                    return Err(bad());
                }
            } else {
                let end = rest.find(',').unwrap_or(rest.len());
                value = &rest[..end];
                rest = &rest[end..];
                if value.contains('"') {
                    return Err(bad());
                }
            }
            values.push(value);
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None => return Ok(Self(values)),
            }
        }
    }

    fn has(&self, value: &str) -> bool {
        self.0.contains(&value)
    }
}

fn number(key: &str, wanted: &str) -> Result<u64, Fault> {
    wanted.parse().map_err(|_| Fault::malformed(format!("Invalid value of {key}: {wanted} is no number")))
}

/// How a time stands to another.
#[derive(Clone, Copy)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Compare {
    fn of(key: &str, wanted: &str) -> Result<(Self, i64), Fault> {
        let (operator, time) = match wanted.split_once(':') {
            Some(("eq", time)) => (Self::Equal, time),
            Some(("neq", time)) => (Self::NotEqual, time),
            Some(("lt", time)) => (Self::Less, time),
            Some(("lte", time)) => (Self::LessOrEqual, time),
            Some(("gt", time)) => (Self::Greater, time),
            Some(("gte", time)) => (Self::GreaterOrEqual, time),
            _ => (Self::Equal, wanted),
        };
        let zoned =
            if time.ends_with('Z') || time.contains('+') { time.to_owned() } else { format!("{time}Z") };
        let at: Timestamp =
            zoned.parse().map_err(|_| Fault::malformed(format!("{key} is not a time: {time}")))?;
        Ok((operator, at.as_second()))
    }

    fn holds(self, at: i64, wanted: i64) -> bool {
        match self {
            Self::Equal => at == wanted,
            Self::NotEqual => at != wanted,
            Self::Less => at < wanted,
            Self::LessOrEqual => at <= wanted,
            Self::Greater => at > wanted,
            Self::GreaterOrEqual => at >= wanted,
        }
    }
}

fn sort_value(image: &Image, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" => image.id.as_str().into(),
        "name" => image.name.as_deref().into(),
        "status" => status(image.status).into(),
        "disk_format" => image.disk_format.as_deref().into(),
        "container_format" => image.container_format.as_deref().into(),
        "size" => image.size_bytes.into(),
        "created_at" => image.created_at.into(),
        "updated_at" => image.updated_at.into(),
        _ => return None,
    })
}
