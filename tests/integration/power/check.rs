//! Boots the daemon on a disk after a power cut and compares its state with the ledger.

use std::collections::{BTreeSet, HashMap};

use super::ledger::{Expectations, Expected, Fact, Facts};
use super::observe::{Observed, Observer};
use crate::support::daemon::Daemon;
use crate::support::people::control;
use crate::support::random::Random;

/// How many subjects have their keys and tokens tried: the ones changed last before the cut, and random others.
const NEWEST: usize = 16;
const OTHERS: usize = 12;

#[derive(Default, Debug)]
pub struct Findings {
    /// Acknowledged changes that are missing.
    pub lost: Vec<String>,
    /// Changes of which only a part is there.
    pub half_applied: Vec<String>,
    /// The daemon did not boot, or did not serve.
    pub refused: Vec<String>,
    pub panics: Vec<String>,
}

impl Findings {
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Notes the panics in the log. A panic inside sled is none if the daemon contained it and serves: hot state may be
    /// damaged, and is rebuilt.
    pub fn note_panics(&mut self, daemon: &Daemon) {
        let serves = self.refused.is_empty();
        let log = daemon.log();
        let panics = log.lines().filter(|line| line.contains(" panicked at "));
        self.panics.extend(panics.filter(|line| !(serves && line.contains("/sled-"))).map(str::to_owned));
    }

    pub fn all(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let lists = [
            ("lost", &self.lost),
            ("half applied", &self.half_applied),
            ("refused", &self.refused),
            ("panic", &self.panics),
        ];
        lists.into_iter().flat_map(|(name, list)| list.iter().map(move |finding| (name, finding)))
    }
}

/// Boots `daemon` and compares it with `expected`. The daemon keeps running unless its boot failed.
pub fn check(daemon: &mut Daemon, expected: &Expectations<'_>, random: &mut Random) -> Findings {
    let mut findings = Findings::default();
    match daemon.try_launch() {
        Err(refused) => findings.refused.push(with_last_words(&refused, daemon)),
        Ok(()) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if let Err(refused) = runtime.block_on(compare(daemon, expected, random, &mut findings)) {
                findings.refused.push(refused);
            }
        }
    }
    findings.note_panics(daemon);
    findings
}

/// The error with the last line of the daemon's log.
pub fn with_last_words(refused: &str, daemon: &Daemon) -> String {
    format!("{refused}: {}", daemon.log().lines().next_back().unwrap_or("it says nothing"))
}

/// Fails if the daemon refuses a call that a healthy daemon answers.
async fn compare(
    daemon: &Daemon,
    expected: &Expectations<'_>,
    random: &mut Random,
    findings: &mut Findings,
) -> Result<(), String> {
    let ca =
        std::fs::read_to_string(daemon.state_dir().join("pki/server-ca.crt")).map_err(|error| error.to_string())?;
    if expected.server_ca.is_some_and(|observed| observed != ca) {
        findings.lost.push("another CA than hosts were shown".into());
    }
    let observer = Observer { admin: control(daemon), hosts: daemon.client(), hosts_url: daemon.hosts_url("") };
    let observed = observer.observe(expected.audit_shown.map(|(_, hash)| hash)).await?;
    findings.half_applied.extend(observed.broken.iter().cloned());
    if expected.audit_shown.is_some_and(|(entries, _)| entries > observed.audit_entries) {
        findings.lost.push(format!(
            "{:?} entries of the audit log were shown, {} are there",
            expected.audit_shown, observed.audit_entries
        ));
    }
    compare_versions(expected, &observed, findings);

    observer.switch_off().await?;
    let mut seen: HashMap<Fact, String> = HashMap::new();
    for fact in chosen(expected, random) {
        seen.insert(fact.clone(), observer.try_fact(fact).await?);
    }
    for subject in &expected.expected {
        compare_subject(subject, &observed, &seen, findings);
    }
    let known: BTreeSet<&str> =
        expected.expected.iter().filter_map(|subject| subject.subject.strip_prefix("host ")).collect();
    for name in observed.names().filter(|name| !known.contains(name.as_str())) {
        findings.half_applied.push(format!("the host {name}, which was not registered"));
    }
    for (name, calls) in &observed.api_calls {
        let most = expected.retrieves.get(format!("host {name}").as_str()).copied().unwrap_or_default();
        if *calls > most {
            findings.half_applied.push(format!("{name}: {calls} calls are counted, and it made {most}"));
        }
    }
    observer.enrol("after-the-cut.test").await
}

fn compare_versions(expected: &Expectations<'_>, observed: &Observed, findings: &mut Findings) {
    let there: BTreeSet<&str> = observed.versions.iter().map(String::as_str).collect();
    if there.len() < observed.versions.len() {
        findings.half_applied.push("a version is stored twice".into());
    }
    for digest in expected.stored.difference(&there) {
        findings.lost.push(format!("the stored login {digest}"));
    }
    for digest in &there {
        if !expected.stored.contains(digest) && !expected.storing.contains(digest) {
            findings.half_applied.push(format!("the login {digest}, which was not stored"));
        }
    }
    if observed.canonical.as_ref() != observed.versions.first() {
        findings.half_applied.push(format!("{:?} is canonical, and not the newest", observed.canonical));
    }
}

/// The facts that are checked with one call each.
fn chosen<'a>(expected: &'a Expectations<'_>, random: &mut Random) -> BTreeSet<&'a Fact> {
    let mut subjects: Vec<&Expected<'_>> = expected.expected.iter().collect();
    subjects.sort_by_key(|subject| std::cmp::Reverse((subject.with_open.is_some(), subject.since)));
    let others = subjects.split_off(NEWEST.min(subjects.len()));
    subjects.extend((0..OTHERS.min(others.len())).map(|_| others[random.index(others.len())]));
    let facts = |subject: &'a Expected<'_>| {
        let open = subject.with_open.iter().flat_map(|(_, facts)| facts.keys());
        subject.acknowledged.keys().chain(open).filter(|fact| fact.is_tried())
    };
    expected
        .expected
        .iter()
        .filter(|subject| subjects.iter().any(|chosen| chosen.subject == subject.subject))
        .flat_map(facts)
        .collect()
}

fn compare_subject(subject: &Expected<'_>, observed: &Observed, seen: &HashMap<Fact, String>, findings: &mut Findings) {
    let value = |fact: &Fact| if fact.is_tried() { seen.get(fact).cloned() } else { Some(observed.fact(fact)) };
    // (fact, observed value, expected value)
    let differences = |facts: &Facts| -> Vec<(Fact, String, String)> {
        let differ = facts.iter().filter_map(|(fact, wanted)| {
            let seen = value(fact).filter(|seen| seen != wanted)?;
            Some((fact.clone(), seen, wanted.clone()))
        });
        differ.collect()
    };
    let from_acknowledged = differences(&subject.acknowledged);
    if from_acknowledged.is_empty() {
        return;
    }
    let Some((open, with_open)) = &subject.with_open else {
        // The change without its audit entry, or the audit entry without its change.
        let entries = from_acknowledged.iter().filter(|(fact, ..)| matches!(fact, Fact::Audit(..))).count();
        let is_half = entries == 0 || entries == from_acknowledged.len();
        let list = if is_half { &mut findings.half_applied } else { &mut findings.lost };
        return list.push(format!("{}: {}", subject.subject, described(&from_acknowledged)));
    };
    let from_open = differences(with_open);
    if from_open.is_empty() {
        return;
    }
    let is_mixed = from_acknowledged.iter().all(|(fact, seen, _)| with_open.get(fact).is_none_or(|open| open == seen));
    let list = if is_mixed { &mut findings.half_applied } else { &mut findings.lost };
    list.push(format!(
        "{} with {:?} under way: {}; with that done: {}",
        subject.subject,
        open.action,
        described(&from_acknowledged),
        described(&from_open)
    ));
}

fn described(differences: &[(Fact, String, String)]) -> String {
    let each = differences.iter().map(|(fact, seen, wanted)| format!("{fact:?} is {seen}, not {wanted}"));
    each.collect::<Vec<_>>().join(", ")
}
