//! Where a command puts what it makes.

use std::path::Path;

use anyhow::bail;

/// Refuses to put `what` where something is that is no regular file: a device or a socket would be gone, and a pipe or a disk
/// gets no whole file.
///
/// # Errors
/// There is.
pub(super) fn check(path: &Path, what: &str) -> anyhow::Result<()> {
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        bail!("{} is no regular file: {what} would be there in its place", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(path("fifo"), path("link")).unwrap();
        for there in ["socket", "fifo", "link", "."] {
            let refused = check(&path(there), "an image").unwrap_err().to_string();
            assert!(refused.contains("is no regular file: an image would"), "{refused}");
        }
        std::fs::write(path("file"), "").unwrap();
        for there in ["file", "nothing"] {
            check(&path(there), "an image").unwrap();
        }
    }
}
