//! An image's data: streamed in and out, never whole in memory.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use control::service::image_data::IMAGE_BYTES_MAX;
use http_body_util::BodyExt;
use tokio_util::io::ReaderStream;

use super::done;
use crate::context::{AppState, Authenticated, Segments};
use crate::error::Fault;

/// How long a client may send nothing of an upload.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from the disk at once for a download.
const READ_BYTES: usize = 256 << 10;

/// Image API v2: upload binary image data.
pub(super) async fn upload(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Response, Fault> {
    let media_type = request.headers().get(header::CONTENT_TYPE);
    if media_type.is_some_and(|media_type| media_type != "application/octet-stream") {
        return Err(Fault::UnsupportedMediaType);
    }
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|length| length.parse().ok()).is_some_and(|length: u64| length > IMAGE_BYTES_MAX) {
        return Err(Error::TooLarge { what: "the image", limit_bytes: IMAGE_BYTES_MAX }.into());
    }
    // Dropped on every way out but the last, which takes back what came so far.
    let upload = state.control.image_upload(&caller, &id).await?;
    let mut body = request.into_body();
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await.map_err(|_| Fault::TimedOut)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Fault::malformed("the upload ended early"))?;
        if let Ok(bytes) = frame.into_data()
            && !upload.write(bytes).await
        {
            break;
        }
    }
    upload.finish().await?;
    Ok(done())
}

/// Image API v2: download binary image data. Without data there is no content.
pub(super) async fn download(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    let (stored, file) = state.control.image_data(&caller, &id).await?;
    let Some(file) = file else { return Ok(done()) };
    let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
    let mut response = (StatusCode::OK, Body::from_stream(stream)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(size_bytes) = stored.row.size_bytes {
        headers.insert(header::CONTENT_LENGTH, size_bytes.into());
    }
    let checksum = stored.row.checksum.as_deref().and_then(|md5| HeaderValue::from_str(md5).ok());
    if let Some(checksum) = checksum {
        headers.insert("content-md5", checksum);
    }
    Ok(response)
}
