//! When probes are made and what follows from them, with a prober whose findings the test decides.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::hot::HotHost;
use crate::model::audit::AuditFilter;
use crate::model::auth_document::Allowed;
use crate::records::embedded::Embedded;
use crate::records::{CanonicalSource, Records, RestoredLogin, SettingsChange, Standstill};
use crate::service::admission::Purpose;
use crate::service::clock_tests::{TestClock, areas, node};
use crate::service::hosts::enrol::HostOptions;
use crate::service::login::sync::QueryVersions;
use crate::service::probe_queue::board::Board;
use crate::service::probes::*;
use crate::service::{Adapters, Areas};

/// Hands each probe to the test.
struct Stage {
    probes: mpsc::UnboundedSender<Played>,
    begun: AtomicUsize,
}

/// A probe whose events the test sends.
struct Played {
    login: String,
    told: mpsc::UnboundedSender<Told>,
}

struct Play(mpsc::UnboundedReceiver<Told>, Option<String>);

#[async_trait::async_trait]
impl Prober for Stage {
    async fn begin(&self, login: &str) -> std::result::Result<Box<dyn Probing>, Finding> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (told, tells) = mpsc::unbounded_channel();
        let _ = self.probes.send(Played { login: login.into(), told });
        Ok(Box::new(Play(tells, None)))
    }

    fn time(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn examine(&self) -> Vec<Check> {
        Vec::new()
    }
}

#[async_trait::async_trait]
impl Probing for Play {
    async fn next(&mut self) -> Told {
        if let Some(why) = self.1.take() {
            return Told::Found(Finding::Fails(why));
        }
        match self.0.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }

    fn end(&mut self, why: &str) {
        self.1 = Some(why.into());
    }
}

/// The part of a daemon that makes probes.
struct Node {
    areas: Areas,
    stage: Arc<Stage>,
    probes: mpsc::UnboundedReceiver<Played>,
    stop: watch::Sender<bool>,
    worker: JoinHandle<()>,
}

impl Node {
    fn of(areas: Areas) -> Self {
        let (sender, probes) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage { probes: sender, begun: AtomicUsize::new(0) });
        let areas = Areas::on(areas.core, Adapters { prober: Some(stage.clone()), ..Adapters::default() });
        let (stop, stopping) = watch::channel(false);
        let proving = areas.probes.clone();
        let worker = tokio::spawn(async move { proving.make_probes(stopping).await });
        Self { areas, stage, probes, stop, worker }
    }

    async fn next_probe(&mut self) -> Played {
        within(self.probes.recv()).await.unwrap()
    }

    /// The probe that an admin asks for.
    async fn asked_for(&mut self) -> Played {
        self.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
        self.next_probe().await
    }

    async fn answered(&self, ticket: u64) -> RunnerView {
        loop {
            let view = self.areas.probes.runner(10).await.unwrap();
            if view.answered >= ticket {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn state(&self, wanted: RunnerState) -> RunnerView {
        within(async {
            loop {
                let view = self.areas.probes.runner(10).await.unwrap();
                if view.state == wanted && view.underway.is_none() {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    fn begun(&self) -> usize {
        self.stage.begun.load(Ordering::SeqCst)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

const WORKS: RunnerState = RunnerState::Known(ProbeState::Ok);
const FAILS: RunnerState = RunnerState::Known(ProbeState::Fail);

fn token(account: &str, tag: &str) -> String {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
    let claims = json!({ "https://api.openai.com/auth": { "chatgpt_account_id": account }, "jti": tag });
    format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// As Codex writes it.
fn login_of(account: &str, tag: &str, at: OffsetDateTime) -> String {
    json!({
        "tokens": {
            "id_token": token(account, tag),
            "access_token": token(account, &format!("{tag}-access")),
            "refresh_token": format!("rt_{tag}_Zk3vQ9xT1mB7rLp0"),
        },
        "last_refresh": at.format(&Rfc3339).unwrap(),
    })
    .to_string()
}

fn login(tag: &str, at: OffsetDateTime) -> String {
    login_of("acc-1", tag, at)
}

async fn upload(node: &Node, login: &str) {
    node.areas.login.upload_text(login, Allowed::default(), false, &Initiator::daemon()).await.unwrap();
}

async fn a_host(node: &Node) -> Arc<HotHost> {
    let registered = node.areas.hosts.register("h1.test", HostOptions::default(), &Initiator::daemon()).await.unwrap();
    node.areas
        .admission
        .admit(&node.areas.admission.credential(registered.api_key.expose()), [127, 0, 0, 1].into(), Purpose::Service)
        .await
        .unwrap()
}

async fn call(node: &Node, host: &Arc<HotHost>, body: &Value) -> String {
    let from = [127, 0, 0, 1].into();
    let sync = node.areas.login.sync(host.clone(), from, &body.to_string(), QueryVersions::default()).await.unwrap();
    sync.outcome.as_str().to_owned()
}

async fn store(node: &Node, host: &Arc<HotHost>, login: &str) -> String {
    let auth: Value = serde_json::from_str(login).unwrap();
    call(node, host, &json!({ "command": "store", "auth": auth })).await
}

async fn a_node() -> (Node, Arc<TestClock>, tempfile::TempDir) {
    let (areas, clock, directory) = areas().await;
    (Node::of(areas), clock, directory)
}

fn now(clock: &TestClock) -> OffsetDateTime {
    use crate::platform::Clock as _;
    clock.now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_brings_is_proved_and_what_an_admin_uploads_is_not_unless_asked() {
    let (mut node, clock, _directory) = a_node().await;
    upload(&node, &login("one", now(&clock))).await;
    assert_eq!(node.areas.probes.runner(1).await.unwrap().state, RunnerState::Never);
    assert_eq!(node.begun(), 0);
    let host = a_host(&node).await;
    clock.step(1);
    assert_eq!(store(&node, &host, &login("two", now(&clock))).await, "updated", "no call waits for a probe");
    let probe = node.next_probe().await;
    assert!(probe.login.contains("rt_two_"), "the canonical login is proved");
    probe.told.send(Told::Found(Finding::Works)).unwrap();
    let view = node.state(WORKS).await;
    assert_eq!((view.probes[0].version, view.probes[0].trigger), (2, ProbeTrigger::Store));

    clock.step(1);
    upload(&node, &login("three", now(&clock))).await;
    assert_eq!(node.areas.probes.runner(1).await.unwrap().state, RunnerState::Never, "it was never probed");
    node.areas
        .login
        .upload_text(&login("four", now(&clock)), Allowed::default(), true, &Initiator::daemon())
        .await
        .unwrap();
    node.next_probe().await.told.send(Told::Found(Finding::Fails("no\nway".into()))).unwrap();
    let view = node.state(FAILS).await;
    assert_eq!(view.probes[0].trigger, ProbeTrigger::Upload);
    let noted = node.areas.audit.audit_log(&AuditFilter::default(), 1).await.unwrap();
    assert_eq!((noted[0].note.action.as_str(), noted[0].note.alarm), ("runner.probe", true));
    assert_eq!(noted[0].note.details["reason"], "no", "the audit log has the first line only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_call_of_a_day_has_the_login_proved_once() {
    let (mut node, clock, _directory) = a_node().await;
    upload(&node, &login("one", now(&clock))).await;
    let host = a_host(&node).await;
    let retrieve = json!({ "command": "retrieve", "digest": "a".repeat(64), "last_refresh": "2026-01-01T00:00:00Z" });
    for day in 1..=3 {
        for _ in 0..5 {
            call(&node, &host, &retrieve).await;
        }
        node.next_probe().await.told.send(Told::Found(Finding::Works)).unwrap();
        within(async {
            while node.areas.probes.runner(0).await.unwrap().summary.unwrap().validations == 0
                || node.areas.probes.runner(0).await.unwrap().underway.is_some()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(node.begun(), day);
        clock.step(24);
    }
    // The clock was set back to a day that had its probe already. The records know that.
    clock.step(-24);
    call(&node, &host, &retrieve).await;
    let ticket = node.areas.probes.queue.board().asked();
    within(node.answered(ticket)).await;
    assert_eq!(node.begun(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_codex_refreshed_is_canonical_at_once_even_if_the_probe_fails() {
    let (mut node, clock, _directory) = a_node().await;
    let first: Value = serde_json::from_str(&login("one", now(&clock))).unwrap();
    let mut first = first;
    first["auths"] = json!({
        "api.openai.com": { "token": first["tokens"]["access_token"] },
        "other.test": { "token": "another-token-of-somebody-else" },
    });
    upload(&node, &first.to_string()).await;
    let ticket = node.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
    let probe = node.next_probe().await;
    // The clock of the writer is behind. The new login must still replace the version that it was made from.
    let refreshed = login("two", now(&clock) - time::Duration::HOUR);
    probe.told.send(Told::Refreshed(Zeroizing::new(refreshed))).unwrap();
    within(async {
        while node.areas.core.canonical().unwrap().summary.version != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(node.areas.probes.runner(0).await.unwrap().underway.is_some(), "the probe goes on");
    let shared = node.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
    // A second refresh, from the refreshed login.
    clock.step(1);
    probe.told.send(Told::Refreshed(Zeroizing::new(login("three", now(&clock))))).unwrap();
    probe.told.send(Told::Found(Finding::Fails("no".into()))).unwrap();
    let view = within(node.answered(shared.max(ticket))).await;
    assert_eq!((view.state, view.latest.unwrap().outcome.unwrap().adopted), (FAILS, Some(3)));
    assert_eq!(node.begun(), 1, "a request made meanwhile shares the result");
    let canonical = node.areas.core.canonical().unwrap();
    assert_eq!(canonical.summary.source, CanonicalSource::Runner { of: 2 });
    assert!(canonical.text.contains("rt_three_"));
    let document: Value = serde_json::from_str(&canonical.text).unwrap();
    assert_eq!(document["auths"]["other.test"]["token"], "another-token-of-somebody-else");
    assert_eq!(document["auths"]["api.openai.com"]["token"], document["tokens"]["access_token"]);
    let history = node.areas.login.canonical_history(None, 10).await.unwrap().versions;
    assert_eq!(history[1].source, CanonicalSource::Runner { of: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_another_account_or_of_none_are_not_taken() {
    // They do not replace a login without an account either.
    for (present, account, outcome) in
        [("acc-1", "acc-2", "another account"), ("acc-1", "", "no account"), ("", "", "no account")]
    {
        let (mut node, clock, _directory) = a_node().await;
        upload(&node, &login_of(present, "one", now(&clock))).await;
        let probe = node.asked_for().await;
        clock.step(1);
        probe.told.send(Told::Refreshed(Zeroizing::new(login_of(account, "two", now(&clock))))).unwrap();
        probe.told.send(Told::Found(Finding::Works)).unwrap();
        let view = node.state(FAILS).await;
        let reason = view.latest.unwrap().outcome.unwrap().reason.unwrap();
        assert!(reason.contains(outcome) && reason.contains("sign in anew"), "{reason}");
        assert_eq!(node.areas.core.canonical().unwrap().summary.version, 1);
        let noted = node.areas.audit.audit_log(&AuditFilter::default(), 10).await.unwrap();
        let refused = noted.iter().find(|entry| entry.note.action == "auth.refresh").unwrap();
        assert!(refused.note.alarm && refused.note.outcome == outcome);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_login_of_a_host_stays_and_is_proved_itself() {
    let (mut node, clock, _directory) = a_node().await;
    upload(&node, &login("one", now(&clock))).await;
    let host = a_host(&node).await;
    let probe = node.asked_for().await;
    let written = now(&clock) + time::Duration::MINUTE;
    clock.step(1);
    assert_eq!(store(&node, &host, &login("host", now(&clock))).await, "updated");
    probe.told.send(Told::Refreshed(Zeroizing::new(login("two", written)))).unwrap();
    probe.told.send(Told::Found(Finding::Works)).unwrap();
    let second = node.next_probe().await;
    assert!(second.login.contains("rt_host_"));
    assert_eq!(node.areas.core.canonical().unwrap().summary.version, 2);
    second.told.send(Told::Found(Finding::Works)).unwrap();
    assert_eq!(node.state(WORKS).await.probes.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_one_probes_and_the_other_shares_what_it_finds() {
    let (areas, clock, directory) = areas().await;
    let records: Arc<dyn Records> = areas.core.records.clone();
    let mut one = Node::of(areas);
    upload(&one, &login("one", now(&clock))).await;
    let two = Node::of(node(&directory, "hot-2", records, clock.clone()).await);
    let probe = one.asked_for().await;
    let ticket = two.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
    // It has asked the records, and waits for the other node's probe.
    within(async {
        while two.areas.probes.queue.board().due().is_none_or(|due| due <= Instant::now()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    probe.told.send(Told::Found(Finding::Works)).unwrap();
    let view = within(two.answered(ticket)).await;
    assert_eq!((view.state, two.begun(), one.begun()), (WORKS, 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refreshed_login_waits_for_a_store_that_takes_no_changes() {
    let (mut node, clock, _directory) = a_node().await;
    upload(&node, &login("one", now(&clock))).await;
    let ticket = node.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
    let probe = node.next_probe().await;
    let still = Standstill { reason: "a test".into(), since: now(&clock) };
    let note = Initiator::daemon().note(now(&clock), "store.standstill");
    node.areas.core.records.standstill_set(Some(&still), &note).await.unwrap();
    clock.step(1);
    probe.told.send(Told::Refreshed(Zeroizing::new(login("two", now(&clock))))).unwrap();
    probe.told.send(Told::Found(Finding::Works)).unwrap();
    tokio::time::sleep(WRITE_RETRY_INTERVAL + WRITE_RETRY_INTERVAL / 2).await;
    assert_eq!(node.areas.core.canonical().unwrap().summary.version, 1);
    node.areas.core.records.standstill_set(None, &note).await.unwrap();
    assert_eq!(within(node.answered(ticket)).await.state, WORKS);
    assert_eq!(node.areas.core.canonical().unwrap().summary.version, 2, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refreshed_login_that_no_store_took_is_there_at_the_next_start() {
    let (areas, clock, directory) = areas().await;
    let records: Arc<dyn Records> = areas.core.records.clone();
    let mut first = Node::of(areas);
    upload(&first, &login("one", now(&clock))).await;
    let probe = first.asked_for().await;
    let still = Standstill { reason: "a test".into(), since: now(&clock) };
    let note = Initiator::daemon().note(now(&clock), "store.standstill");
    records.standstill_set(Some(&still), &note).await.unwrap();
    clock.step(1);
    probe.told.send(Told::Refreshed(Zeroizing::new(login("two", now(&clock))))).unwrap();
    within(async {
        while first.areas.core.hot.refreshed().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let kept = serde_json::to_string(&first.areas.core.hot.refreshed().unwrap().unwrap()).unwrap();
    assert!(!kept.contains("rt_two_"), "it is sealed");
    // As if the process were killed: the worker gets no stop.
    first.worker.abort();
    assert!(first.worker.await.unwrap_err().is_cancelled());
    drop(first.areas);
    records.standstill_set(None, &note).await.unwrap();
    let next = Node::of(node(&directory, "hot", records, clock.clone()).await);
    within(async {
        while next.areas.core.hot.refreshed().unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let canonical = next.areas.core.canonical().unwrap();
    assert_eq!((canonical.summary.version, &canonical.summary.source), (2, &CanonicalSource::Runner { of: 1 }));
    assert!(canonical.text.contains("rt_two_"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_tries_nothing_again_that_failed_before_it() {
    let (mut node, clock, _directory) = a_node().await;
    upload(&node, &login("one", now(&clock))).await;
    node.asked_for().await.told.send(Told::Found(Finding::Fails("no".into()))).unwrap();
    node.state(FAILS).await;
    node.worker.abort();
    clock.step(1);
    let board = || node.areas.probes.queue.board();
    *board() = Board::default();
    node.areas.probes.take_up_probes(false).await.unwrap();
    assert_eq!(board().due(), None, "its process would end in the middle of a probe");
    node.areas.probes.take_up_probes(true).await.unwrap();
    assert!(board().due().is_some_and(|due| due <= Instant::now()), "a daemon retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_during_a_stop_says_nothing_of_the_login() {
    let (areas, clock, _directory) = areas().await;
    let mut node = Node::of(areas);
    upload(&node, &login("one", now(&clock))).await;
    let probe = node.asked_for().await;
    node.stop.send_replace(true);
    probe.told.send(Told::Found(Finding::Fails("Codex was ended by signal SIGTERM".into()))).unwrap();
    within(node.worker).await.unwrap();
    let outcome = node.areas.probes.runner(1).await.unwrap().latest.unwrap().outcome.unwrap();
    assert_eq!((outcome.state, outcome.reason.as_deref()), (ProbeState::Unavailable, Some(STOPPED)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_the_probe_and_the_next_start_finishes_what_a_crash_left() {
    let (areas, clock, directory) = areas().await;
    let records: Arc<dyn Records> = areas.core.records.clone();
    let mut first = Node::of(areas);
    upload(&first, &login("one", now(&clock))).await;
    let _probe = first.asked_for().await;
    first.stop.send_replace(true);
    within(first.worker).await.unwrap();
    let view = first.areas.probes.runner(1).await.unwrap();
    let outcome = view.latest.unwrap().outcome.unwrap();
    assert_eq!((outcome.state, outcome.reason.as_deref()), (ProbeState::Unavailable, Some(STOPPED)));

    // A crash: the claim is there and nothing else.
    let id = Uuid::new_v4();
    let claim = ProbeClaim {
        id,
        node: first.areas.core.node(),
        version: 1,
        trigger: ProbeTrigger::Admin,
        at: now(&clock),
        until: now(&clock) + time::Duration::MINUTE,
    };
    assert_eq!(records.probe_claim(&claim, None).await.unwrap(), ClaimOutcome::Begun);
    drop(first.areas);
    let next = Node::of(node(&directory, "hot", records, clock.clone()).await);
    let view = within(async {
        // The state does not tell the two probes apart: the one that the stop cut short left the same state.
        loop {
            let view = next.areas.probes.runner(1).await.unwrap();
            if view.latest.as_ref().is_some_and(|probe| probe.id == id) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(view.state, RunnerState::Known(ProbeState::Unavailable));
    assert!(view.reason().unwrap().contains("the daemon ended before the probe did"));
    within(async {
        // It is tried again later.
        while next.areas.probes.queue.board().due().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Sets the mark in the records as a restore does.
async fn mark(records: &Arc<dyn Records>, version: u64, backup_of: OffsetDateTime) {
    let mark = SettingsChange::MarkRestored(RestoredLogin { version, backup_of });
    records.settings_change(&mark, &Initiator::daemon().note(backup_of, "test")).await.unwrap();
}

const UNTRIED: RunnerState = RunnerState::Known(ProbeState::Unavailable);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_of_a_backup_is_proved_only_for_who_says_that_it_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::new());
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let mut node = Node::of(node(&directory, "hot", records.clone(), clock.clone()).await);
    upload(&node, &login("one", now(&clock))).await;
    // A finding from before the backup says nothing about the time since.
    node.asked_for().await.told.send(Told::Found(Finding::Works)).unwrap();
    node.state(WORKS).await;
    clock.step(1);
    mark(&records, 1, now(&clock)).await;

    // This node does not know the mark yet, and asks the records before it begins.
    let ticket = node.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap();
    within(node.answered(ticket)).await;
    assert_eq!(node.begun(), 1);
    node.areas.core.catch_up().await.unwrap();
    assert_eq!(node.areas.probes.runner(1).await.unwrap().state, UNTRIED);
    let refused = node.areas.probes.ask_for_probe(&Initiator::daemon(), false).unwrap_err();
    assert!(matches!(refused, ServiceError::Conflict(_)) && refused.to_string().contains("--restored"), "{refused}");
    let host = a_host(&node).await;
    let retrieve = json!({ "command": "retrieve", "digest": "a".repeat(64), "last_refresh": "2026-01-01T00:00:00Z" });
    assert_eq!(call(&node, &host, &retrieve).await, "outdated", "hosts are served");
    node.areas
        .login
        .upload_text(&login("one", now(&clock) - time::Duration::HOUR), Allowed::default(), true, &Initiator::daemon())
        .await
        .unwrap();
    node.areas.probes.queue.want_probe(ProbeTrigger::Retry);
    let ticket = node.areas.probes.queue.board().asked();
    within(node.answered(ticket)).await;
    assert_eq!(node.begun(), 1, "no probe starts by itself");

    // After a failure the mark stays, and nothing is retried by itself.
    clock.go_on(time::Duration::MINUTE);
    node.areas.probes.ask_for_probe(&Initiator::daemon(), true).unwrap();
    node.next_probe().await.told.send(Told::Found(Finding::Fails("spent".into()))).unwrap();
    assert_eq!(node.state(FAILS).await.reason().as_deref(), Some("spent"));
    assert!(node.areas.probes.restored_login().is_some());
    assert!(node.areas.probes.ask_for_probe(&Initiator::daemon(), false).is_err());

    // After a success it is a login like any other.
    node.areas.probes.ask_for_probe(&Initiator::daemon(), true).unwrap();
    node.next_probe().await.told.send(Told::Found(Finding::Works)).unwrap();
    node.state(WORKS).await;
    assert_eq!(node.areas.probes.restored_login(), None);
    assert_eq!(records.settings_fetch().await.unwrap().restored_login, None);
    node.asked_for().await.told.send(Told::Found(Finding::Works)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_login_than_that_of_a_backup_is_proved_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::new());
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let mut node = Node::of(node(&directory, "hot", records.clone(), clock.clone()).await);
    upload(&node, &login("one", now(&clock))).await;
    mark(&records, 1, now(&clock)).await;
    node.areas.core.catch_up().await.unwrap();
    assert!(node.areas.probes.restored_login().is_some());
    let host = a_host(&node).await;
    clock.step(1);
    assert_eq!(store(&node, &host, &login("two", now(&clock))).await, "updated");
    node.next_probe().await.told.send(Told::Found(Finding::Works)).unwrap();
    node.state(WORKS).await;
    assert_eq!(node.areas.probes.restored_login(), None);
}
