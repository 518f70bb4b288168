use super::*;

fn row(trackers: &[&str], labels: &[&str]) -> TorrentRow {
    TorrentRow {
        tiers: vec![trackers.iter().map(|url| (*url).to_owned()).collect()],
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..TorrentRow::default()
    }
}

fn policy(name: &str, tracker: Option<&str>, label: Option<&str>) -> Policy {
    Policy {
        name: name.to_owned(),
        tracker: tracker.map(str::to_owned),
        label: label.map(str::to_owned),
        ..Policy::default()
    }
}

const MONDAY: Moment = Moment { day: 0, minute: 0 };
const TUESDAY: Moment = Moment { day: 1, minute: 0 };

fn of_policies(policies: Vec<Policy>) -> Book {
    Book::new(policies, MONDAY)
}

#[test]
fn all_that_fit_a_torrent_count_from_the_tracker_down() {
    let book = of_policies(vec![
        policy("label", None, Some("tv")),
        policy("both", Some("a.example"), Some("tv")),
        policy("tracker", Some("a.example"), None),
        policy("all", None, None),
    ]);
    let of = |row: TorrentRow| -> Vec<String> {
        let of = book.of(&row);
        of.iter().map(|one| one.policy.name.clone()).collect()
    };
    let url = "http://T.A.example:80/announce";
    assert_eq!(
        of(row(&[url], &["tv"])),
        ["all", "tracker", "label", "both"]
    );
    assert_eq!(of(row(&["udp://a.example:1"], &[])), ["all", "tracker"]);
    assert_eq!(of(row(&["http://ba.example/"], &["tv"])), ["all", "label"]);
    assert_eq!(of(row(&["http://example/"], &[])), ["all"]);
}

#[test]
fn a_policy_keeps_its_number_and_no_other_gets_it() {
    let book = of_policies(vec![policy("a", None, None), policy("b", None, None)]);
    let before = book.of(&row(&[], &[]));
    let same = vec![policy("a", None, None), policy("b", None, None)];
    assert!(!book.replace(same, MONDAY));
    let others = vec![policy("c", None, None), policy("b", None, None)];
    assert!(book.replace(others, MONDAY));
    let after = book.of(&row(&[], &[]));
    assert_eq!(before[1], after[1]);
    assert!(before.iter().all(|one| one.id != after[0].id));
}

#[test]
fn a_folder_and_a_device_are_above_trackers() {
    let folder = Policy {
        folder: Some("/srv/a".into()),
        ..policy("folder", None, None)
    };
    let device = Policy {
        device: Some("/mnt".into()),
        ..policy("device", None, None)
    };
    let tracker = policy("tracker", Some("a.example"), None);
    let book = of_policies(vec![tracker, device.clone(), folder.clone()]);
    let of = |folder: &str| -> Vec<String> {
        let row = TorrentRow {
            folder: folder.into(),
            ..row(&["udp://a.example:1"], &[])
        };
        let of = book.of(&row);
        of.iter().map(|one| one.policy.name.clone()).collect()
    };
    assert_eq!(of("/srv/a/tv"), ["folder", "tracker"]);
    assert_eq!(of("/srv/ab"), ["tracker"]);
    // Nobody knows what is on the device before it was looked at.
    let there: Folders = [PathBuf::from("/srv/a"), PathBuf::from("/b")].into();
    let id = book.devices()[0].0;
    assert_eq!(
        book.set_folders(&[(id, there.clone())].into(), there.clone()),
        there
    );
    assert!(book.has_looked_at(Path::new("/b")) && book.have_devices());
    assert_eq!(of("/srv/a"), ["device", "folder", "tracker"]);
    assert_eq!(of("/b"), ["device", "tracker"]);
    // Other policies know it too, as long as it is the same device.
    book.replace(vec![device.clone()], MONDAY);
    assert_eq!(of("/b"), ["device"]);
    let other = Policy {
        device: Some("/other".into()),
        ..device
    };
    book.replace(vec![other], MONDAY);
    assert!(of("/b").is_empty());
}

#[test]
fn limits_count_in_their_times_alone() {
    let on_tuesdays = Policy {
        schedule: Schedule::parse(["tue"].into_iter()).ok(),
        cap_up_bytes_per_s: Some(5),
        share: Some(100),
        slots: Some(3),
        places: Places {
            downloads: Some(1),
            seeds: None,
        },
        ..policy("tuesdays", None, None)
    };
    let always = Policy {
        cap_up_bytes_per_s: Some(7),
        ..policy("always", None, None)
    };
    let book = of_policies(vec![on_tuesdays, always]);
    let caps = || -> Vec<Option<u64>> { book.rules().up.values().map(|rule| rule.cap).collect() };
    assert!(book.have_schedules() && !book.have_places());
    assert_eq!(caps(), [None, Some(7)]);
    assert!(book.keep_time(MONDAY).is_empty());
    let changed = book.keep_time(TUESDAY);
    assert_eq!(changed.len(), 1);
    assert!(changed[0].is_on && changed[0].policy.name == "tuesdays");
    assert!(book.have_places() && book.with_places().len() == 1);
    assert_eq!(book.rules().slots.values().collect::<Vec<_>>(), [&3]);
    assert_eq!(caps(), [Some(5), Some(7)]);
    assert_eq!(book.of(&row(&[], &[])).len(), 2, "it is for them always");
    assert_eq!(book.keep_time(MONDAY).len(), 1);
    assert!(book.with_places().is_empty(), "nobody waits by it any more");
    assert_eq!(caps(), [None, Some(7)]);
}

#[test]
fn a_goal_is_the_ratio_or_the_time_whichever_comes_first() {
    let goal = Goal {
        ratio: Some(2.0),
        time: Some(Duration::from_secs(60)),
        then: Then::Stop,
    };
    let deeds = |uploaded_bytes, seeded| Deeds {
        uploaded_bytes,
        downloaded_bytes: 50,
        wanted_bytes: 100,
        seeded: Some(Duration::from_secs(seeded)),
    };
    assert!(!goal.is_reached(&deeds(199, 59)));
    assert!(goal.is_reached(&deeds(200, 0)));
    assert!(goal.is_reached(&deeds(0, 60)));
}
