//! An image's data: streamed in and out, never whole in memory.

use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::error::Error;
use control::service::image_data::{IMAGE_BYTES_MAX, UploadTo};
use http_body_util::BodyExt;

use crate::context::{AppState, Authenticated, Segments, broken_off};
use crate::error::Fault;
use crate::openapi::answer::{Answered, Answers, DONE, Done};

/// How long a client may send nothing of an upload.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Image API v2: upload binary image data.
pub(super) async fn upload(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Done, Fault> {
    let store = wished_store(request.headers())?.map(str::to_owned);
    take(&state, &caller, &id, request, UploadTo::Store(store)).await
}

/// Image API v2: upload binary image data to a staging area.
pub(super) async fn stage(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Done, Fault> {
    take(&state, &caller, &id, request, UploadTo::Staging).await
}

/// The store that a request wants data to be in.
pub(super) fn wished_store(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let value = headers.get("x-image-meta-store").map(|value| value.to_str());
    value.transpose().map_err(|_| Fault::malformed("x-image-meta-store is no store's name"))
}

async fn take(
    state: &AppState,
    caller: &Caller,
    id: &str,
    request: Request,
    to: UploadTo,
) -> Result<Done, Fault> {
    let media_type = request.headers().get(header::CONTENT_TYPE);
    if media_type.is_some_and(|media_type| media_type != "application/octet-stream") {
        return Err(Fault::UnsupportedMediaType);
    }
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|length| length.parse().ok()).is_some_and(|length: u64| length > IMAGE_BYTES_MAX) {
        return Err(Error::TooLarge { what: "the image", limit_bytes: IMAGE_BYTES_MAX }.into());
    }
    // Dropped on every way out but the last, which takes back what came so far.
    let mut upload = state.control.image_upload(caller, id, to).await?;
    let mut body = request.into_body();
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await.map_err(|_| Fault::TimedOut)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken_off(&error))?;
        if let Ok(bytes) = frame.into_data()
            && !upload.write(bytes).await
        {
            break;
        }
    }
    upload.finish().await?;
    Ok(DONE)
}

/// An image's data, or a part of it, or nothing.
pub(super) struct Data(Response);

impl IntoResponse for Data {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Answered for Data {
    fn describe(answers: &mut Answers) {
        answers.data(StatusCode::OK);
        answers.data(StatusCode::PARTIAL_CONTENT);
        answers.nothing(StatusCode::NO_CONTENT);
    }
}

/// Image API v2: download binary image data, or a range of it. Without data there is no content.
pub(super) async fn download(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<Data, Fault> {
    let stored = state.control.image_readable(&caller, &id).await?;
    let Some(size_bytes) = stored.row.size_bytes.filter(|_| stored.row.status.has_data()) else {
        return Ok(Data(DONE.into_response()));
    };
    let range = range_of(&headers, size_bytes)?;
    let wanted = range.clone().unwrap_or(0..size_bytes);
    let length = wanted.end - wanted.start;
    let data = state.control.image_data(&stored.row, wanted.clone()).await?;
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = (status, Body::from_stream(data)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if range.is_some() {
        let text = format!("bytes {}-{}/{size_bytes}", wanted.start, wanted.end.saturating_sub(1));
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    let checksum = stored.row.checksum.as_deref().and_then(|md5| HeaderValue::from_str(md5).ok());
    if let Some(checksum) = checksum {
        headers.insert("content-md5", checksum);
    }
    Ok(Data(response))
}

/// The bytes that a request asks for (RFC 9110 §14.2), if not all. As Glance does, one range is served, and a
/// `Content-Range` in the request is taken for one.
fn range_of(headers: &HeaderMap, size_bytes: u64) -> Result<Option<Range<u64>>, Fault> {
    let unsatisfiable = |what: &str| Fault::RangeNotSatisfiable(format!("Invalid {what} header."));
    if let Some(value) = headers.get(header::RANGE) {
        let bad = || unsatisfiable("Range");
        let text = value.to_str().map_err(|_| bad())?;
        if text.contains(',') {
            return Err(Fault::malformed(
                "Requests with multiple ranges are not supported. You may make multiple single-range requests.",
            ));
        }
        let (first, last) =
            text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')).ok_or_else(bad)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| bad());
        let (start, end) = if first.trim().is_empty() {
            let suffix = number(last)?;
            if suffix == 0 {
                return Err(bad());
            }
            (size_bytes.saturating_sub(suffix), size_bytes)
        } else {
            let last = if last.trim().is_empty() { u64::MAX } else { number(last)? };
            (number(first)?, last.saturating_add(1).min(size_bytes))
        };
        return if start < end { Ok(Some(start..end)) } else { Err(bad()) };
    }
    if let Some(value) = headers.get(header::CONTENT_RANGE) {
        let bad = || unsatisfiable("Content-Range");
        let text = value.to_str().map_err(|_| bad())?;
        let range = text.trim().strip_prefix("bytes ").and_then(|range| range.split_once('/'));
        let (first, last) = range.and_then(|(range, _)| range.split_once('-')).ok_or_else(bad)?;
        let start: u64 = first.trim().parse().map_err(|_| bad())?;
        let last: u64 = last.trim().parse().map_err(|_| bad())?;
        let end = last.saturating_add(1);
        return if start < end && end <= size_bytes { Ok(Some(start..end)) } else { Err(bad()) };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: header::HeaderName, value: &str) -> Result<Option<Range<u64>>, u16> {
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]);
        range_of(&headers, 10)
            .map_err(|fault| crate::error::status_of(crate::context::Service::Image, &fault).as_u16())
    }

    #[test]
    fn ranges_are_one_and_lie_within_the_image() {
        let asked = |value| range(header::RANGE, value);
        assert_eq!(asked("bytes=0-4"), Ok(Some(0..5)));
        assert_eq!(asked("bytes=4-"), Ok(Some(4..10)));
        assert_eq!(asked("bytes=-3"), Ok(Some(7..10)));
        assert_eq!(asked("bytes=-30"), Ok(Some(0..10)));
        assert_eq!(asked("bytes=8-99"), Ok(Some(8..10)));
        assert_eq!(asked("bytes=9-18446744073709551615"), Ok(Some(9..10)));
        for bad in ["bytes=10-", "bytes=5-4", "bytes=-0", "bytes=x-", "lines=0-1", "bytes=", "bytes=--1"] {
            assert_eq!(asked(bad), Err(416), "{bad}");
        }
        assert_eq!(asked("bytes=0-1,3-4"), Err(400));
        assert_eq!(range(header::CONTENT_RANGE, "bytes 1-3/*"), Ok(Some(1..4)));
        assert_eq!(range(header::CONTENT_RANGE, "bytes 1-30/*"), Err(416));
    }
}
