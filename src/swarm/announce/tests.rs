use super::*;

fn announcer(tiers: &[&[&str]]) -> Announcer {
    let tiers = tiers
        .iter()
        .map(|tier| tier.iter().map(|url| (*url).to_owned()).collect())
        .collect();
    Announcer::new(tiers, AnnounceConfig::default(), 1, Now::ZERO)
}

fn answer(interval_secs: u64) -> AnnounceResponse {
    AnnounceResponse {
        interval_secs: Some(interval_secs),
        ..AnnounceResponse::default()
    }
}

fn unreachable() -> AnnounceFailure {
    AnnounceFailure::Unreachable("down".into())
}

fn refused(retry_in: RetryIn) -> AnnounceFailure {
    AnnounceFailure::Refused(AnnounceRefusal {
        reason: "go away".into(),
        retry_in: Some(retry_in),
    })
}

#[test]
fn started_then_regular_then_completed_then_stopped() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!((job.event, job.numwant), (Some(Event::Started), 200));
    assert_eq!(a.next_announce(Now::ZERO), None, "one at a time");
    a.on_success(job.id, &answer(600), Now::ZERO);
    let next = a.next_deadline().unwrap();
    assert!(next >= Now::from_secs(600) && next <= Now::from_secs(660));
    assert_eq!(a.next_announce(Now::from_secs(599)), None);
    let job = a.next_announce(next).unwrap();
    assert_eq!(job.event, None);
    a.on_success(job.id, &answer(600), next);

    a.on_completed();
    let job = a.next_announce(next).unwrap();
    assert_eq!(job.event, Some(Event::Completed));
    a.on_success(job.id, &answer(600), next);
    assert_eq!(a.next_announce(next), None, "completed goes out once");

    let jobs = a.on_stopping();
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].event, jobs[0].numwant), (Some(Event::Stopped), 0));
    assert_eq!(a.next_deadline(), None);
    assert_eq!(a.on_stopping(), [], "stopped goes out once");
}

#[test]
fn completed_during_started_follows_it() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_completed();
    a.on_success(job.id, &answer(600), Now::ZERO);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(job.event, Some(Event::Completed));
}

#[test]
fn a_tracker_first_asked_after_completion_gets_only_started() {
    let mut a = announcer(&[&["x"]]);
    a.on_completed();
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(job.event, Some(Event::Started));
    a.on_success(job.id, &answer(600), Now::ZERO);
    assert_eq!(a.next_announce(Now::ZERO), None);
}

#[test]
fn a_failed_completed_is_repeated() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_success(job.id, &answer(600), Now::ZERO);
    a.on_completed();
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_failure(job.id, unreachable(), Now::ZERO);
    let at = Now::from_secs(3_000);
    assert_eq!(a.next_announce(at).unwrap().event, Some(Event::Completed));
}

#[test]
fn the_next_tracker_and_tier_are_tried_and_the_working_one_is_promoted() {
    let mut a = announcer(&[&["a", "b", "c"], &["d"]]);
    let first = a.next_announce(Now::ZERO).unwrap();
    a.on_failure(first.id, unreachable(), Now::ZERO);
    let second = a.next_announce(Now::ZERO).unwrap();
    assert_ne!(first.url, second.url);
    a.on_success(second.id, &answer(60), Now::ZERO);
    assert_eq!(a.status()[0].url, second.url, "promoted");
    assert_eq!(a.next_announce(Now::from_secs(30)), None, "one is enough");

    let mut now = Now::from_secs(200);
    let mut seen = Vec::new();
    while let Some(job) = a.next_announce(now) {
        seen.push(job.url.clone());
        now = now + Duration::from_micros(1);
        a.on_failure(job.id, unreachable(), now);
    }
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[0], second.url);
    assert_eq!(seen[3], "d", "the next tier comes last");
    assert!(a.is_all_failing());
    let told: Vec<_> = a.on_stopping().into_iter().map(|job| job.url).collect();
    assert_eq!(told, [second.url], "only who got `started` gets `stopped`");
}

#[test]
fn tiers_are_shuffled_inside_but_keep_their_order() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let tiers = vec![vec!["a".into(), "b".into()], vec!["c".into(), "a".into()]];
        let a = Announcer::new(tiers, AnnounceConfig::default(), seed, Now::ZERO);
        let urls: Vec<_> = a.status().into_iter().map(|status| status.url).collect();
        assert_eq!(urls[2], "c", "the duplicate is gone");
        orders.insert(urls);
    }
    assert_eq!(orders.len(), 2);
}

#[test]
fn failures_in_a_row_back_off_up_to_an_hour() {
    let mut a = announcer(&[&["x"]]);
    let mut now = Now::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let job = a.next_announce(now).unwrap();
        a.on_failure(job.id, unreachable(), now);
        let next = a.next_deadline().unwrap();
        pauses.push(next.since(now).as_secs());
        now = next;
    }
    assert!((30..=38).contains(&pauses[0]), "{pauses:?}");
    assert!((60..=75).contains(&pauses[1]), "{pauses:?}");
    assert!((3_600..=3_660).contains(&pauses[11]), "{pauses:?}");
}

#[test]
fn absurd_intervals_are_clamped() {
    for (sent, low, high) in [
        (Some(0), 60, 66),
        (Some(u64::MAX), 86_400, 86_460),
        (Some(1 << 63), 86_400, 86_460),
        (None, 1_800, 1_860),
    ] {
        let mut a = announcer(&[&["x"]]);
        let job = a.next_announce(Now::ZERO).unwrap();
        let response = AnnounceResponse {
            interval_secs: sent,
            ..AnnounceResponse::default()
        };
        a.on_success(job.id, &response, Now::ZERO);
        let secs = a.next_deadline().unwrap().since(Now::ZERO).as_secs();
        assert!((low..=high).contains(&secs), "{sent:?} gave {secs}");
    }
}

#[test]
fn want_peers_is_early_but_not_before_min_interval() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    let response = AnnounceResponse {
        interval_secs: Some(1_800),
        min_interval_secs: Some(120),
        ..AnnounceResponse::default()
    };
    a.on_success(job.id, &response, Now::ZERO);
    a.on_want_peers();
    assert_eq!(a.next_deadline(), Some(Now::from_secs(120)));
    let job = a.next_announce(Now::from_secs(120)).unwrap();
    a.on_success(job.id, &response, Now::from_secs(120));
    assert!(a.next_deadline().unwrap() >= Now::from_secs(1_920));
}

#[test]
fn retry_in_is_obeyed() {
    let mut a = announcer(&[&["x"], &["y"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_failure(job.id, refused(RetryIn::Never), Now::ZERO);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(job.url, "y");
    let wait = RetryIn::After(Duration::from_secs(900));
    a.on_failure(job.id, refused(wait), Now::ZERO);
    assert_eq!(a.next_deadline(), Some(Now::from_secs(900)));
    assert_eq!(a.status()[0].state, TrackerState::Disabled);
    let job = a.next_announce(Now::from_secs(900)).unwrap();
    a.on_failure(job.id, refused(RetryIn::Never), Now::from_secs(900));
    assert_eq!(a.next_deadline(), None);
}

#[test]
fn a_tracker_id_goes_back_until_replaced() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(job.tracker_id, None);
    let response = AnnounceResponse {
        tracker_id: Some(b"id".to_vec()),
        ..answer(60)
    };
    a.on_success(job.id, &response, Now::ZERO);
    for secs in [100, 300] {
        let job = a.next_announce(Now::from_secs(secs)).unwrap();
        assert_eq!(job.tracker_id.as_deref(), Some(&b"id"[..]));
        a.on_success(job.id, &answer(60), Now::from_secs(secs));
    }
}

#[test]
fn stopping_during_started_still_says_stopped() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(a.on_stopping().len(), 1);
    a.on_success(job.id, &answer(60), Now::ZERO);
    assert_eq!(a.next_announce(Now::from_secs(9_999)), None);
}

#[test]
fn a_job_tells_whether_the_tracker_answers_and_whether_there_is_another() {
    let mut a = announcer(&[&["x"], &["y"]]);
    let first = a.next_announce(Now::ZERO).unwrap();
    assert_eq!((first.is_answering, first.is_last_hope), (false, false));
    a.on_failure(first.id, unreachable(), Now::ZERO);
    let second = a.next_announce(Now::ZERO).unwrap();
    assert_eq!((second.is_answering, second.is_last_hope), (false, true));
    a.on_success(second.id, &answer(60), Now::ZERO);
    let again = a.next_announce(Now::from_secs(300)).unwrap();
    assert_eq!(again.url, "x", "it is tried again in its turn");
    assert_eq!((again.is_answering, again.is_last_hope), (false, false));
    let stopped = a.on_stopping();
    let answering: Vec<_> = stopped
        .iter()
        .map(|job| (job.url.as_str(), job.is_answering))
        .collect();
    assert_eq!(answering, [("y", true), ("x", false)]);
}

#[test]
fn without_trackers_nothing_is_due() {
    let mut a = announcer(&[]);
    assert_eq!(a.next_deadline(), None);
    assert_eq!(a.next_announce(Now::ZERO), None);
    assert!(!a.is_all_failing());
}

proptest::proptest! {
    /// Whatever trackers do, announces to one tracker keep their distance and something is always due.
    #[test]
    fn never_a_tight_loop(seed: u64, outcomes in proptest::collection::vec((0u8..5, proptest::num::u64::ANY), 1..60)) {
        let mut a = Announcer::new(vec![vec!["a".into(), "b".into()], vec!["c".into()]], AnnounceConfig::default(), seed, Now::ZERO);
        let mut now = Now::ZERO;
        let mut last = std::collections::BTreeMap::new();
        for (kind, number) in outcomes {
            let Some(at) = a.next_deadline() else { break };
            now = now.max(at);
            let job = a.next_announce(now).expect("due means there is a job");
            if let Some(earlier) = last.insert(job.url.clone(), now) {
                proptest::prop_assert!(now.since(earlier) >= Duration::from_secs(30) || job.event == Some(Event::Completed));
            }
            match kind {
                0 => a.on_failure(job.id, unreachable(), now),
                1 => a.on_failure(job.id, refused(RetryIn::After(Duration::from_secs(number))), now),
                2 => { a.on_want_peers(); a.on_success(job.id, &answer(number), now); }
                3 => { a.on_success(job.id, &answer(number), now); a.on_want_peers(); }
                _ => { a.on_completed(); a.on_success(job.id, &answer(number), now); }
            }
        }
    }
}

#[test]
fn a_clock_that_leaps_a_year_ahead_makes_one_announce_and_no_storm() {
    let mut a = announcer(&[&["x"], &["y"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_success(job.id, &answer(600), Now::ZERO);
    let mut now = Now::from_secs(366 * 86_400);
    let job = a.next_announce(now).unwrap();
    assert_eq!(a.next_announce(now), None, "one at a time");
    a.on_success(job.id, &answer(600), now);
    for _ in 0..590 {
        now = now + Duration::from_secs(1);
        assert_eq!(a.next_announce(now), None);
    }
    // Nor does a tracker that fails get what it missed.
    now = now + Duration::from_secs(366 * 86_400);
    let mut count = 0;
    for _ in 0..60 {
        while let Some(job) = a.next_announce(now) {
            count += 1;
            a.on_failure(job.id, unreachable(), now);
        }
        now = now + Duration::from_secs(1);
    }
    assert!(count <= 4, "{count} announces in a minute");
}

fn tiers(tiers: &[&[&str]]) -> Vec<Vec<String>> {
    let own = |tier: &&[&str]| tier.iter().map(|url| (*url).to_owned()).collect();
    tiers.iter().map(own).collect()
}

#[test]
fn trackers_that_go_hear_goodbye_and_new_ones_are_asked_at_once() {
    let mut a = announcer(&[&["old"], &["stays"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_success(job.id, &answer(600), Now::ZERO);
    let later = Now::from_secs(10);
    assert_eq!(a.next_announce(later), None, "nothing is due");

    let goodbyes = a.set_tiers(tiers(&[&["new"], &["stays"]]), later);
    let told: Vec<_> = goodbyes
        .iter()
        .map(|job| (job.url.as_str(), job.event))
        .collect();
    assert_eq!(told, [("old", Some(Event::Stopped))]);
    let job = a.next_announce(later).unwrap();
    assert_eq!((job.url.as_str(), job.event), ("new", Some(Event::Started)));
    a.on_success(job.id, &answer(600), later);
    let urls: Vec<String> = a.status().into_iter().map(|status| status.url).collect();
    assert_eq!(urls, ["new", "stays"]);
}

#[test]
fn a_tracker_that_stays_keeps_its_place_in_time() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    a.on_success(job.id, &answer(600), Now::ZERO);
    let due = a.next_deadline().unwrap();
    assert_eq!(a.set_tiers(tiers(&[&["x"]]), Now::from_secs(5)), []);
    assert_eq!(a.next_deadline(), Some(due));
    assert_eq!(a.on_stopping()[0].url, "x", "it still knows us");
}

#[test]
fn an_announce_under_way_counts_for_a_tracker_that_stays_and_not_for_one_that_went() {
    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    assert_eq!(a.set_tiers(tiers(&[&["y"], &["x"]]), Now::ZERO), []);
    assert_eq!(a.next_announce(Now::ZERO), None, "one at a time");
    a.on_success(job.id, &answer(600), Now::ZERO);
    assert_eq!(a.status()[1].state, TrackerState::Working);

    let mut a = announcer(&[&["x"]]);
    let job = a.next_announce(Now::ZERO).unwrap();
    let goodbyes = a.set_tiers(tiers(&[&["y"]]), Now::ZERO);
    assert_eq!(goodbyes.len(), 1, "its started may have arrived");
    assert_eq!(a.next_announce(Now::ZERO).unwrap().url, "y");
    a.on_success(job.id, &answer(600), Now::ZERO);
    assert_eq!(a.status()[0].state, TrackerState::Announcing);
    assert_eq!(a.set_tiers(Vec::new(), Now::ZERO).len(), 1);
    assert_eq!(a.next_deadline(), None);
}

#[test]
fn what_a_tracker_was_told_in_an_earlier_run_is_not_told_again_before_its_time() {
    let now = Now::from_secs(10);
    let mut a = announcer(&[&["x"], &["y"]]);
    assert_eq!(a.standing(), None);
    a.resume("unknown", Now::from_secs(900), now);
    assert_eq!(a.next_deadline(), Some(Now::ZERO));
    a.resume("y", Now::from_secs(900), now);
    assert_eq!(a.standing(), Some(("y", Now::from_secs(900))));
    assert_eq!(a.next_announce(Now::from_secs(899)), None);
    a.on_want_peers();
    assert_eq!(a.next_announce(Now::from_secs(309)), None);
    let job = a.next_announce(Now::from_secs(310)).unwrap();
    assert_eq!((job.url.as_str(), job.event), ("y", None), "it knows us");
    assert_eq!(a.on_stopping()[0].url, "y");
}
