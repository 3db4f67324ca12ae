use time::macros::datetime;

use super::*;
use crate::model::audit::AuditHead;
use crate::records::copy::{Row, Table};

/// A claim with a lease of one minute.
pub fn claim(seconds: i64, trigger: ProbeTrigger) -> ProbeClaim {
    claim_at(at(seconds), trigger)
}

fn claim_at(at: OffsetDateTime, trigger: ProbeTrigger) -> ProbeClaim {
    ProbeClaim { id: Uuid::new_v4(), node: Uuid::new_v4(), version: 7, trigger, at, until: at + 60.seconds() }
}

/// The probe that this claim began.
fn begun(claim: &ProbeClaim) -> Probe {
    let ProbeClaim { id, node, version, trigger, at, until } = *claim;
    Probe { id, node, version, trigger, started_at: at, until, outcome: None }
}

pub fn outcome(state: ProbeState, seconds: i64) -> ProbeOutcome {
    ProbeOutcome { state, reason: None, adopted: None, finished_at: at(seconds) }
}

async fn begins(store: &Store, claim: &ProbeClaim) {
    assert_eq!(store.probe_claim(claim, None).await.unwrap(), ClaimOutcome::Begun);
}

async fn ends(store: &Store, claim: &ProbeClaim, outcome: &ProbeOutcome) {
    assert!(store.probe_finish(claim.id, outcome, None).await.unwrap());
}

async fn ids(store: &Store) -> Vec<Uuid> {
    store.probe_list(9).await.unwrap().iter().map(|probe| probe.id).collect()
}

async fn noted_actions(store: &Store) -> Vec<String> {
    store.audit_list_from(1, 10_000).await.unwrap().into_iter().map(|entry| entry.note.action).collect()
}

pub async fn racing_claims_begin_one_probe(store: Store) {
    for round in 0..10 {
        let answers = race(20, |_| {
            let store = Arc::clone(&store);
            async move {
                let claim = claim(round, ProbeTrigger::Store);
                (claim.clone(), store.probe_claim(&claim, Some(&note("begin"))).await.unwrap())
            }
        })
        .await;
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| *answer == ClaimOutcome::Begun);
        let [(claim, _)] = &won[..] else { panic!("{won:?}") };
        let present = store.probe_list(1).await.unwrap().remove(0);
        assert_eq!(present, begun(claim));
        assert!(lost.iter().all(|(_, answer)| *answer == ClaimOutcome::Busy(present.clone())), "{lost:?}");
        ends(&store, claim, &outcome(ProbeState::Ok, round)).await;
    }
    assert_eq!(store.probe_list(99).await.unwrap().len(), 10);
    assert_eq!(noted_actions(&store).await, ["begin"; 10], "a refused claim changed nothing");
}

pub async fn a_claim_that_is_repeated_has_begun_once(store: Store) {
    for trigger in [ProbeTrigger::Admin, ProbeTrigger::Daily] {
        let claim = claim(0, trigger);
        let answers = race(8, |_| {
            let (store, claim) = (Arc::clone(&store), claim.clone());
            async move { store.probe_claim(&claim, Some(&note("begin"))).await.unwrap() }
        })
        .await;
        assert_eq!(answers, vec![ClaimOutcome::Begun; 8]);
        ends(&store, &claim, &outcome(ProbeState::Ok, 1)).await;
        begins(&store, &claim).await;
        let finished = Probe { outcome: Some(outcome(ProbeState::Ok, 1)), ..begun(&claim) };
        assert_eq!(store.probe_list(1).await.unwrap(), [finished], "the repeated claim leaves the probe as it is");
    }
    assert_eq!(noted_actions(&store).await, ["begin"; 2]);
}

pub async fn a_lease_that_is_over_is_taken_over(store: Store) {
    let (first, second) = (claim(0, ProbeTrigger::Store), claim(60, ProbeTrigger::Retry));
    begins(&store, &first).await;
    let early = ProbeClaim { at: at(60) - 1.microseconds(), ..claim(0, ProbeTrigger::Retry) };
    assert_eq!(store.probe_claim(&early, None).await.unwrap(), ClaimOutcome::Busy(begun(&first)));
    begins(&store, &second).await;

    // The first claimer was only slow and may still write its outcome. That does not change the running probe.
    ends(&store, &first, &outcome(ProbeState::Fail, 70)).await;
    let third = claim(80, ProbeTrigger::Admin);
    assert_eq!(store.probe_claim(&third, None).await.unwrap(), ClaimOutcome::Busy(begun(&second)));
    ends(&store, &second, &outcome(ProbeState::Ok, 81)).await;
    begins(&store, &third).await;

    // The newest probe does not hide an older running one. If a clock runs ahead, the newest lease may end earlier.
    let ahead = ProbeClaim { until: at(141), ..claim(140, ProbeTrigger::Admin) };
    begins(&store, &ahead).await;
    ends(&store, &ahead, &outcome(ProbeState::Ok, 140)).await;
    let behind = claim(139, ProbeTrigger::Admin);
    assert_eq!(store.probe_claim(&behind, None).await.unwrap(), ClaimOutcome::Busy(begun(&third)));
    let last = claim(140, ProbeTrigger::Admin);
    begins(&store, &last).await;

    assert_eq!(ids(&store).await, [last.id, ahead.id, third.id, second.id, first.id]);
    let cut_short = &store.probe_list(9).await.unwrap()[2];
    assert_eq!((cut_short.outcome.as_ref(), cut_short.is_under_way(at(140))), (None, false));
}

pub async fn a_lease_made_by_a_clock_that_was_set_back_is_over(store: Store) {
    let ahead = claim(1000, ProbeTrigger::Store);
    begins(&store, &ahead).await;
    let before = claim(940, ProbeTrigger::Store);
    assert_eq!(store.probe_claim(&before, None).await.unwrap(), ClaimOutcome::Busy(begun(&ahead)));
    let back = ProbeClaim { at: at(940) - 1.microseconds(), ..before };
    begins(&store, &back).await;
    assert_eq!(ids(&store).await, [back.id, ahead.id], "probes must be in the order of the claims");
    assert_eq!(store.probe_summary(at(0)).await.unwrap().latest, Some(begun(&back)));
}

pub async fn a_daily_probe_is_begun_once_a_utc_day(store: Store) {
    // Both times are on one UTC day, although the second node's local date differs.
    let (morning, evening) = (datetime!(2026-11-26 00:00 UTC), datetime!(2026-11-27 01:59:59.999999 +02:00));
    let answers = race(12, |number| {
        let store = Arc::clone(&store);
        async move {
            let claim = claim_at(if number % 2 == 0 { morning } else { evening }, ProbeTrigger::Daily);
            let claim = ProbeClaim { until: claim.at, ..claim };
            (claim.clone(), store.probe_claim(&claim, Some(&note("begin"))).await.unwrap())
        }
    })
    .await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| *answer == ClaimOutcome::Begun);
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(lost.iter().all(|(_, answer)| *answer == ClaimOutcome::NotDue), "{lost:?}");
    assert_eq!(noted_actions(&store).await, ["begin"]);
    // The outcome does not matter: the daily probe has begun, and here it was cut short.
    let asked = claim_at(evening - 10.seconds(), ProbeTrigger::Admin);
    begins(&store, &asked).await;
    let again = claim_at(evening, ProbeTrigger::Daily);
    assert_eq!(store.probe_claim(&again, None).await.unwrap(), ClaimOutcome::NotDue);
    ends(&store, &asked, &outcome(ProbeState::Ok, 0)).await;
    assert_eq!(store.probe_claim(&again, None).await.unwrap(), ClaimOutcome::NotDue);

    let midnight = claim_at(datetime!(2026-11-27 02:00 +02:00), ProbeTrigger::Daily);
    let other = claim_at(midnight.at, ProbeTrigger::Store);
    begins(&store, &other).await;
    assert_eq!(
        store.probe_claim(&midnight, None).await.unwrap(),
        ClaimOutcome::Busy(begun(&other)),
        "the daily probe is due, but another one is running"
    );
    ends(&store, &other, &outcome(ProbeState::Ok, 0)).await;
    begins(&store, &midnight).await;
    assert_eq!(store.probe_summary(morning).await.unwrap().last_daily, Some(midnight.at));
}

pub async fn what_a_probe_found_is_written_once(store: Store) {
    let found = outcome(ProbeState::Ok, 3);
    assert!(!store.probe_finish(Uuid::new_v4(), &found, Some(&note("end"))).await.unwrap(), "the id is unknown");
    let claim = claim(0, ProbeTrigger::Upload);
    begins(&store, &claim).await;
    let answers = race(12, |number| {
        let store = Arc::clone(&store);
        let state = ProbeState::ALL[number % 3];
        // The limit cuts a character of two bytes in the middle.
        let reason =
            Some(format!("{}{}\u{e9}{}", state.as_str(), "x".repeat(4095 - state.as_str().len()), "y".repeat(9)));
        let found = ProbeOutcome { reason, adopted: Some(8), ..outcome(state, 3) };
        async move {
            let answer = store.probe_finish(claim.id, &found, Some(&note("end"))).await.unwrap();
            (answer, found)
        }
    })
    .await;
    let kept = store.probe_list(1).await.unwrap().remove(0).outcome.unwrap();
    for (answer, mut found) in answers {
        let reason = found.reason.as_mut().unwrap();
        reason.truncate(4095);
        assert_eq!(answer, found == kept, "{found:?}");
    }
    let finer = ProbeOutcome { finished_at: kept.finished_at + 1.microseconds(), ..kept.clone() };
    for other in
        [&finer, &ProbeOutcome { adopted: None, ..kept.clone() }, &ProbeOutcome { reason: None, ..kept.clone() }]
    {
        assert!(!store.probe_finish(claim.id, other, Some(&note("end"))).await.unwrap(), "{other:?}");
    }
    assert!(store.probe_finish(claim.id, &kept, Some(&note("end"))).await.unwrap());
    assert_eq!(store.probe_list(1).await.unwrap()[0].outcome, Some(kept));
    assert_eq!(noted_actions(&store).await, ["end"]);
}

pub async fn a_summary_tells_the_newest_of_each_kind(store: Store) {
    assert_eq!(store.probe_summary(at(0)).await.unwrap(), ProbeSummary::default());
    let adopting = |state, seconds| ProbeOutcome { adopted: Some(9), ..outcome(state, seconds) };
    // The clock is set back in the middle: the order is that of the claims.
    let course = [
        (claim(100_000, ProbeTrigger::Daily), Some(adopting(ProbeState::Ok, 100_001))),
        (claim(100, ProbeTrigger::Store), Some(outcome(ProbeState::Ok, 110))),
        (claim(200, ProbeTrigger::Retry), Some(adopting(ProbeState::Fail, 210))),
        (claim(300, ProbeTrigger::Admin), Some(outcome(ProbeState::Unavailable, 310))),
        (claim(400, ProbeTrigger::Daily), None),
    ];
    let mut probes = Vec::new();
    for (claim, outcome) in &course {
        begins(&store, claim).await;
        if let Some(outcome) = outcome {
            ends(&store, claim, outcome).await;
        }
        probes.push(Probe { outcome: outcome.clone(), ..begun(claim) });
    }
    let summary = ProbeSummary {
        latest: Some(probes[4].clone()),
        latest_finished: Some(probes[3].clone()),
        last_ok: Some(at(110)),
        last_failure: Some(at(210)),
        last_daily: Some(at(400)),
        validations: 3,
        adoptions: 2,
        latest_adoption: Some(probes[2].clone()),
    };
    assert_eq!(store.probe_summary(at(110)).await.unwrap(), summary);
    let later = ProbeSummary { validations: 2, ..summary.clone() };
    assert_eq!(store.probe_summary(at(110) + 1.microseconds()).await.unwrap(), later);
    let none = ProbeSummary { validations: 0, adoptions: 0, ..summary };
    assert_eq!(store.probe_summary(at(200_000)).await.unwrap(), none);
    probes.reverse();
    assert_eq!(store.probe_list(9).await.unwrap(), probes);
    assert_eq!(store.probe_list(2).await.unwrap(), probes[..2]);
}

pub async fn a_thousand_probes_are_kept_and_what_the_summary_tells(store: Store) {
    let ends_with = |number: i64| match number {
        1 => Some(ProbeOutcome { adopted: Some(9), ..outcome(ProbeState::Ok, number) }),
        2 => Some(outcome(ProbeState::Fail, number)),
        5 => Some(outcome(ProbeState::Unavailable, number)),
        _ => None,
    };
    let trigger_of = |number| if number == 3 { ProbeTrigger::Daily } else { ProbeTrigger::Store };
    let mut made = Vec::new();
    for number in 0..1100 {
        // Each lease ends when the next claim comes.
        let claim = ProbeClaim { until: at(number), ..claim(number, trigger_of(number)) };
        begins(&store, &claim).await;
        let outcome = ends_with(number);
        if let Some(outcome) = &outcome {
            ends(&store, &claim, outcome).await;
        }
        made.push(Probe { outcome, ..begun(&claim) });
    }
    let kept = store.probe_list(usize::MAX).await.unwrap();
    assert_eq!(kept.len(), 1000);
    // 1, 2, 3 and 5 stay because the summary needs them. In exchange the four next oldest are dropped.
    let expected = [1, 2, 3, 5].into_iter().chain(104..1100).map(|number| made[number].clone()).rev();
    assert!(kept.iter().eq(&expected.collect::<Vec<_>>()), "{:?}", &kept[990..]);
    let summary = store.probe_summary(at(0)).await.unwrap();
    let last = (summary.last_ok, summary.last_failure, summary.last_daily);
    assert_eq!(last, (Some(at(1)), Some(at(2)), Some(at(3))));
    assert_eq!((summary.latest, summary.latest_finished), (Some(made[1099].clone()), Some(made[5].clone())));
    assert_eq!((summary.latest_adoption, summary.validations, summary.adoptions), (Some(made[1].clone()), 2, 1));

    // A probe that the summary no longer needs is dropped. A dropped probe is unknown, and its id counts as new.
    let newer = claim(2000, ProbeTrigger::Store);
    begins(&store, &newer).await;
    let found = ProbeOutcome { adopted: Some(10), ..outcome(ProbeState::Ok, 2001) };
    ends(&store, &newer, &found).await;
    begins(&store, &ProbeClaim { id: made[0].id, ..claim(3000, ProbeTrigger::Store) }).await;
    let kept = store.probe_list(usize::MAX).await.unwrap();
    assert_eq!((kept.len(), kept[0].id), (1000, made[0].id));
    assert!(!kept.contains(&made[1]) && kept.contains(&made[2]));
    assert!(!store.probe_finish(made[1].id, &found, None).await.unwrap());
}

/// Each claim is one probe and one entry. A copy with unequal numbers of them has seen half a change.
pub async fn a_probe_is_noted_in_the_transaction_that_begins_or_ends_it(store: Store) {
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 0..100 {
                let claim = claim(number, ProbeTrigger::Store);
                assert_eq!(store.probe_claim(&claim, Some(&note("begin"))).await.unwrap(), ClaimOutcome::Begun);
                let found = outcome(ProbeState::Ok, number);
                assert!(store.probe_finish(claim.id, &found, Some(&note("end"))).await.unwrap());
            }
        }
    });
    let mut seen = Vec::new();
    while !writing.is_finished() {
        let rows = copying::export(&store).await;
        let noted = rows.iter().filter(|row| row.table() == Table::AuditLog).count();
        let ended = |row: &Row| matches!(row, Row::Probes(probe) if probe.probe.outcome.is_some());
        let found = rows.iter().filter(|row| row.table() == Table::Probes).count()
            + rows.iter().filter(|row| ended(row)).count();
        assert_eq!(found, noted);
        seen.push(noted);
    }
    writing.await.unwrap();
    println!("{} copies, of {seen:?} changes", seen.len());
    let mut head = AuditHead::default();
    for entry in store.audit_list_from(1, 1000).await.unwrap() {
        head.follow(&entry).unwrap();
    }
    assert_eq!(head, store.audit_head().await.unwrap());
    assert_eq!(head.number, 200);
}
