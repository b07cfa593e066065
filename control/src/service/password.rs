//! Password hashes: argon2id, away from the threads that serve requests, and only so many at once that a flood of
//! logins neither takes the machine nor its memory.

use std::sync::LazyLock;

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The longest password in bytes (Keystone's `max_password_length`).
pub(crate) const PASSWORD_BYTES_MAX: usize = 4096;
/// How many logins may wait for their turn: some seconds' worth. More are told to come back.
const WAITING_MAX: usize = 128;

/// Checks and makes hashes with argon2's own defaults (19 MiB, two passes), which are what OWASP recommends.
#[derive(Debug)]
pub(crate) struct Passwords {
    running: Semaphore,
    waiting: Semaphore,
}

impl Passwords {
    /// Leaves at least every second core to other work.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { running: Semaphore::new((cores / 2).max(1)), waiting: Semaphore::new(WAITING_MAX) }
    }

    /// The hash of a password in PHC form.
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<String> {
        check_length(&password)?;
        self.run(move || {
            let hash = Argon2::default().hash_password(password.as_bytes());
            hash.map(|hash| hash.to_string())
                .map_err(|_| Error::Unavailable("the password cannot be hashed".to_owned()))
        })
        .await?
    }

    /// Whether the password is the one of `hash`. Without a hash (nobody by that name) the answer is no, and takes as
    /// long.
    pub(crate) async fn verify(&self, password: Zeroizing<String>, hash: Option<String>) -> Result<bool> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        self.run(move || match hash {
            Some(hash) => Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok(),
            None => {
                let _ = Argon2::default().verify_password(password.as_bytes(), NOBODY.as_str());
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let closed = "invariant: the semaphores are never closed";
        let _waiting = self
            .waiting
            .try_acquire()
            .map_err(|_| Error::Unavailable("too many logins at once".to_owned()))?;
        let _running = self.running.acquire().await.expect(closed);
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::Unavailable("the password could not be checked".to_owned()))
    }
}

/// What is compared with when there is nobody to compare with.
static NOBODY: LazyLock<String> = LazyLock::new(|| {
    let hash = Argon2::default().hash_password(b"nobody");
    hash.map(|hash| hash.to_string()).unwrap_or_default()
});

fn check_length(password: &str) -> Result<()> {
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        let message = format!("a password has between 1 and {PASSWORD_BYTES_MAX} bytes");
        return Err(Error::invalid("InvalidPassword", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_somebody_holds() {
        let passwords = Passwords::new();
        let password = |text: &str| Zeroizing::new(text.to_owned());
        let hash = passwords.hash(password("geheim")).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify(password("geheim"), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(password("Geheim"), Some(hash)).await.unwrap());
        assert!(!passwords.verify(password("nobody"), None).await.unwrap());
        assert!(passwords.hash(password("")).await.is_err());
    }
}
