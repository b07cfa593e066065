//! Password hashes: argon2id, away from the threads that serve requests, and only so many at once that a flood of
//! logins neither takes the machine nor its memory. Hashes of bcrypt, which other clouds made, are understood too.
//!
//! Every failure costs the same: an argon2id of ours and as much bcrypt as the dearest hash that was imported, whoever is
//! there or not, and of whichever kind their own hash is.
//!
//! What was verified once is remembered: not the password, but a code of it and its hash under a key that this process
//! made and nobody else has. The next login with it costs microseconds; any other password costs what it always does.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The longest password in bytes (Keystone's `max_password_length`).
pub(crate) const PASSWORD_BYTES_MAX: usize = 4096;
/// How many logins may wait for their turn: some seconds' worth. More are told to come back.
const WAITING_MAX: usize = 128;
/// How many verified passwords are remembered: half a mebibyte of codes; the oldest goes first.
const REMEMBERED_MAX: usize = 8192;
/// bcrypt looks at so many bytes; Keystone cut passwords there.
const BCRYPT_BYTES_MAX: usize = 72;
/// The dearest hash of bcrypt that is looked at, as its exponent: some seconds of one core. Other clouds have 12.
const BCRYPT_COST_MAX: u32 = 15;

type Code = [u8; 32];

/// Checks and makes hashes with argon2's own defaults (19 MiB, two passes), which are what OWASP recommends.
#[derive(Debug)]
pub(crate) struct Passwords {
    running: Semaphore,
    waiting: Semaphore,
    key: hmac::Key,
    remembered: Mutex<Remembered>,
    /// The exponent of the dearest hash of bcrypt that anybody has; 0 while nobody has one.
    bcrypt_cost: AtomicU32,
}

#[derive(Debug, Default)]
struct Remembered {
    codes: HashSet<Code>,
    order: VecDeque<Code>,
}

impl Passwords {
    /// Leaves at least every second core to other work.
    ///
    /// # Errors
    /// `Unavailable` if the system has no randomness.
    pub(crate) fn new() -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Error::Unavailable("no random bytes".to_owned()))?;
        Ok(Self {
            running: Semaphore::new((cores / 2).max(1)),
            waiting: Semaphore::new(WAITING_MAX),
            key,
            remembered: Mutex::default(),
            bcrypt_cost: AtomicU32::new(0),
        })
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

    /// Takes note of a hash that somebody has, so that failures cost as much as one with it.
    pub(crate) fn has(&self, hash: &str) {
        if let Some(cost) = bcrypt_cost(hash) {
            self.bcrypt_cost.fetch_max(cost, Ordering::Relaxed);
        }
    }

    /// Whether the password is the one of `hash`. Without a hash (nobody by that name, or who may not log in) the answer
    /// is no, and takes as long.
    pub(crate) async fn verify(&self, password: Zeroizing<String>, hash: Option<String>) -> Result<bool> {
        let code = hash.as_ref().filter(|_| password.len() <= PASSWORD_BYTES_MAX).map(|hash| {
            let mut context = hmac::Context::with_key(&self.key);
            context.update(&(hash.len() as u64).to_be_bytes());
            context.update(hash.as_bytes());
            context.update(password.as_bytes());
            let mut code = Code::default();
            code.copy_from_slice(context.sign().as_ref());
            code
        });
        // Who could make a code that is looked up here would have the key: the time a look-up takes tells nothing.
        if let Some(code) = &code
            && self.lock().codes.contains(code)
        {
            return Ok(true);
        }
        hash.as_deref().inspect(|hash| self.has(hash));
        let dearest = self.bcrypt_cost.load(Ordering::Relaxed);
        let holds = self.run(move || is_of(&password, hash.as_deref(), dearest)).await?;
        if let (true, Some(code)) = (holds, code) {
            self.remember(code);
        }
        Ok(holds)
    }

    fn remember(&self, code: Code) {
        let mut remembered = self.lock();
        if remembered.codes.insert(code) {
            remembered.order.push_back(code);
        }
        if remembered.order.len() > REMEMBERED_MAX
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.codes.remove(&oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().expect("invariant: no holder of the codes panics")
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

/// The exponent of a hash of bcrypt's cost (`$2b$12$…`), if it is one that is looked at.
fn bcrypt_cost(hash: &str) -> Option<u32> {
    let cost = hash.strip_prefix("$2")?.split('$').nth(1)?.parse().ok()?;
    (cost <= BCRYPT_COST_MAX).then_some(cost)
}

/// The exponents of the bcrypts that a failure still owes, so that with what it had it comes to the dearest one: 2^from
/// and the powers of two from there on are 2^dearest.
fn owed(had: Option<u32>, dearest: u32) -> impl Iterator<Item = u32> {
    let whole = (had.is_none() && dearest > 0).then_some(dearest);
    whole.into_iter().chain(had.map_or(0..0, |from| from..dearest))
}

fn is_of(password: &str, hash: Option<&str>, dearest: u32) -> bool {
    let cut = &password.as_bytes()[..password.len().min(BCRYPT_BYTES_MAX)];
    let short = password.len() <= PASSWORD_BYTES_MAX;
    let argon2 = |hash: &str| Argon2::default().verify_password(password.as_bytes(), hash).is_ok();
    let had = hash.and_then(bcrypt_cost);
    let holds = match (hash, had) {
        (Some(hash), Some(_)) => bcrypt::verify(cut, hash).unwrap_or(false) && short,
        (Some(hash), None) if short => argon2(hash),
        _ => {
            argon2(NOBODY.as_str());
            false
        }
    };
    if !holds {
        // What the other kind of hash would have cost: nothing tells whose hash was imported.
        if had.is_some() {
            argon2(NOBODY.as_str());
        }
        for cost in owed(had, dearest) {
            let _ = bcrypt::hash_with_salt(cut, cost, [0; 16]);
        }
    }
    holds
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

    fn password(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn only_the_right_password_of_somebody_holds() {
        let passwords = Passwords::new().unwrap();
        let hash = passwords.hash(password("geheim")).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify(password("geheim"), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(password("Geheim"), Some(hash)).await.unwrap());
        assert!(!passwords.verify(password("nobody"), None).await.unwrap());
        assert!(passwords.hash(password("")).await.is_err());
        assert!(!passwords.verify(password(&"x".repeat(PASSWORD_BYTES_MAX + 1)), None).await.unwrap());
    }

    #[tokio::test]
    async fn verified_password_is_remembered_for_its_own_hash_alone() {
        let passwords = Passwords::new().unwrap();
        let hash = passwords.hash(password("geheim")).await.unwrap();
        let other = passwords.hash(password("other")).await.unwrap();
        assert!(passwords.verify(password("geheim"), Some(hash.clone())).await.unwrap());
        assert_eq!(passwords.lock().codes.len(), 1);
        let started = std::time::Instant::now();
        assert!(passwords.verify(password("geheim"), Some(hash.clone())).await.unwrap());
        assert!(started.elapsed() < std::time::Duration::from_millis(5));
        assert!(!passwords.verify(password("geheim"), Some(other)).await.unwrap());
        assert!(!passwords.verify(password("wrong"), Some(hash)).await.unwrap());
        assert_eq!(passwords.lock().codes.len(), 1);
        for number in 0..=REMEMBERED_MAX {
            let mut code = Code::default();
            code[..8].copy_from_slice(&number.to_be_bytes());
            passwords.remember(code);
        }
        assert_eq!(passwords.lock().codes.len(), REMEMBERED_MAX);
    }

    #[tokio::test]
    async fn bcrypt_hash_of_another_cloud_holds() {
        let passwords = Passwords::new().unwrap();
        // `bcrypt.hashpw(b"geheim", bcrypt.gensalt(4))` of Python's bcrypt makes such.
        let hash = bcrypt::hash_with_salt("geheim", 4, [7; 16]).unwrap().to_string();
        assert!(hash.starts_with("$2"));
        assert!(passwords.verify(password("geheim"), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(password("falsch"), Some(hash)).await.unwrap());
    }

    #[test]
    fn every_failure_owes_what_the_dearest_hash_costs() {
        for dearest in [0, 4, 12] {
            for had in [None, Some(4), Some(10), Some(12)] {
                let had = had.filter(|had| *had <= dearest);
                let paid: u64 = had.map_or(0, |cost| 1 << cost);
                let owed: u64 = owed(had, dearest).map(|cost| 1 << cost).sum();
                let whole = if dearest == 0 { 0 } else { 1 << dearest };
                assert_eq!(paid + owed, whole, "{had:?} of {dearest}");
            }
        }
        assert_eq!(bcrypt_cost("$2b$12$abc"), Some(12));
        assert_eq!(bcrypt_cost("$2b$31$abc"), None);
        assert_eq!(bcrypt_cost("$argon2id$v=19"), None);
    }

    #[tokio::test]
    async fn dearest_hash_is_known_from_whoever_has_it() {
        let passwords = Passwords::new().unwrap();
        passwords.has("$argon2id$v=19$m=1");
        assert_eq!(passwords.bcrypt_cost.load(Ordering::Relaxed), 0);
        let hash = bcrypt::hash_with_salt("geheim", 5, [7; 16]).unwrap().to_string();
        assert!(!passwords.verify(password("falsch"), Some(hash)).await.unwrap());
        passwords.has("$2b$04$abc");
        assert_eq!(passwords.bcrypt_cost.load(Ordering::Relaxed), 5);
    }
}
