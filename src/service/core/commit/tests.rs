//! Every method of the service that changes something, on a node that cannot read what changed, or whose hot state
//! cannot be written. Each must answer success. The change must be in force on this node at once, and on every node
//! after the next catch-up.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use time::Duration;

use crate::hot::Hot;
use crate::model::auth_document::Allowed;
use crate::model::authority::AuthorityRole;
use crate::model::people::Role;
use crate::records::embedded::Embedded;
use crate::records::{AuthoritySlot, Records, VerifiedBackup};
use crate::service::admission::Purpose;
use crate::service::clock_tests::{TestClock, login, node, node_on};
use crate::service::hosts::enrol::HostOptions;
use crate::service::people::sessions::NewSession;
use crate::service::trust::certificates::CertificateOptions;
use crate::service::{Areas, Initiator};

const PASSWORD: &str = "vexed-lantern-42-orbit-plum";
const OTHER: &str = "brisk-otter-77-canal-fig";
const ISSUER: &str = "https://id.test";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct World {
    records: Arc<Embedded>,
    areas: Areas,
    /// Another node on the same records.
    other: Areas,
    clock: Arc<TestClock>,
    is_cut_off: bool,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(hot: impl FnOnce(&std::path::Path, &TestClock) -> Hot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new());
        let records = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
        let shared: Arc<dyn Records> = records.clone();
        let hot = hot(&directory.path().join("hot"), &clock);
        let areas = node_on(&directory, hot, shared.clone(), clock.clone()).await;
        let other = node(&directory, "other", shared, clock.clone()).await;
        Self { records, areas, other, clock, is_cut_off: true, _directory: directory }
    }

    fn cut_off(&self, is_cut_off: bool) {
        self.records.following_fails.store(is_cut_off && self.is_cut_off, Ordering::SeqCst);
    }

    async fn host(&self, name: &str) -> (crate::model::host::HostId, String, String) {
        let made = self.areas.hosts.register(name, HostOptions::default(), &Initiator::daemon()).await.unwrap();
        (made.host.host.id, made.api_key.expose().into(), made.installer.token.expose().into())
    }

    async fn signed_in(&self, email: &str) -> NewSession {
        self.areas.people.sign_in(email, PASSWORD, false, ip("192.0.2.1"), None).await.unwrap()
    }
}

async fn is_served(areas: &Areas, key: &str, from: &str) -> bool {
    areas.admission.admit(&areas.admission.credential(key), ip(from), Purpose::Service).await.is_ok()
}

/// Runs one change on a node that is cut off. Checks that `$in_force` holds when it answers, and on both nodes after
/// they have caught up.
macro_rules! step {
    ($world:ident, $call:expr, |$areas:ident| $in_force:expr) => {{
        $world.cut_off(true);
        let done = $call.await;
        let what = stringify!($call);
        let done = done.unwrap_or_else(|error| panic!("{what}: a committed change was answered with: {error}"));
        {
            let $areas = &$world.areas;
            assert!($in_force, "{what}: not in force when it was answered");
        }
        $world.cut_off(false);
        if $world.is_cut_off {
            $world.areas.core.catch_up().await.unwrap();
            let $areas = &$world.areas;
            assert!($in_force, "{what}: not in force after the next catch-up");
        }
        $world.other.core.catch_up().await.unwrap();
        let $areas = &$world.other;
        assert!($in_force, "{what}: not in force on another node");
        done
    }};
}

async fn hosts_change(world: &World) {
    let by = &Initiator::daemon();
    let areas = &world.areas;
    let (_, old, _) = world.host("again.test").await;
    let again = step!(world, areas.hosts.register("again.test", HostOptions::default(), by), |it| !is_served(
        it,
        &old,
        "192.0.2.1"
    )
    .await);
    assert!(is_served(areas, again.api_key.expose(), "192.0.2.1").await);
    let (id, key, token) = world.host("h1.test").await;
    step!(world, areas.hosts.redeem(&token, ip("192.0.2.1")), |it| it
        .hosts
        .redeem(&token, ip("192.0.2.1"))
        .await
        .is_err());
    // Binding is a change, too.
    step!(world, areas.admission.admit(&areas.admission.credential(&key), ip("192.0.2.1"), Purpose::Service), |it| {
        is_served(it, &key, "192.0.2.1").await && !is_served(it, &key, "192.0.2.2").await
    });
    step!(world, areas.admission.admit(&areas.admission.credential(&key), ip("2001:db8::1"), Purpose::Service), |it| {
        is_served(it, &key, "2001:db8::2").await && !is_served(it, &key, "2001:db8:1::1").await
    });
    step!(world, areas.hosts.disable(id, true, by), |it| !is_served(it, &key, "192.0.2.1").await);
    step!(world, areas.hosts.disable(id, false, by), |it| is_served(it, &key, "192.0.2.1").await);
    let networks = ["198.51.100.0/24".to_owned()];
    step!(world, areas.hosts.set_networks(id, &networks, by), |it| !is_served(it, &key, "192.0.2.1").await);
    step!(world, areas.hosts.set_networks(id, &[], by), |it| is_served(it, &key, "192.0.2.1").await);
    let end = Some(world.areas.core.now() + Duration::hours(1));
    let rules = |it: &Areas| it.core.hot.host_by_id(id).unwrap().unwrap().rules.clone();
    step!(world, areas.hosts.set_expiry(id, end, by), |it| rules(it).expires_at.is_some());
    step!(world, areas.hosts.allow_roaming(id, true, by), |it| rules(it).allow_roaming_ips);
    step!(world, areas.hosts.clear(id, by), |it| rules(it).bound().next().is_none());
    step!(world, areas.hosts.remove(id, by), |it| !is_served(it, &key, "192.0.2.1").await);
    step!(world, areas.hosts.restore(id, by), |it| it.core.hot.host_by_id(id).unwrap().is_some());
    let host =
        areas.admission.admit(&areas.admission.credential(&key), ip("192.0.2.1"), Purpose::Service).await.unwrap();
    step!(world, areas.hosts.leave(&host, ip("192.0.2.1")), |it| !is_served(it, &key, "192.0.2.1").await);
    world.clock.go_on(Duration::days(2));
    step!(world, areas.hosts.purge_removed(), |it| it.hosts.removed_hosts().await.unwrap().is_empty());

    let shared = areas
        .hosts
        .register("shared.test", HostOptions { secure: Some(false), ..HostOptions::default() }, by)
        .await
        .unwrap();
    let (id, key) = (shared.host.host.id, shared.api_key.expose().to_owned());
    step!(world, areas.hosts.close_window(id, by), |it| !is_served(it, &key, "192.0.2.1").await);
    step!(world, areas.hosts.open_window(id, by), |it| is_served(it, &key, "192.0.2.1").await);

    let (_, _, token) = world.host("revoked.test").await;
    let digest = crate::model::digest::Digest::of(token.as_bytes());
    step!(world, areas.hosts.revoke_installer(&digest, by), |it| it
        .hosts
        .redeem(&token, ip("192.0.2.1"))
        .await
        .is_err());
}

async fn people_change(world: &World) {
    let by = &Initiator::daemon();
    let areas = &world.areas;
    let add = areas.people.add_user("ada@example.test", Role::Member, Some(PASSWORD), by);
    let ada = step!(world, add, |it| it.people.users().await.unwrap().len() == 1);
    let user = |it: &Areas| it.people.known_user(ada.id).unwrap();
    step!(world, areas.people.set_role(ada.id, Role::Viewer, by), |it| user(it).role == Role::Viewer);
    step!(world, areas.people.set_max_hosts(ada.id, Some(2), by), |it| user(it).max_hosts == Some(2));
    let began = areas.people.sign_in("ada@example.test", PASSWORD, false, ip("192.0.2.1"), None);
    let session =
        step!(world, began, |it| it.people.sessions(None).await.unwrap().iter().any(|(_, in_force)| *in_force));
    let token = session.token.expose();
    assert!(areas.people.signed_in(token).await.is_ok());
    step!(world, areas.people.end_session(session.session.id, None, by), |it| it
        .people
        .signed_in(token)
        .await
        .is_err());

    let session = world.signed_in("ada@example.test").await;
    let token = session.token.expose();
    let signed_in = areas.people.signed_in(token).await.unwrap();
    let own = step!(world, areas.people.register_own("own.test", &signed_in, by), |it| {
        it.core.hot.host_states().unwrap().total() > 0
    });
    let key = own.api_key.expose();
    assert!(is_served(areas, key, "192.0.2.1").await);
    world.other.core.catch_up().await.unwrap();
    step!(world, areas.people.disable_user(ada.id, false, by), |it| {
        !is_served(it, key, "192.0.2.1").await && it.people.signed_in(token).await.is_err()
    });
    step!(world, areas.people.enable_user(ada.id, by), |it| is_served(it, key, "192.0.2.1").await);
    step!(world, areas.people.disable_user(ada.id, true, by), |it| {
        is_served(it, key, "192.0.2.1").await && user(it).disabled
    });
    step!(world, areas.people.enable_user(ada.id, by), |it| !user(it).disabled);

    let session = world.signed_in("ada@example.test").await;
    let (token, signed_in) = (session.token.expose(), areas.people.signed_in(session.token.expose()).await.unwrap());
    step!(world, areas.people.remove_own(own.host.host.id, &signed_in, by), |it| !is_served(it, key, "192.0.2.1")
        .await);
    let from = ip("192.0.2.1");
    step!(world, areas.people.set_own_password(&signed_in, PASSWORD, OTHER, from, by), |it| it
        .people
        .signed_in(token)
        .await
        .is_err());
    step!(world, areas.people.set_password(ada.id, PASSWORD, by), |it| user(it).generation
        > session.session.generation + 1);

    let session = world.signed_in("ada@example.test").await;
    let token = session.token.expose();
    let link = areas.people.link_identity(ISSUER, "7", "ada@example.test", None, by);
    step!(world, link, |it| it.people.identities().await.unwrap().len() == 1);
    step!(world, areas.people.unlink_identity(ISSUER, "7", by), |it| it.people.signed_in(token).await.is_err());
}

async fn trust_changes(world: &World) {
    let by = &Initiator::daemon();
    let areas = &world.areas;
    areas.people.add_user("bob@example.test", Role::Admin, None, by).await.unwrap();
    let options = CertificateOptions { without_pkcs12: true, ..CertificateOptions::default() };
    let digest = std::cell::Cell::new(None);
    let issue = async {
        let issued = areas.trust.issue_certificate("ops", options, by).await?;
        digest.set(Some(issued.record.fingerprint));
        crate::service::Result::Ok(issued)
    };
    let certificate = |it: &Areas| it.trust.admitted_certificate(&digest.get().unwrap());
    step!(world, issue, |it| certificate(it).is_some());
    let fingerprint = digest.get().unwrap();
    step!(world, areas.people.tie_certificate(&fingerprint, Some("bob@example.test"), by), |it| {
        certificate(it).unwrap().user.is_some()
    });
    let successor = std::cell::Cell::new(None);
    let renew = async {
        let renewed = areas.trust.renew_certificate(&fingerprint, options, true, by).await?;
        successor.set(Some(renewed.record.fingerprint));
        crate::service::Result::Ok(renewed)
    };
    step!(world, renew, |it| {
        certificate(it).is_none()
            && it.trust.admitted_certificate(&successor.get().unwrap()).is_some_and(|renewed| renewed.user.is_some())
    });
    step!(world, areas.trust.revoke_certificate(&successor.get().unwrap(), by), |it| {
        it.trust.admitted_certificate(&successor.get().unwrap()).is_none()
    });

    let of_old = areas.trust.issue_certificate("old", options, by).await.unwrap().record.fingerprint;
    let role = AuthorityRole::Client;
    let slot = |it: &Areas, slot| it.core.authorities().in_slot(role, slot).map(|held| held.id);
    step!(world, areas.trust.prepare_authority(role, by), |it| slot(it, AuthoritySlot::Next).is_some());
    step!(world, areas.trust.activate_authority(role, false, by), |it| slot(it, AuthoritySlot::Old).is_some());
    assert!(areas.trust.admitted_certificate(&of_old).is_some());
    step!(world, areas.trust.retire_authority(role, true, by), |it| it.trust.admitted_certificate(&of_old).is_none());
}

async fn settings_and_login_change(world: &World) {
    let by = &Initiator::daemon();
    let areas = &world.areas;
    step!(world, areas.admission.disable_api(true, Some("stop"), by), |it| it.core.api_disabled().is_some());
    step!(world, areas.hosts.note_client_release("rust-v0.170.0"), |it| {
        it.core.settings().client_release.is_some() && it.core.api_disabled().is_some()
    });
    step!(world, areas.admission.disable_api(false, None, by), |it| it.core.api_disabled().is_none());
    let backup = VerifiedBackup { made_at: areas.core.now(), has_keys: true };
    step!(world, areas.transfer.backup_verified(backup, by), |it| it.core.settings().verified_backup.is_some());
    let version = |it: &Areas| it.core.canonical().map(|canonical| canonical.summary.version);
    for number in 1..=2 {
        let (document, _) = login(world.areas.core.now(), &number.to_string());
        step!(world, areas.login.upload_text(&document, Allowed::default(), false, by), |it| version(it)
            == Some(number));
        world.clock.go_on(Duration::minutes(1));
    }
    step!(world, areas.login.roll_back(1, by), |it| version(it) == Some(3));
    // The other node would not learn of a new data key: the two share an embedded store in this test only.
    world.cut_off(true);
    areas.trust.rotate_keys(by).await.unwrap();
    world.cut_off(false);
    areas.core.catch_up().await.unwrap();
    assert_eq!(version(areas), Some(3));
    let (_, key, token) = world.host("after.test").await;
    assert!(is_served(areas, &key, "192.0.2.1").await);
    areas.hosts.redeem(&token, ip("192.0.2.1")).await.unwrap();
}

async fn walk(world: &World) {
    hosts_change(world).await;
    people_change(world).await;
    trust_changes(world).await;
    settings_and_login_change(world).await;
}

fn healthy(path: &std::path::Path, clock: &TestClock) -> Hot {
    Hot::open(path, clock).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_change_is_answered_and_in_force_though_the_node_cannot_follow() {
    walk(&World::new(healthy).await).await;
}

/// Putting the rows of a change in force must not undo a later change that another call has read meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_change_that_others_have_overtaken_are_read_again() {
    let world = World::new(healthy).await;
    let areas = &world.areas;
    let (id, key, _) = world.host("h1.test").await;
    let before = areas.core.hot.epoch();
    let disabled = areas.hosts.disable(id, true, &Initiator::daemon()).await.unwrap();
    areas.hosts.disable(id, false, &Initiator::daemon()).await.unwrap();
    assert!(is_served(areas, &key, "192.0.2.1").await);
    // The first of the two changes comes late.
    areas.core.put_in_force(before, (&disabled).into()).await;
    areas.core.catch_up().await.unwrap();
    assert!(is_served(areas, &key, "192.0.2.1").await, "the later change was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_change_is_in_force_though_hot_state_cannot_be_written() {
    let failing = Arc::new(AtomicBool::new(false));
    let disk = Arc::clone(&failing);
    let mut world = World::new(move |path, clock| Hot::on_failing_disk(path, disk, clock).unwrap()).await;
    let by = &Initiator::daemon();
    let (id, key, token) = world.host("h1.test").await;
    let (gone, gone_key, _) = world.host("h2.test").await;
    let (_, unseen_key, _) = world.host("h3.test").await;
    let user = world.areas.people.add_user("ada@example.test", Role::Member, Some(PASSWORD), by).await.unwrap();
    let session = world.signed_in("ada@example.test").await;
    for key in [&key, &gone_key] {
        assert!(is_served(&world.areas, key, "192.0.2.1").await);
    }
    failing.store(true, Ordering::SeqCst);
    // Writing this to hot state fails.
    world.host("filler.test").await;
    assert!(world.areas.core.hot.settled().await.is_err());
    assert!(world.areas.core.catch_up().await.is_ok(), "there is nothing to write");
    world.is_cut_off = false;

    let areas = &world.areas;
    step!(world, areas.hosts.redeem(&token, ip("192.0.2.1")), |it| it
        .hosts
        .redeem(&token, ip("192.0.2.1"))
        .await
        .is_err());
    step!(world, areas.hosts.disable(id, true, by), |it| !is_served(it, &key, "192.0.2.1").await);
    step!(world, areas.hosts.disable(id, false, by), |it| is_served(it, &key, "192.0.2.1").await);
    let again = step!(world, areas.hosts.register("h1.test", HostOptions::default(), by), |it| !is_served(
        it,
        &key,
        "192.0.2.1"
    )
    .await);
    assert!(areas.core.hot.host_by_key(&again.api_key.digest()).unwrap().is_some());
    step!(world, areas.hosts.remove(gone, by), |it| !is_served(it, &gone_key, "192.0.2.1").await);
    step!(world, areas.hosts.restore(gone, by), |it| is_served(it, &gone_key, "192.0.2.1").await);
    // A host that this node has not seen calling yet.
    step!(world, areas.hosts.register("h3.test", HostOptions::default(), by), |it| !is_served(
        it,
        &unseen_key,
        "192.0.2.1"
    )
    .await);
    step!(world, areas.admission.disable_api(true, None, by), |it| it.core.api_disabled().is_some());
    let token = session.token.expose();
    step!(world, areas.people.disable_user(user.id, false, by), |it| it.people.signed_in(token).await.is_err());
}
