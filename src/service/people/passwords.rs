//! Passwords: which are accepted, and how they are hashed and checked.
//!
//! Hashes are Argon2id with the parameters of OWASP's Password Storage Cheat Sheet. A hash with weaker parameters is
//! replaced at the next sign-in. A check takes as long for an unknown user as for a wrong password. A hash takes 19 MiB
//! and some 20 ms of processor time, so few are computed at once and few may wait.
//!
//! The queue is for all work of that kind: judging the strength of a password, sealing under a passphrase, writing a
//! PKCS#12. That work never runs on a thread of the async runtime. It keeps its place until it is done, even when the
//! caller hangs up. One address cannot take all places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argon2::password_hash::phc::PasswordHash as Phc;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::model::forwarded::share_of;
use crate::model::people::Email;
use crate::platform::{SecureRandom, random};
use crate::records::PasswordHash;
use crate::service::{Result, ServiceError};

/// NIST SP 800-63B, 3.1.1.2, asks for 8 characters if there is a second factor, and for more if not. Short passwords
/// are judged by how easily they are guessed.
const MIN_PASSWORD_CHARACTERS: usize = 8;
/// Longer passwords are refused before they are hashed.
const MAX_PASSWORD_BYTES: usize = 1024;
/// The guesses that a throttled online attack makes in years (zxcvbn's score 3 begins here).
const MIN_GUESSES: u64 = 100_000_000;
/// How many characters are judged, from the beginning. The time that zxcvbn takes grows much faster than the length
/// (1.6 s for 1024 bytes), and this many are enough to decide.
const JUDGED_CHARACTERS: usize = 100;

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Checked if there is no user or no hash. The hash of a password that nobody knows.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$0Up6k/20tRubrVKAyOnxlA$5lfCBxKz3sVAVl70MjI43pssmrqDGUSs3qsHaeI/3zo";

/// How many hashes are computed at once.
const MAX_CONCURRENT: usize = 2;
/// How many callers may wait for their turn.
const MAX_WAITING: usize = 64;
/// How many places, running or waiting, one address may have. An IPv6 address counts as its /64.
const MAX_WAITING_PER_ADDRESS: usize = 8;

pub struct Passwords {
    /// One permit for each caller that runs or waits.
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    shares: Arc<QueueShares>,
}

/// The places that each network has now. There are never more entries than places.
#[derive(Default)]
struct QueueShares(Mutex<HashMap<u128, usize>>);

impl QueueShares {
    fn lock(&self) -> MutexGuard<'_, HashMap<u128, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place of one network, given back when it is dropped.
struct Share {
    shares: Arc<QueueShares>,
    network: u128,
}

impl Share {
    /// `None`: the network has all the places that it may have.
    fn take(shares: &Arc<QueueShares>, network: u128) -> Option<Self> {
        let mut held = shares.lock();
        let places = held.entry(network).or_default();
        if *places >= MAX_WAITING_PER_ADDRESS {
            return None;
        }
        *places += 1;
        Some(Self { shares: Arc::clone(shares), network })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        if let Some(places) = held.get_mut(&self.network) {
            *places = places.saturating_sub(1);
            if *places == 0 {
                held.remove(&self.network);
            }
        }
    }
}

pub struct CheckedPassword {
    pub is_right: bool,
    /// The same password hashed with today's parameters, if the stored hash has weaker ones.
    pub rehashed: Option<PasswordHash>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_CONCURRENT + MAX_WAITING)),
            turns: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            shares: Arc::default(),
        }
    }
}

impl Passwords {
    /// The hash of a new password, if that is acceptable. `from`: as for [`Self::turn`].
    pub async fn hash(
        &self,
        password: &str,
        email: &Email,
        from: Option<IpAddr>,
        rng: &dyn SecureRandom,
    ) -> Result<PasswordHash> {
        let (password, email) = (Zeroizing::new(password.to_owned()), email.clone());
        let salt = random::<16>(rng);
        let work = move || {
            judge(&password, &email).map_err(|reason| ServiceError::invalid("password", reason))?;
            hash(&password, &salt)
        };
        self.turn(from).await?.spend(work).await
    }

    /// Waits for a turn. [`ServiceError::Busy`]: too many callers wait, or too many of this address. `from`: the
    /// address of the caller; `None`: on this machine, which has no limit of its own.
    pub async fn turn(&self, from: Option<IpAddr>) -> Result<Turn> {
        let share = match from {
            Some(from) => Some(Share::take(&self.shares, share_of(from)).ok_or(ServiceError::Busy)?),
            None => None,
        };
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ServiceError::Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(ServiceError::internal)?;
        Ok(Turn { _share: share, _place: place, _turn: turn })
    }
}

/// The right to do one piece of work that keeps a processor busy for long.
pub struct Turn {
    _share: Option<Share>,
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Turn {
    /// Checks a password. `known` is `None`: there is no such user, or they have no password. It takes as long then.
    pub async fn check(
        self,
        password: &str,
        known: Option<&PasswordHash>,
        rng: &dyn SecureRandom,
    ) -> Result<CheckedPassword> {
        if password.len() > MAX_PASSWORD_BYTES {
            // No password of this length was ever accepted.
            return Ok(CheckedPassword { is_right: false, rehashed: None });
        }
        let is_there = known.is_some();
        let kept = known.map_or(DECOY.to_owned(), |known| known.0.clone());
        let (password, salt) = (Zeroizing::new(password.to_owned()), random::<16>(rng));
        self.spend(move || {
            let phc =
                Phc::new(&kept).map_err(|error| ServiceError::internal(format!("a kept password hash: {error}")))?;
            let is_right = Argon2::default().verify_password(password.as_bytes(), &phc).is_ok() && is_there;
            let rehashed = if is_right && is_weaker(&phc) { Some(hash(&password, &salt)?) } else { None };
            Ok(CheckedPassword { is_right, rehashed })
        })
        .await
    }

    /// Does the work outside the async runtime. The turn goes with the work and comes back with the outcome. So a
    /// caller that hangs up makes no room while the work still runs, and the next caller waits until the outcome is
    /// known.
    pub async fn spend<T: Send + 'static>(self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (outcome, _turn) =
            tokio::task::spawn_blocking(move || (work(), self)).await.map_err(ServiceError::internal)?;
        outcome
    }
}

/// Why this may not be a password.
fn judge(password: &str, email: &Email) -> std::result::Result<(), String> {
    let parts: Vec<&str> = email.as_str().split(['@', '.', '-', '_', '+']).filter(|part| part.len() > 2).collect();
    let of_theirs: Vec<&str> = std::iter::once(email.as_str()).chain(parts).collect();
    weigh(password, &of_theirs)
}

/// Why this may not be a passphrase, which belongs to no user.
pub fn judge_passphrase(passphrase: &str) -> std::result::Result<(), String> {
    weigh(passphrase, &["backup"])
}

/// Why this may not protect a file with a private key. `name`: the owner's, which is easily guessed.
pub fn judge_file_password(password: &str, name: &str) -> std::result::Result<(), String> {
    weigh(password, &[name])
}

fn weigh(password: &str, known: &[&str]) -> std::result::Result<(), String> {
    if password.chars().count() < MIN_PASSWORD_CHARACTERS {
        return Err(format!("must have {MIN_PASSWORD_CHARACTERS} characters or more"));
    }
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(format!("must have {MAX_PASSWORD_BYTES} bytes at most"));
    }
    let known: Vec<&str> = ["codex", "codex-authd", "authd"].into_iter().chain(known.iter().copied()).collect();
    if zxcvbn::zxcvbn(judged(password), &known).guesses() < MIN_GUESSES {
        return Err(
            "is too easily guessed: it is a common one, or made of common ones, of a pattern or of the e-mail \
                    address; four words that do not belong together are good"
                .into(),
        );
    }
    Ok(())
}

/// The part of a password whose strength is judged.
fn judged(password: &str) -> &str {
    password.char_indices().nth(JUDGED_CHARACTERS).map_or(password, |(end, _)| &password[..end])
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

/// Whether a stored hash costs less work per guess than a hash with today's parameters.
fn is_weaker(phc: &Phc) -> bool {
    let cost = |name: &str| phc.params.get_decimal(name).unwrap_or(0);
    phc.algorithm.as_str() != "argon2id" || cost("m") < MEMORY_KIB || cost("t") < PASSES
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::model::digest::Digest;
    use crate::platform::System;
    use crate::records::Records;
    use crate::seal::MasterKey;
    use crate::service::trust::certificates::CertificateOptions;
    use crate::service::{Adapters, Areas, Initiator, clock_tests, transfer};

    fn is_pending<T>(waiting: &mut Pin<Box<impl Future<Output = T>>>) -> bool {
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Polls once: a call that waits is not refused.
    fn is_busy(turn: impl Future<Output = Result<Turn>>) -> bool {
        matches!(
            Box::pin(turn).as_mut().poll(&mut Context::from_waker(Waker::noop())),
            Poll::Ready(Err(ServiceError::Busy))
        )
    }

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
        let kept = passwords.hash("correct horse battery staple", &email(), None, &System).await.unwrap();
        assert!(kept.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", kept.0);
        assert_eq!(format!("{kept:?}"), "***");
        let check = async |password: &str, known| {
            passwords.turn(None).await.unwrap().check(password, known, &System).await.unwrap()
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
        let wrong = passwords.turn(None).await.unwrap().check("wrong", Some(&kept), &System).await.unwrap();
        assert!(!wrong.is_right && wrong.rehashed.is_none());
        let right = passwords
            .turn(None)
            .await
            .unwrap()
            .check("correct horse battery staple", Some(&kept), &System)
            .await
            .unwrap();
        let rehashed = right.rehashed.unwrap();
        assert!(rehashed.0.contains("m=19456,t=2"));
        assert!(
            passwords
                .turn(None)
                .await
                .unwrap()
                .check("correct horse battery staple", Some(&rehashed), &System)
                .await
                .unwrap()
                .is_right
        );
    }

    #[test]
    fn only_the_first_hundred_characters_are_judged() {
        assert_eq!(judged("short"), "short");
        let long: String = "é".repeat(500);
        assert_eq!(judged(&long).chars().count(), JUDGED_CHARACTERS);
        // Later characters do not count: a common beginning stays common.
        let padded = format!("{}{}", "a".repeat(JUDGED_CHARACTERS), "correct horse battery staple k8#vQ2!pLz");
        assert!(judge(&padded, &email()).is_err());
        assert_eq!(judge(&"Zürich–Käse–Löffel 9 ".repeat(30), &email()), Ok(()));
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let passwords = Passwords::default();
        let (greedy, other) = (Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([192, 0, 2, 2])));
        // Both turns are taken, so that the rest waits.
        let turns = [passwords.turn(None).await.unwrap(), passwords.turn(None).await.unwrap()];
        let mut waiting: Vec<_> = (0..MAX_WAITING_PER_ADDRESS).map(|_| Box::pin(passwords.turn(greedy))).collect();
        for one in &mut waiting {
            assert!(is_pending(one));
        }
        assert!(is_busy(passwords.turn(greedy)));
        // A v4-mapped address is the same one.
        let mapped = Some("::ffff:192.0.2.1".parse().unwrap());
        assert!(is_busy(passwords.turn(mapped)));
        let mut others = Box::pin(passwords.turn(other));
        assert!(is_pending(&mut others), "there is a place for another address");
        // A caller that hangs up gives its share back.
        drop(waiting);
        drop(turns);
        assert!(others.await.is_ok());
        assert!(passwords.turn(greedy).await.is_ok());
        assert!(passwords.shares.lock().is_empty(), "addresses without a place are forgotten");
    }

    /// A daemon without a configuration file, for which no migration or restore is made.
    struct NoStores;

    #[async_trait::async_trait]
    impl transfer::Stores for NoStores {
        fn present(&self) -> String {
            unreachable!()
        }

        async fn open(&self, _: &transfer::Target) -> Result<transfer::Opened> {
            unreachable!()
        }

        async fn open_beside(&self) -> Result<Option<Arc<dyn Records>>> {
            unreachable!()
        }

        async fn promote(&self, _: Option<&MasterKey>) -> Result<()> {
            unreachable!()
        }

        fn spool(&self) -> std::path::PathBuf {
            unreachable!()
        }

        fn configuration(&self) -> Result<Option<Zeroizing<String>>> {
            Ok(None)
        }

        fn master_key_is_a_credential(&self) -> bool {
            false
        }
    }

    /// Packing a PKCS#12 and sealing a backup's keys take a processor as long as a password does.
    #[tokio::test]
    async fn what_a_password_protects_waits_in_the_same_queue() {
        let (areas, _clock, _directory) = clock_tests::areas().await;
        let adapters = Adapters { stores: Some(Arc::new(NoStores)), ..Adapters::default() };
        let areas = Areas::on(areas.core, adapters);
        let (passwords, by) = (&areas.people.passwords, Initiator::daemon());
        let mut waiting = Vec::new();
        for _ in 0..1000 {
            let mut turn = Box::pin(passwords.turn(None));
            match turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Err(ServiceError::Busy)) => break,
                Poll::Ready(Err(error)) => panic!("{error}"),
                // A turn that came at once keeps its place, too.
                Poll::Ready(Ok(turn)) => waiting.push((Some(turn), None)),
                Poll::Pending => waiting.push((None, Some(turn))),
            }
        }
        assert!(is_busy(passwords.turn(None)), "all places are taken");
        let options = CertificateOptions::default();
        let issued = areas.trust.issue_certificate("ops", options, &by).await;
        assert!(matches!(issued, Err(ServiceError::Busy)), "{:?}", issued.map(drop));
        assert!(areas.trust.certificates().await.unwrap().is_empty(), "nothing was issued");
        let passphrase = Zeroizing::new("correct horse battery staple".to_owned());
        let digest = Digest::of(b"manifest");
        let sealed = areas.transfer.seal_backup_keys(&by, passphrase, digest).await;
        assert!(matches!(sealed, Err(ServiceError::Busy)), "{:?}", sealed.map(drop));
    }

    #[tokio::test]
    async fn addresses_of_one_network_share_their_places() {
        let passwords = Passwords::default();
        let mut turns = Vec::new();
        for host in 0..MAX_WAITING_PER_ADDRESS {
            let from = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::try_from(host).unwrap()]);
            turns.push(Share::take(&passwords.shares, share_of(from)).unwrap());
        }
        let from = Some("2001:db8::ffff:0:1".parse().unwrap());
        assert!(is_busy(passwords.turn(from)));
        assert!(passwords.turn(Some("2001:db8:0:1::1".parse().unwrap())).await.is_ok());
    }

    /// The work cannot be stopped, so a caller that hangs up must not make room for more of it.
    #[tokio::test]
    async fn work_keeps_its_place_after_its_caller_hung_up() {
        let passwords = Passwords::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let turn = passwords.turn(Some(IpAddr::from([192, 0, 2, 1]))).await.unwrap();
        let mut work = Box::pin(turn.spend(move || {
            let _ = wait.recv();
            Ok(())
        }));
        assert!(is_pending(&mut work));
        drop(work);
        assert_eq!(passwords.turns.available_permits(), MAX_CONCURRENT - 1);
        assert_eq!(passwords.shares.lock().len(), 1);
        drop(go);
        // This ends when the work does.
        let both = Arc::clone(&passwords.turns).acquire_many_owned(u32::try_from(MAX_CONCURRENT).unwrap()).await;
        assert!(both.is_ok());
    }
}
