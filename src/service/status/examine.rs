//! The checks of `doctor` that only the daemon can make: its clock against the records, the database, certificates,
//! access of admins, the login, what probes need. The rules are in `model/checkup`.

use time::{Duration, OffsetDateTime};

use crate::config::AdminAccess;
use crate::model::authority::AuthorityRole;
use crate::model::check::{Check, Verdict};
use crate::model::checkup::{self, Admins, LoginFinding};
use crate::records::{AuthoritySlot, RecordsError};
use crate::service::core::policy::HostCertificate;
use crate::service::probes::RunnerState;
use crate::service::trust::certificates::CertificateState;
use crate::service::{ServiceError, Status};

/// A check must answer even if what it looks at hangs.
const CHECK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Early enough for a roll-over: hosts learn of a new authority only while they can still call.
const AUTHORITY_EXPIRY_WARNING: Duration = Duration::days(90);

impl Status {
    pub async fn examine(&self) -> Vec<Check> {
        let now = self.core.platform.now();
        let mut checks = vec![self.examine_clock(now).await];
        checks.extend(self.examine_store(now).await);
        for role in [AuthorityRole::Server, AuthorityRole::Client] {
            checks.extend(self.examine_authority(role, now));
        }
        checks.push(self.examine_host_trust().await);
        checks.push(checkup::admins(self.known_admins()));
        if self.core.settings.load().api_disabled {
            checks.push(Check::missing("kill switch", "it is on: no host is served", "codex-authd api enable"));
        }
        checks.push(checkup::login(&self.known_login().await, now));
        checks.push(checkup::backup(
            self.core.settings.load().verified_backup.as_ref().map(|it| (it.made_at, it.has_keys)),
            now,
        ));
        checks.extend(self.core.metrics.forwardings().map(|(last, counts)| checkup::forwarding(last, counts)));
        checks.extend(self.examine_probes().await);
        checks
    }

    /// Reads every row of an embedded store. It takes a while and a thread, so only one runs at a time.
    pub async fn verify_records(&self) -> Option<Check> {
        const NAME: &str = "checksums";
        let Ok(_one_at_a_time) = self.verifying.try_lock() else {
            return Some(Check::weak(
                NAME,
                "the rows of the records are being verified just now",
                "codex-authd doctor, a little later",
            ));
        };
        match self.core.records.verify().await {
            Ok(None) => None,
            Ok(Some(rows)) => {
                Some(Check::good(NAME, format!("the checksum of each of the {rows} rows of the records is right")))
            }
            // On a full disk the store cannot be read, but it is not damaged.
            Err(RecordsError::Unavailable(cause) | RecordsError::Failed(cause)) => Some(Check::weak(
                NAME,
                format!("the rows of the records could not be verified: {cause}"),
                "mend what the lines `records` and `disk` say, then run codex-authd doctor again",
            )),
            Err(error) => {
                let remedy = "stop the daemon and put a backup back (codex-authd restore DIR), or take out what can be read: \
                              codex-authd records export DIR";
                Some(Check::missing(NAME, error.to_string(), remedy))
            }
        }
    }

    async fn examine_clock(&self, now: OffsetDateTime) -> Check {
        let noted = tokio::time::timeout(CHECK_TIMEOUT, self.overview()).await;
        let noted = noted.ok().and_then(Result::ok).and_then(|overview| overview.noted_at);
        let stored = self.core.canonical().map(|canonical| canonical.summary.stored_at);
        checkup::clock_and_records(now, noted.max(stored), "the newest thing in the records")
    }

    async fn examine_store(&self, now: OffsetDateTime) -> Vec<Check> {
        const STORE: &str = "records";
        if let Some(failed) = self.core.health.store_failed() {
            let found = format!(
                "degraded since {}: they could not be written ({})",
                checkup::shown(failed.since),
                failed.failure.cause
            );
            let remedy = format!(
                "free space on the disk of {}, or make it writable; the daemon goes on by itself",
                failed.failure.place.display()
            );
            return vec![Check::missing(STORE, found, remedy)];
        }
        if let Some(still) = self.core.health.standstill() {
            let found = format!("they take no changes since {}: {}", checkup::shown(still.since), still.reason);
            return vec![Check::missing(
                STORE,
                found,
                "start the daemon on the store that was moved to, or codex-authd migrate --abort",
            )];
        }
        let asked = tokio::time::timeout(CHECK_TIMEOUT, self.core.records.server_health()).await;
        let health = match asked {
            Ok(Ok(health)) => health,
            failed => {
                let cause = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer in ten seconds".into(),
                };
                let since =
                    self.core.health.away().map(|away| format!("degraded since {}: ", checkup::shown(away.since)));
                let found = format!("{}the database is not available ({cause})", since.unwrap_or_default());
                return vec![Check::missing(
                    STORE,
                    found,
                    "start the database, or mend [database] and systemctl restart codex-authd",
                )];
            }
        };
        let Some(health) = health else {
            return vec![Check::good(STORE, "embedded, and in order")];
        };
        if let Some(away) = self.core.health.away() {
            let found = format!("degraded since {}: {}", checkup::shown(away.since), away.why);
            return vec![Check::missing(STORE, found, "make the database writable; the daemon goes on by itself")];
        }
        let found = format!(
            "database, {}, tables of migration {} (this version: {})",
            health.version, health.migration, health.newest
        );
        let store = if health.migration < health.newest {
            Check::missing(STORE, found, "systemctl restart codex-authd, which applies what is missing")
        } else if !health.is_encrypted && !health.is_local {
            Check::weak(STORE, format!("{found}, not encrypted"), "set database.tls = true")
        } else {
            Check::good(STORE, found)
        };
        vec![store, checkup::clock_and_other("database clock", now, health.now, "the database")]
    }

    fn examine_authority(&self, role: AuthorityRole, now: OffsetDateTime) -> Option<Check> {
        let authorities = self.core.authorities();
        let active = authorities.in_slot(role, AuthoritySlot::Active)?;
        let (name, what, remedy) = match role {
            AuthorityRole::Server => ("server authority", "hosts' authority", "codex-authd authorities prepare server"),
            AuthorityRole::Client => {
                ("client authority", "admins' authority", "codex-authd authorities prepare client")
            }
        };
        Some(checkup::ends(name, what, active.key.not_after(), now, AUTHORITY_EXPIRY_WARNING, remedy))
    }

    async fn examine_host_trust(&self) -> Check {
        const NAME: &str = "trust of hosts";
        const UPDATE: &str =
            "cdx --update && cdx --sync there; remove the hosts that are gone (codex-authd hosts remove NAME)";
        let found = match tokio::time::timeout(CHECK_TIMEOUT, self.hosts.hosts_by_trust()).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                return Check::weak(NAME, format!("hosts cannot be counted: {error}"), "look at the daemon's log");
            }
            Err(_) => {
                return Check::weak(NAME, "hosts could not be counted in ten seconds", "codex-authd doctor, later");
            }
        };
        let wanted = self.core.policy().host_certificate;
        match (found.cut_off(), found.held_back(wanted), wanted) {
            (cut_off, _, _) if !cut_off.is_empty() => {
                let (trusted, remedy) = if found.is_switched {
                    (
                        "our authority alone",
                        "show our certificate until each has run cdx --update (tls.switch = \"prepare\", listen.hosts_tls = \
                         true, systemctl restart codex-authd), or install them anew: codex-authd hosts add --rotate NAME",
                    )
                } else {
                    (
                        "the trust store of their machine alone",
                        "show the certificate that they knew until each has run cdx --update ([tls], or listen.hosts_tls = \
                         false behind the proxy), or install them anew: codex-authd hosts add --rotate NAME",
                    )
                };
                let found =
                    format!("{cut_off} trust {trusted}, and are shown another certificate: cdx ends with 76 there");
                Check::missing(NAME, found, remedy)
            }
            (_, Some(apart), _) => Check::weak(
                NAME,
                format!("{apart} do not trust tls.certificate yet: all hosts are shown our own until they do"),
                format!("{UPDATE}; or cut them off with tls.switch = \"now\""),
            ),
            (_, _, HostCertificate::Ours { prepares: true }) if !found.trust_ours_alone.is_empty() => {
                let found = format!("{} would be cut off by another certificate than ours", found.trust_ours_alone);
                Check::weak(NAME, found, UPDATE)
            }
            _ => Check::good(NAME, "each accepts the certificate that it is shown"),
        }
    }

    fn known_admins(&self) -> Admins {
        let access = self.people.people_policy().access;
        let admins = self.people.admins();
        let certificates = self.core.certificates.load();
        // A certificate that is tied to a user opens what that user may do.
        let opens = certificates
            .values()
            .filter(|one| self.trust.is_in_force(one) && one.user.is_none_or(|user| admins.contains(&user)));
        let (mut count, mut ending) = (0, 0);
        for certificate in opens {
            count += 1;
            ending += usize::from(self.trust.state_of(certificate) == CertificateState::Expiring);
        }
        Admins {
            certificate: access != AdminAccess::Login,
            login: access != AdminAccess::Mtls,
            certificates: count,
            ending,
            users: admins.len(),
        }
    }

    async fn known_login(&self) -> LoginFinding {
        let Some(canonical) = self.core.canonical() else { return LoginFinding::default() };
        let view = tokio::time::timeout(CHECK_TIMEOUT, self.probes.runner(0)).await.ok().and_then(Result::ok);
        let (probed, reason) = match view {
            Some(view) => match view.state {
                RunnerState::Known(state) => (
                    Some(state.as_str()),
                    view.latest.and_then(|probe| probe.outcome).and_then(|outcome| outcome.reason),
                ),
                _ => (None, None),
            },
            None => (None, None),
        };
        let access_ends = checkup::access_ends(&canonical.text);
        let restored = self.probes.restored_login().map(|restored| restored.backup_of);
        LoginFinding { version: Some(canonical.summary.version), access_ends, probed, reason, restored }
    }

    /// A failed check of the runner is only a warning here: hosts are served without probes, too.
    async fn examine_probes(&self) -> Vec<Check> {
        match self.probes.examine_runner().await {
            Ok(checks) => checks.into_iter().map(as_part_of_all).collect(),
            Err(ServiceError::RunnerOff) => vec![Check::good("runner", "switched off (runner.enabled)")],
            Err(error) => vec![Check::weak("runner", error.to_string(), "look at the daemon's log")],
        }
    }
}

fn as_part_of_all(check: Check) -> Check {
    let (verdict, found) = match check.verdict {
        Verdict::Missing => (Verdict::Weak, format!("{}; no probe can be made", check.found)),
        verdict => (verdict, check.found),
    };
    Check { name: format!("runner {}", check.name).into(), verdict, found, remedy: check.remedy }
}
