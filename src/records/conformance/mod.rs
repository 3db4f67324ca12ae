//! The conformance suite of [`Records`]: each promise in the documentation of its traits is a test case.
//! [`conformance_tests!`] makes them tests of one implementation, [`list`] names them.
//!
//! A case gets an empty store and must not know the implementation.

mod audit;
mod canonical;
mod changes;
pub mod copying;
mod hosts;
mod identities;
mod install_tokens;
mod owners;
pub mod people;
pub mod probes;
mod sealing;
mod telemetry;

use std::any::Any;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use time::OffsetDateTime;
use time::ext::NumericalDuration;
use uuid::Uuid;

use crate::model::audit::{Actor, AuditFilter, AuditHead, AuditNote};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules};
use crate::model::people::{Email, UserId};
use crate::records::*;
use crate::seal::{KeyId, Place, Sealed};

/// An empty store, and the parts that must outlive it.
pub struct Fixture {
    pub records: Arc<dyn Records>,
    pub keep: Box<dyn Any + Send>,
}

/// Passes every case to the macro `$then`, after `$make`.
macro_rules! every_case {
    ($then:ident, $($make:path)?) => {
        $crate::records::conformance::$then! {
            $($make)?;
            hosts: a_new_host_has_the_rules_it_was_registered_with;
            hosts: a_name_registered_again_keeps_its_id_and_gets_a_new_key;
            hosts: registering_for_another_id_changes_nothing;
            hosts: a_registration_done_twice_is_done_once;
            hosts: a_taken_id_is_never_given_to_another_name;
            hosts: racing_registrations_of_one_name_make_one_host;
            hosts: hosts_are_listed_by_name_without_the_removed;
            hosts: a_removed_host_is_gone_and_its_name_free;
            hosts: rules_change_only_where_told;
            hosts: racing_first_contacts_bind_one_address;
            hosts: a_mapped_address_is_bound_as_its_v4;
            hosts: a_host_is_bound_to_one_address_of_each_family;
            hosts: an_ipv6_address_in_the_bound_network_changes_nothing;
            hosts: racing_first_contacts_of_both_families_bind_one_each;
            hosts: a_roaming_host_is_bound_anew_and_another_is_not;
            hosts: a_key_that_was_replaced_binds_nothing;
            hosts: a_removed_host_comes_back_as_it_was;
            hosts: a_removed_host_whose_name_is_taken_stays_removed;
            hosts: the_keys_of_hosts_removed_long_ago_are_forgotten;
            hosts: an_agent_identity_is_kept_for_the_hosts_own_key;
            hosts: an_agent_identity_goes_with_the_key_and_with_the_host;
            install_tokens: two_hundred_racing_redemptions_redeem_once;
            install_tokens: a_spent_installer_token_is_gone;
            install_tokens: a_token_is_redeemed_only_for_the_key_that_its_host_has;
            install_tokens: an_expired_installer_token_is_refused;
            install_tokens: an_unknown_installer_token_is_unknown;
            install_tokens: registering_again_revokes_what_is_pending_and_nothing_else;
            install_tokens: removing_a_host_kills_its_installer_tokens;
            install_tokens: a_revoked_installer_token_is_gone;
            install_tokens: tokens_are_listed_the_newest_first;
            install_tokens: a_removal_and_a_redemption_race_to_one_outcome;
            audit: every_change_is_noted_once_in_an_unbroken_chain;
            audit: what_changes_nothing_is_not_noted;
            audit: racing_writers_leave_a_chain_without_a_gap;
            audit: entries_are_found_by_what_they_say_and_paged;
            audit: noted_telemetry_is_appended_once;
            audit: certificates_are_revoked_once;
            audit: authorities_move_through_their_slots_and_never_skip_one;
            canonical: the_first_version_needs_that_there_is_none;
            canonical: racing_replacements_make_one_version;
            canonical: version_numbers_have_no_gap_under_racing_writers;
            canonical: racing_writers_that_decide_again_make_one_line;
            canonical: a_replacement_tells_the_epoch_it_stands_at;
            canonical: a_retried_replacement_answers_as_it_did_then;
            canonical: versions_come_back_as_stored_and_the_newest_comes_first;
            canonical: a_large_body_comes_back_whole;
            canonical: versions_are_listed_page_by_page;
            canonical: versions_that_nothing_keeps_are_pruned;
            canonical: the_canonical_version_is_never_pruned;
            canonical: a_version_stored_lately_is_kept_whatever_its_number;
            canonical: what_is_sealed_of_a_pruned_version_holds_no_data_key;
            probes: racing_claims_begin_one_probe;
            probes: a_claim_that_is_repeated_has_begun_once;
            probes: a_lease_that_is_over_is_taken_over;
            probes: a_lease_made_by_a_clock_that_was_set_back_is_over;
            probes: a_daily_probe_is_begun_once_a_utc_day;
            probes: what_a_probe_found_is_written_once;
            probes: a_summary_tells_the_newest_of_each_kind;
            probes: a_thousand_probes_are_kept_and_what_the_summary_tells;
            probes: a_probe_is_noted_in_the_transaction_that_begins_or_ends_it;
            people: users_are_added_once_and_listed_by_address;
            people: racing_users_of_one_address_make_one;
            people: a_user_changes_only_where_told_and_turns_the_generation;
            people: a_session_begins_once_and_of_the_user_as_it_is;
            people: racing_sign_ins_of_one_id_begin_one_session;
            people: no_session_begins_of_a_generation_that_is_over;
            people: a_session_through_a_provider_needs_its_identity;
            people: a_session_ends_once;
            people: when_a_session_was_used_is_kept_and_told_to_nobody;
            people: sessions_that_are_over_are_forgotten;
            identities: an_identity_is_linked_to_one_user;
            identities: issuer_and_subject_are_compared_byte_by_byte;
            identities: identities_are_seeded_and_again;
            owners: a_host_is_its_owners_from_then_on;
            owners: an_owner_has_as_many_hosts_as_they_may;
            owners: racing_owners_of_one_name_make_one_host;
            owners: an_admin_who_registers_a_users_host_takes_it;
            owners: an_owner_removes_only_their_own_host;
            owners: hosts_are_disabled_and_enabled_with_their_user;
            owners: a_user_who_is_being_disabled_leaves_no_host_served;
            owners: a_certificate_is_tied_to_a_user_and_untied;
            owners: a_renewed_certificate_takes_the_user_of_the_one_before;
            people: only_what_changed_of_people_is_told;
            people: a_session_is_noted_in_the_transaction_that_begins_it;
            sealing: what_the_first_boot_makes_is_written_once;
            sealing: racing_first_boots_have_one_winner;
            sealing: data_keys_are_added_once_and_listed;
            sealing: a_data_key_in_use_or_the_highest_stays;
            sealing: every_kind_of_sealed_value_is_found_and_resealed;
            sealing: resealing_a_value_that_changed_does_nothing;
            sealing: a_removed_hosts_key_is_no_longer_held;
            sealing: certificates_are_recorded_once_in_order;
            telemetry: a_batch_is_applied_once;
            telemetry: nodes_count_apart;
            telemetry: later_sightings_win_whatever_the_order;
            telemetry: telemetry_of_no_host_is_dropped;
            changes: settings_are_kept;
            changes: settings_change_only_where_told;
            changes: host_trust_is_recorded_once;
            changes: racing_changes_of_the_settings_undo_nothing;
            changes: each_change_that_nodes_cache_bumps_the_epoch;
            changes: what_nodes_do_not_cache_leaves_the_epoch_alone;
            changes: only_what_changed_is_told;
            changes: a_follower_misses_nothing_among_racing_writers;
            copying: what_was_copied_out_and_in_is_the_same;
            copying: records_that_hold_something_are_not_filled;
            copying: a_filling_that_was_cut_short_is_begun_again;
            copying: records_that_stand_still_refuse_every_change;
            copying: a_copy_is_of_one_moment;
        }
    };
}

/// `conformance_tests!(make)`, with `async fn make() -> Fixture`: makes the whole suite tests of the calling module.
macro_rules! conformance_tests {
    ($make:path) => {
        $crate::records::conformance::every_case!(as_tests, $make);
    };
}

macro_rules! as_tests {
    ($make:path; $($group:ident: $case:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = $make().await;
                $crate::records::conformance::cases::$case(fixture.records.clone()).await;
                drop(fixture);
            }
        )*
    };
}

macro_rules! as_list {
    (; $($group:ident: $case:ident;)*) => {
        vec![$((stringify!($case), (|store| Box::pin(cases::$case(store))) as Case)),*]
    };
}
pub(crate) use {as_list, as_tests, conformance_tests, every_case};

/// A test case.
pub type Case = fn(Store) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The whole suite by name, to run it on one server.
pub fn list() -> Vec<(&'static str, Case)> {
    every_case!(as_list,)
}

pub mod cases {
    pub use super::audit::*;
    pub use super::canonical::*;
    pub use super::changes::*;
    pub use super::copying::*;
    pub use super::hosts::*;
    pub use super::identities::*;
    pub use super::install_tokens::*;
    pub use super::owners::*;
    pub use super::people::*;
    pub use super::probes::*;
    pub use super::sealing::*;
    pub use super::telemetry::*;
}

pub use changes::settings_race;

pub type Store = Arc<dyn Records>;

pub fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap() + seconds.seconds()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn fqdn(text: &str) -> Fqdn {
    text.parse().unwrap()
}

/// Bytes in the form of a sealed value, with the key's id in front.
pub fn sealed(key: u32, tag: &str) -> Sealed {
    // At least as long as a real one: nonce and tag.
    Sealed::from_bytes([&[1][..], &key.to_be_bytes(), &[0; 40], tag.as_bytes()].concat())
}

/// A registration whose key, token and sealed key follow from `tag`.
pub fn registration(id: u64, name: &str, tag: &str) -> Registration {
    Registration {
        id: HostId(id),
        fqdn: fqdn(name),
        key_digest: Digest::of(format!("key {tag}").as_bytes()),
        api_key: sealed(1, &format!("key {tag}")),
        secure: None,
        expires_at: None,
        insecure_enabled_until: None,
        token: NewInstallToken {
            digest: token(tag),
            base_url: "https://auth.example.test:8443".into(),
            expires_at: at(1800),
        },
        at: at(0),
    }
}

/// The host that [`registration`] makes.
pub fn host(id: u64, name: &str, tag: &str) -> Host {
    let Registration { id, fqdn, key_digest, api_key, .. } = registration(id, name, tag);
    Host {
        owner: None,
        id,
        fqdn,
        key_digest,
        imported_key_digest: None,
        api_key,
        rules: HostRules {
            secure: true,
            allow_roaming_ips: false,
            bound_ip: None,
            bound_ip_other: None,
            insecure_enabled_until: None,
            insecure_grace_until: None,
            disabled: false,
            disabled_with_user: false,
            expires_at: None,
            allowed_networks: Vec::new(),
        },
        created_at: at(0),
        updated_at: at(0),
        removed_at: None,
        agent_identity: None,
    }
}

pub fn key(tag: &str) -> Digest {
    Digest::of(format!("key {tag}").as_bytes())
}

/// The kill switch, on or off.
pub fn kill_switch(disabled: bool) -> SettingsChange {
    SettingsChange::KillSwitch { disabled, reason: None }
}

/// The audit entry of a change, for cases that do not check it.
pub fn noted() -> AuditNote {
    note("case.change")
}

pub fn note(action: &str) -> AuditNote {
    AuditNote::new(at(0), Actor::Daemon, None, action)
}

pub fn token(tag: &str) -> Digest {
    Digest::of(format!("token {tag}").as_bytes())
}

pub fn new_canonical(tag: &str) -> NewCanonical {
    NewCanonical {
        id: Uuid::new_v4(),
        digest: Digest::of(tag.as_bytes()),
        last_refresh: format!("2026-11-21T12:00:00.{tag}Z"),
        body: sealed(1, &format!("body {tag}")),
        entries: vec![AuthEntry {
            target: "api.openai.com/v1".into(),
            token: sealed(1, &format!("entry {tag}")),
            token_type: "bearer".into(),
            organization: Some("org".into()),
            project: None,
            api_base: None,
        }],
        source: CanonicalSource::Admin { by: "ops".into() },
        at: at(60),
    }
}

pub fn seen(host: u64, calls: u64, when: i64, client_version: Option<&str>) -> Telemetry {
    Telemetry::Seen {
        host: HostId(host),
        calls,
        last_seen: at(when),
        last_refresh: None,
        digests: client_version.map(key).into_iter().collect(),
        client_version: client_version.map(Into::into),
        wrapper_version: None,
        wrapper_fetched_at: None,
    }
}

pub fn replaced(replacement: Replacement) -> CanonicalVersion {
    match replacement {
        Replacement::Replaced { version, .. } => version,
        Replacement::Conflict(present) => panic!("another call was first: {present:?}"),
    }
}

/// Runs `count` calls at once and returns their results.
pub async fn race<T, F>(count: usize, call: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(count));
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let (start, call) = (Arc::clone(&start), call(number));
            tokio::spawn(async move {
                start.wait().await;
                call.await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}
