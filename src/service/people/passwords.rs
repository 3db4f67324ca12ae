//! Passwords: which are taken, and how one is kept and checked.
//!
//! Kept as Argon2id under the parameters that OWASP's Password Storage Cheat Sheet names; whoever signs in with one that is
//! kept under weaker parameters has it hashed anew. Checking takes as long for a user who is not there as for a wrong
//! password. Hashing takes 19 MiB and a processor for some 20 ms, so few are hashed at once and few may wait.

use argon2::password_hash::phc::PasswordHash as Phc;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::model::people::Email;
use crate::outside::{Outside, random};
use crate::records::PasswordHash;
use crate::service::{Result, ServiceError};

/// NIST SP 800-63B, 3.1.1.2, asks for 8 where a password is not all there is, and for more where it is: what is short is
/// weighed by how easily it is guessed.
const SHORTEST: usize = 8;
/// What is longer is refused before it is hashed.
const LONGEST: usize = 1024;
/// As many guesses as an online attack, throttled, makes in years (zxcvbn's score 3 begins here).
const GUESSES: u64 = 100_000_000;

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Nobody's: what is checked where there is none. Of no password that anybody knows.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$0Up6k/20tRubrVKAyOnxlA$5lfCBxKz3sVAVl70MjI43pssmrqDGUSs3qsHaeI/3zo";

/// Hashed at once.
const AT_ONCE: usize = 2;
/// Waiting for their turn.
const WAITING: usize = 64;

pub struct Passwords {
    /// One for each that is hashed or waits for its turn.
    places: Semaphore,
    turns: Semaphore,
}

pub struct Checked {
    pub is_right: bool,
    /// The same password under today's parameters, where it is kept under others.
    pub rehashed: Option<PasswordHash>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_ONCE + WAITING), turns: Semaphore::new(AT_ONCE) }
    }
}

impl Passwords {
    /// The hash of a new password, if it may be one.
    pub async fn hash(&self, password: &str, email: &Email, outside: &dyn Outside) -> Result<PasswordHash> {
        if let Err(reason) = judge(password, email) {
            return Err(ServiceError::invalid("password", reason));
        }
        let (password, salt) = (Zeroizing::new(password.to_owned()), random::<16>(outside));
        self.turn().await?.spend(move || hash(&password, &salt)).await
    }

    /// Waits until something may be hashed. [`ServiceError::Busy`]: too many do.
    pub async fn turn(&self) -> Result<Turn<'_>> {
        let place = self.places.try_acquire().map_err(|_| ServiceError::Busy)?;
        let turn = self.turns.acquire().await.map_err(ServiceError::internal)?;
        Ok(Turn { _place: place, _turn: turn })
    }
}

/// One password may be hashed.
pub struct Turn<'a> {
    _place: SemaphorePermit<'a>,
    _turn: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// `None`: there is no such user, or they have none. It takes as long.
    pub async fn check(self, password: &str, known: Option<&PasswordHash>, outside: &dyn Outside) -> Result<Checked> {
        if password.len() > LONGEST {
            // None was ever taken that long, whoever it is.
            return Ok(Checked { is_right: false, rehashed: None });
        }
        let is_there = known.is_some();
        let kept = known.map_or(DECOY.to_owned(), |known| known.0.clone());
        let (password, salt) = (Zeroizing::new(password.to_owned()), random::<16>(outside));
        self.spend(move || {
            let phc =
                Phc::new(&kept).map_err(|error| ServiceError::internal(format!("a kept password hash: {error}")))?;
            let is_right = Argon2::default().verify_password(password.as_bytes(), &phc).is_ok() && is_there;
            let rehashed = if is_right && is_weaker(&phc) { Some(hash(&password, &salt)?) } else { None };
            Ok(Checked { is_right, rehashed })
        })
        .await
    }

    async fn spend<T: Send + 'static>(self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(ServiceError::internal)?
    }
}

/// Why it may not be a password.
fn judge(password: &str, email: &Email) -> std::result::Result<(), String> {
    let parts: Vec<&str> = email.as_str().split(['@', '.', '-', '_', '+']).filter(|part| part.len() > 2).collect();
    let of_theirs: Vec<&str> = std::iter::once(email.as_str()).chain(parts).collect();
    weigh(password, &of_theirs)
}

/// Why it may not be a passphrase, which is no one person's.
pub fn judge_passphrase(passphrase: &str) -> std::result::Result<(), String> {
    weigh(passphrase, &["backup"])
}

/// Why it may not protect a file with a private key. `name`, whose it is, is easily guessed.
pub fn judge_file_password(password: &str, name: &str) -> std::result::Result<(), String> {
    weigh(password, &[name])
}

fn weigh(password: &str, known: &[&str]) -> std::result::Result<(), String> {
    if password.chars().count() < SHORTEST {
        return Err(format!("must have {SHORTEST} characters or more"));
    }
    if password.len() > LONGEST {
        return Err(format!("must have {LONGEST} bytes at most"));
    }
    let known: Vec<&str> = ["codex", "codex-authd", "authd"].into_iter().chain(known.iter().copied()).collect();
    if zxcvbn::zxcvbn(password, &known).guesses() < GUESSES {
        return Err(
            "is too easily guessed: it is a common one, or made of common ones, of a pattern or of the e-mail \
                    address; four words that do not belong together are good"
                .into(),
        );
    }
    Ok(())
}

fn params() -> Result<Params> {
    Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|error| ServiceError::internal(format!("Argon2: {error}")))
}

fn hash(password: &str, salt: &[u8; 16]) -> Result<PasswordHash> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params()?);
    let phc: Phc = argon2
        .hash_password_with_salt(password.as_bytes(), salt)
        .map_err(|error| ServiceError::internal(format!("a password cannot be hashed: {error}")))?;
    Ok(PasswordHash(phc.to_string()))
}

/// Whether what is kept can be guessed with less work than what would be kept today.
fn is_weaker(phc: &Phc) -> bool {
    let cost = |name: &str| phc.params.get_decimal(name).unwrap_or(0);
    phc.algorithm.as_str() != "argon2id" || cost("m") < MEMORY_KIB || cost("t") < PASSES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::System;

    fn email() -> Email {
        "ada.lovelace@example.test".parse().unwrap()
    }

    #[test]
    fn what_is_common_short_or_their_own_name_is_no_password() {
        for bad in [
            "",
            "short",
            "password",
            "Password1!",
            "qwertyuiop",
            "iloveyou123",
            "11111111111",
            "lovelace1",
            "ada.lovelace@example.test",
            "codex-authd",
            "abcdefgh12345678",
        ] {
            assert!(judge(bad, &email()).is_err(), "{bad}");
        }
        assert!(judge(&"correct horse ".repeat(100), &email()).is_err(), "too long to be hashed");
        for good in ["correct horse battery staple", "k8#vQ2!pLz", "Zürich–Käse–Löffel 9"] {
            assert_eq!(judge(good, &email()), Ok(()), "{good}");
        }
    }

    #[tokio::test]
    async fn only_the_right_password_is_right_and_never_without_a_user() {
        let passwords = Passwords::default();
        let kept = passwords.hash("correct horse battery staple", &email(), &System).await.unwrap();
        assert!(kept.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", kept.0);
        assert_eq!(format!("{kept:?}"), "***");
        let check = async |password: &str, known| {
            passwords.turn().await.unwrap().check(password, known, &System).await.unwrap()
        };
        let checked = check("correct horse battery staple", Some(&kept)).await;
        assert!(checked.is_right && checked.rehashed.is_none());
        for wrong in ["Correct horse battery staple", "", "correct horse battery staple "] {
            assert!(!check(wrong, Some(&kept)).await.is_right, "{wrong}");
        }
        assert!(!check("correct horse battery staple", None).await.is_right);
    }

    #[test]
    fn who_is_not_there_costs_as_much_as_who_is() {
        let (decoy, kept) = (Phc::new(DECOY).unwrap(), hash("correct horse battery staple", &[7; 16]).unwrap());
        let kept = Phc::new(&kept.0).unwrap();
        assert_eq!(
            (decoy.algorithm, decoy.version, decoy.params.to_string()),
            (kept.algorithm, kept.version, kept.params.to_string())
        );
        assert_eq!(decoy.hash.unwrap().as_bytes().len(), kept.hash.unwrap().as_bytes().len());
    }

    #[tokio::test]
    async fn what_is_kept_under_weaker_parameters_is_hashed_anew_by_a_right_password_only() {
        let passwords = Passwords::default();
        let weaker = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8 * 1024, 1, 1, None).unwrap());
        let kept: Phc = weaker.hash_password_with_salt(b"correct horse battery staple", &[7; 16]).unwrap();
        let kept = PasswordHash(kept.to_string());
        let wrong = passwords.turn().await.unwrap().check("wrong", Some(&kept), &System).await.unwrap();
        assert!(!wrong.is_right && wrong.rehashed.is_none());
        let right =
            passwords.turn().await.unwrap().check("correct horse battery staple", Some(&kept), &System).await.unwrap();
        let rehashed = right.rehashed.unwrap();
        assert!(rehashed.0.contains("m=19456,t=2"));
        assert!(
            passwords
                .turn()
                .await
                .unwrap()
                .check("correct horse battery staple", Some(&rehashed), &System)
                .await
                .unwrap()
                .is_right
        );
    }
}
