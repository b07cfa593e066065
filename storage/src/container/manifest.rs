//! The documents of an archive: which image it has for this machine, its layers, and what it runs (OCI image
//! specification 1.1: image layout, index, manifest, configuration; Docker image specification 1.2: `manifest.json`).
//!
//! Only the members that matter are read. The crate `oci-spec` has types for all, and crates of macros for their builders.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::Archive;
use super::{ContainerError, Run};
use crate::hexadecimal::hexadecimal;

/// Layers of an image: Docker allows 127.
const LAYERS_MAX: usize = 512;
/// How deep an index may lie within others: builders nest once.
const INDEX_DEPTH_MAX: usize = 4;
/// Manifests and indexes that are looked at: an image for every platform that there is has some forty.
const MANIFESTS_MAX: usize = 256;
/// Characters of what other platforms an archive is for.
const PLATFORMS_CHARS_MAX: usize = 200;

/// An image of an archive.
#[derive(Debug)]
pub(super) struct Image {
    /// The digest of its configuration, which is its name.
    pub(super) digest: String,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    /// What it runs.
    pub(super) run: Run,
}

/// A layer of an image.
#[derive(Debug)]
pub(super) struct Layer {
    /// The name of the part that it is.
    pub(super) part: String,
    /// SHA-256 of the part, where a manifest says it.
    pub(super) digest: Option<String>,
    /// SHA-256 of the layer, unpacked.
    pub(super) unpacked_digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Finds the image for this machine.
pub(super) fn find(archive: &Archive<'_>) -> Result<Image, ContainerError> {
    let image = if archive.has("oci-layout") {
        let layout: Layout = parse(&archive.document("oci-layout")?, "oci-layout", "OCI image layout")?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(unusable("oci-layout", "its version is not 1"));
        }
        of_layout(archive)?
    } else if archive.has("manifest.json") {
        of_saved(archive)?
    } else {
        return Err(ContainerError::NoImage("oci-layout and no manifest.json"));
    };
    for layer in &image.layers {
        archive.open(&layer.part)?;
    }
    Ok(image)
}

/// The image of an OCI image layout.
fn of_layout(archive: &Archive<'_>) -> Result<Image, ContainerError> {
    let index: Index = parse(&archive.document("index.json")?, "index.json", "OCI image index")?;
    let mut pending: Vec<(Descriptor, usize)> =
        index.manifests.into_iter().map(|descriptor| (descriptor, 1)).collect();
    let (mut seen, mut images, mut others) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    while let Some((descriptor, depth)) = pending.pop() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if seen.len() > MANIFESTS_MAX {
            return Err(ContainerError::TooMany { what: "manifests", most: MANIFESTS_MAX as u64 });
        }
        if let Some(platform) = &descriptor.platform
            && !fits(&platform.os, &platform.architecture)
        {
            others.insert(format!("{}/{}", platform.os, platform.architecture));
            continue;
        }
        match descriptor.media_type.as_str() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                if depth >= INDEX_DEPTH_MAX {
                    let most = INDEX_DEPTH_MAX as u64;
                    return Err(ContainerError::TooMany { what: "indexes within each other", most });
                }
                let part = part_of(&descriptor.digest)?;
                let index: Index = parse(&blob(archive, &descriptor)?, &part, "OCI image index")?;
                pending.extend(index.manifests.into_iter().map(|descriptor| (descriptor, depth + 1)));
            }
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => {
                match of_manifest(archive, &descriptor) {
                    Ok(image) => images.push(image),
                    Err(ContainerError::Platform(other)) => drop(others.insert(other)),
                    Err(error) => return Err(error),
                }
            }
            // Signatures and whatever else is attached.
            _ => {}
        }
    }
    let Some(image) = images.pop() else {
        let others: Vec<_> = others.into_iter().collect();
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        return Err(ContainerError::Platform(others.chars().take(PLATFORMS_CHARS_MAX).collect()));
    };
    // The same image may have several names.
    if images.iter().any(|other| other.digest != image.digest) {
        return Err(unusable("index.json", "it has several images; save one alone"));
    }
    Ok(image)
}

fn of_manifest(archive: &Archive<'_>, descriptor: &Descriptor) -> Result<Image, ContainerError> {
    let part = part_of(&descriptor.digest)?;
    let manifest: Manifest = parse(&blob(archive, descriptor)?, &part, "OCI image manifest")?;
    let configuration = blob(archive, &manifest.config)?;
    let layers = manifest.layers.iter().map(|layer| {
        let part = part_of(&layer.digest)?;
        if archive.open(&part)?.length() != layer.size {
            return Err(ContainerError::Damaged { part, mark: "length" });
        }
        Ok((part, Some(layer.digest.clone())))
    });
    let layers = layers.take(LAYERS_MAX + 1).collect::<Result<Vec<_>, _>>()?;
    image(manifest.config.digest, &configuration, layers)
}

/// The image of what `docker save` wrote before it wrote image layouts.
fn of_saved(archive: &Archive<'_>) -> Result<Image, ContainerError> {
    let part = "manifest.json";
    let mut saved: Vec<Saved> = parse(&archive.document(part)?, part, "list of images")?;
    let Some(only) = saved.pop() else { return Err(unusable(part, "it has no image")) };
    if !saved.is_empty() {
        return Err(unusable(part, "it has several images; save one alone"));
    }
    let configuration = archive.document(&only.config)?;
    let digest = format!("sha256:{}", sha256(&configuration));
    // Its name is its digest, with or without an ending.
    let name = only.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if is_hexadecimal(name) && !digest.ends_with(name) {
        return Err(ContainerError::Damaged { part: only.config, mark: "digest" });
    }
    let layers = only.layers.into_iter().take(LAYERS_MAX + 1).map(|part| (part, None)).collect();
    image(digest, &configuration, layers)
}

fn image(
    digest: String,
    configuration: &[u8],
    parts: Vec<(String, Option<String>)>,
) -> Result<Image, ContainerError> {
    let part = digest.clone();
    let configuration: Configuration = parse(configuration, &part, "image configuration")?;
    if !fits(&configuration.os, &configuration.architecture) {
        return Err(ContainerError::Platform(format!("{}/{}", configuration.os, configuration.architecture)));
    }
    if parts.len() > LAYERS_MAX {
        return Err(ContainerError::TooMany { what: "layers", most: LAYERS_MAX as u64 });
    }
    let unpacked = configuration.rootfs.diff_ids;
    if unpacked.len() != parts.len() {
        return Err(unusable(&part, "it does not have a digest for each layer"));
    }
    for digest in &unpacked {
        part_of(digest)?;
    }
    let execution = configuration.config.unwrap_or_default();
    let mut arguments = execution.entrypoint.unwrap_or_default();
    arguments.extend(execution.cmd.unwrap_or_default());
    if arguments.first().is_none_or(String::is_empty) {
        return Err(unusable(
            &part,
            "it has neither an entrypoint nor a command, so there is nothing to run",
        ));
    }
    let run = Run {
        arguments,
        environment: execution.env.unwrap_or_default(),
        directory: execution.working_dir.unwrap_or_default(),
        user: execution.user.unwrap_or_default(),
        stop_signal: execution.stop_signal.unwrap_or_default(),
    };
    if super::run::texts(&run).any(|text| text.contains('\0')) {
        return Err(unusable(&part, "it has a zero byte in what is to be run"));
    }
    let layers = parts.into_iter().zip(unpacked).map(|((part, digest), unpacked_digest)| Layer {
        part,
        digest,
        unpacked_digest,
    });
    Ok(Image { digest, layers: layers.collect(), run })
}

/// Whether an image for this platform runs here; what says nothing of it may.
fn fits(os: &str, architecture: &str) -> bool {
    matches!(os, "" | "linux") && matches!(architecture, "" | "amd64")
}

/// A document that a descriptor names, checked against it.
fn blob(archive: &Archive<'_>, descriptor: &Descriptor) -> Result<Vec<u8>, ContainerError> {
    let part = part_of(&descriptor.digest)?;
    let bytes = archive.document(&part)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(ContainerError::Damaged { part, mark: "length" });
    }
    if format!("sha256:{}", sha256(&bytes)) != descriptor.digest {
        return Err(ContainerError::Damaged { part, mark: "digest" });
    }
    Ok(bytes)
}

/// The name of the part with this digest.
fn part_of(digest: &str) -> Result<String, ContainerError> {
    let shown = || digest.chars().take(80).collect::<String>();
    match digest.strip_prefix("sha256:") {
        Some(hexadecimal) if is_hexadecimal(hexadecimal) => Ok(format!("blobs/sha256/{hexadecimal}")),
        _ => Err(ContainerError::Unusable { part: shown(), why: "it is no SHA-256 digest" }),
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

fn parse<T: DeserializeOwned>(bytes: &[u8], part: &str, what: &'static str) -> Result<T, ContainerError> {
    serde_json::from_slice(bytes).map_err(|source| ContainerError::Document {
        part: part.to_owned(),
        what,
        source,
    })
}

fn unusable(part: &str, why: &'static str) -> ContainerError {
    ContainerError::Unusable { part: part.to_owned(), why }
}
