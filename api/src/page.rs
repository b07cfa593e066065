//! Lists in pages: limit, marker and sorting over rows of any kind, and the links to the next page in each
//! service's style. Bounded: no answer is longer than [`LIMIT_MAX`] rows.

use std::cmp::Ordering;

use schemars::JsonSchema;
use serde::Serialize;

use crate::context::{Filters, RequestUrl};
use crate::error::Fault;

/// The most rows of one answer: Nova's `max_limit`.
pub const LIMIT_MAX: usize = 1000;
/// The most sort keys of one request; no resource has more columns worth sorting by.
pub const SORT_KEYS_MAX: usize = 10;

/// Which way to sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// A column's value for sorting; absent sorts first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SortValue {
    /// Nothing.
    Absent,
    /// A yes or no.
    Flag(bool),
    /// A number.
    Number(i128),
    /// Text by code point.
    Text(String),
}

impl From<&str> for SortValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<bool> for SortValue {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
impl From<u64> for SortValue {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}
impl From<jiff::Timestamp> for SortValue {
    fn from(time: jiff::Timestamp) -> Self {
        Self::Number(time.as_nanosecond())
    }
}
impl<T: Into<SortValue>> From<Option<T>> for SortValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

/// What a request asks of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; `None` if the request did not say.
    pub limit: Option<usize>,
    /// The id of the last row of the page before.
    pub marker: Option<String>,
    /// Columns in order of weight.
    pub sort: Vec<(String, Direction)>,
    /// The page before the marker instead of the one after it (Neutron's `page_reverse`).
    pub reverse: bool,
}

/// One page of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// The marker of the next page, if there is one.
    pub next: Option<String>,
    /// The marker of the page before, if there is one.
    pub previous: Option<String>,
    /// The request said a limit.
    pub limited: bool,
}

impl Page {
    /// Reads `limit`, `marker`, `sort_key` + `sort_dir`, `sort=key:dir,…` and `page_reverse`. Without sort keys the
    /// rows come in the order of `default_sort`.
    pub fn of(filters: &Filters, default_sort: &[(&str, Direction)]) -> Result<Self, Fault> {
        let limit = match filters.get("limit") {
            None | Some("") => None,
            Some(text) => Some(text.parse::<u32>().map_err(|_| {
                Fault::malformed(format!("Invalid input for limit: '{text}' is not a non-negative integer"))
            })? as usize),
        };
        let mut sort = sort_of(filters)?;
        if sort.is_empty() {
            sort = default_sort.iter().map(|(key, direction)| ((*key).to_owned(), *direction)).collect();
        }
        Ok(Self {
            limit,
            marker: filters.get("marker").filter(|marker| !marker.is_empty()).map(str::to_owned),
            sort,
            // Neutron knows one word for yes here, and no wrong ones.
            reverse: filters.get("page_reverse").is_some_and(|text| text.eq_ignore_ascii_case("true")),
        })
    }

    /// Sorts and cuts. `id` names a row, `value` its columns: `None` is a column that nothing can be sorted by. A
    /// marker that is no row of the list answers 400; ties are broken by id.
    pub fn cut<T>(
        &self,
        rows: Vec<T>,
        id: impl Fn(&T) -> &str,
        value: impl Fn(&T, &str) -> Option<SortValue>,
    ) -> Result<Slice<T>, Fault> {
        if let Some(first) = rows.first()
            && let Some((key, _)) = self.sort.iter().find(|(key, _)| value(first, key).is_none())
        {
            return Err(Fault::malformed(format!("Invalid sort key: {key}")));
        }
        let keys = |row: &T| -> Vec<_> { self.sort.iter().map(|(key, _)| value(row, key)).collect() };
        // Each row's keys once, and only the page itself sorted: a page of many rows costs little more than one of few.
        let mut rows: Vec<_> = rows.into_iter().map(|row| (keys(&row), row)).collect();
        let order = |a: &(Vec<_>, T), b: &(Vec<_>, T)| self.order((&a.0, id(&a.1)), (&b.0, id(&b.1)));
        if let Some(marker) = &self.marker {
            let found = rows.iter().position(|(_, row)| id(row) == marker);
            let at = found.ok_or_else(|| Fault::malformed(format!("marker [{marker}] not found")))?;
            let last = rows.swap_remove(at);
            rows.retain(|row| order(row, &last) == Ordering::Greater);
        }
        // Glance and Nova take 0 as "nothing", Neutron as "no limit".
        let limit = self.limit.unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
        let more = rows.len() > limit;
        if more {
            rows.select_nth_unstable_by(limit, order);
            rows.truncate(limit);
        }
        rows.sort_unstable_by(order);
        let mut rows: Vec<T> = rows.into_iter().map(|(_, row)| row).collect();
        if self.reverse {
            rows.reverse();
        }
        let (first, last) =
            (rows.first().map(|row| id(row).to_owned()), rows.last().map(|row| id(row).to_owned()));
        let (next, previous) = if self.reverse {
            (self.marker.is_some().then_some(last).flatten(), more.then_some(first).flatten())
        } else {
            (more.then_some(last).flatten(), self.marker.is_some().then_some(first).flatten())
        };
        Ok(Slice { rows, next, previous, limited: self.limit.is_some() })
    }

    /// Which of two rows comes first: by their keys, then by their ids.
    fn order<K: Ord>(&self, a: (&[K], &str), b: (&[K], &str)) -> Ordering {
        let by_keys =
            self.sort.iter().zip(a.0.iter().zip(b.0)).map(|((_, direction), (a, b))| match direction {
                Direction::Ascending => a.cmp(b),
                Direction::Descending => b.cmp(a),
            });
        let order = by_keys.fold(Ordering::Equal, Ordering::then).then_with(|| a.1.cmp(b.1));
        if self.reverse { order.reverse() } else { order }
    }
}

fn sort_of(filters: &Filters) -> Result<Vec<(String, Direction)>, Fault> {
    let direction = |text: &str| match text {
        "asc" | "" => Ok(Direction::Ascending),
        "desc" => Ok(Direction::Descending),
        other => Err(Fault::malformed(format!("Invalid sort direction: {other}; it is asc or desc"))),
    };
    let mut sort = Vec::new();
    if let Some(list) = filters.get("sort") {
        for entry in list.split(',').filter(|entry| !entry.is_empty()) {
            let (key, dir) = entry.split_once(':').unwrap_or((entry, ""));
            sort.push((key.to_owned(), direction(dir)?));
        }
    }
    let mut directions = filters.all("sort_dir");
    let mut last = "";
    for key in filters.all("sort_key") {
        last = directions.next().unwrap_or(last);
        sort.push((key.to_owned(), direction(last)?));
    }
    if sort.len() > SORT_KEYS_MAX {
        return Err(Fault::malformed(format!("at most {SORT_KEYS_MAX} sort keys are allowed")));
    }
    Ok(sort)
}

impl<T> Slice<T> {
    /// The rows of Neutron's list, and links to the next and the previous page if the request said a limit or not all rows
    /// fit in one answer.
    pub fn with_neutron_links<U>(
        self,
        url: &RequestUrl,
        show: impl FnMut(T) -> U,
    ) -> (Vec<U>, Vec<NeutronLink>) {
        let mut links = Vec::new();
        if self.limited || self.next.is_some() {
            if let Some(next) = &self.next {
                links.push(NeutronLink { rel: "next", href: url.with_marker(next) });
            }
            if let Some(previous) = &self.previous {
                let href = format!("{}&page_reverse=True", url.with_marker(previous));
                links.push(NeutronLink { rel: "previous", href });
            }
        }
        (self.rows.into_iter().map(show).collect(), links)
    }

    /// The rows of Nova's or Cinder's list, and the link to the next page.
    pub fn with_links<U>(self, url: &RequestUrl, show: impl FnMut(T) -> U) -> (Vec<U>, Option<NextLink>) {
        let next =
            self.next.as_deref().map(|next| NextLink([Next { rel: "next", href: url.with_marker(next) }]));
        (self.rows.into_iter().map(show).collect(), next)
    }

    /// The rows and links of Keystone's list.
    pub fn keystone<U>(self, url: &RequestUrl, show: impl FnMut(T) -> U) -> (Vec<U>, KeystoneLinks) {
        let next = self.next.as_deref().map(|marker| url.with_marker(marker));
        (self.rows.into_iter().map(show).collect(), KeystoneLinks { next, ..KeystoneLinks::whole(url) })
    }
}

/// The link to a next page in the form of Nova and Cinder.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NextLink([Next; 1]);

#[derive(Debug, Serialize, JsonSchema)]
struct Next {
    rel: &'static str,
    href: String,
}

/// A link to another page in the form of Neutron.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NeutronLink {
    rel: &'static str,
    href: String,
}

/// The links of a list of Keystone's: its own URL, and the next page's.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeystoneLinks {
    #[serde(rename = "self")]
    own: String,
    next: Option<String>,
    previous: Option<String>,
}

impl KeystoneLinks {
    /// Those of a list without pages.
    pub fn whole(url: &RequestUrl) -> Self {
        Self::at(url.itself())
    }

    /// Those of a list at this URL.
    pub fn at(own: String) -> Self {
        Self { own, next: None, previous: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Page {
        let filters = Filters::of(&format!("/x?{query}").parse().unwrap()).unwrap();
        Page::of(&filters, &[("id", Direction::Ascending)]).unwrap()
    }

    fn cut(query: &str, rows: &[&str]) -> Result<Slice<String>, Fault> {
        let rows = rows.iter().map(|row| (*row).to_owned()).collect();
        page(query).cut(rows, |row| row, |row, key| (key == "id").then(|| SortValue::from(row.as_str())))
    }

    #[test]
    fn pages_follow_each_other_and_end_empty() {
        let first = cut("limit=2", &["c", "a", "b"]).unwrap();
        assert_eq!((first.rows, first.next), (vec!["a".into(), "b".into()], Some("b".into())));
        let second = cut("limit=2&marker=b", &["c", "a", "b"]).unwrap();
        assert_eq!((second.rows, second.next), (vec!["c".into()], None));
        assert!(cut("limit=2&marker=c", &["c", "a", "b"]).unwrap().rows.is_empty());
    }

    #[test]
    fn reverse_gives_the_page_before() {
        let slice = cut("limit=1&marker=c&page_reverse=True", &["c", "a", "b"]).unwrap();
        assert_eq!((slice.rows, slice.previous), (vec!["b".into()], Some("b".into())));
    }

    #[test]
    fn unknown_marker_key_and_direction_are_refused() {
        assert!(cut("marker=zz", &["a"]).is_err());
        assert!(cut("sort_key=nope", &["a"]).is_err());
        let filters = Filters::of(&"/x?sort=id:up".parse().unwrap()).unwrap();
        assert!(Page::of(&filters, &[]).is_err());
        assert_eq!(cut("sort=id:desc", &["a", "b"]).unwrap().rows, ["b", "a"]);
    }

    #[test]
    fn pages_by_several_keys_join_to_the_sorted_whole() {
        let names: Vec<String> = (0..97_u32).map(|n| format!("{:03}", (n * 37) % 97)).collect();
        let column = |row: &String, key: &str| match key {
            "tens" => Some(SortValue::from(&row[..2])),
            _ => Some(SortValue::from(row.as_str())),
        };
        let all = page("sort=tens:desc,id:asc").cut(names.clone(), |row| row, column).unwrap().rows;
        assert!(all.is_sorted_by(|a, b| (&b[..2], a) < (&a[..2], b)));
        let (mut joined, mut marker) = (Vec::new(), String::new());
        loop {
            let query = format!("limit=10&sort=tens:desc,id:asc{marker}");
            let slice = page(&query).cut(names.clone(), |row| row, column).unwrap();
            joined.extend(slice.rows);
            let Some(next) = slice.next else { break };
            marker = format!("&marker={next}");
        }
        assert_eq!(joined, all);
    }

    #[test]
    fn no_answer_is_longer_than_the_bound() {
        let names: Vec<String> = (0..LIMIT_MAX + 5).map(|n| format!("{n:05}")).collect();
        let rows: Vec<&str> = names.iter().map(String::as_str).collect();
        let slice = cut("limit=4000000", &rows).unwrap();
        assert_eq!(slice.rows.len(), LIMIT_MAX);
        assert!(slice.next.is_some());
    }
}
