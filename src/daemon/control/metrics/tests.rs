use super::*;
use crate::daemon::Policy;

#[test]
fn values_are_escaped_and_their_number_has_a_limit() {
    let mut sums = BTreeMap::new();
    for n in 0..500_u64 {
        let sum = Sum {
            torrents: 1,
            uploaded_bytes: n,
            ..Sum::default()
        };
        sums.insert(format!("a\"\n\u{1b}{n}"), sum);
    }
    let mut text = String::new();
    family(&mut text, "label", sums);
    let lines = text
        .lines()
        .filter(|line| line.starts_with("gyre_label_torrents"));
    assert_eq!(lines.count(), VALUES_MAX + 1);
    assert!(text.contains("gyre_label_torrents{label=\"other\"} 400"));
    assert!(text.contains("gyre_label_torrents{label=\"a\\\"\\n\u{fffd}001b499\"} 1"));
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn every_series_is_there_once() {
    let alike = [
        "x",
        "x\u{1}",
        "x\u{2}",
        "x\u{fffd}",
        "x\u{fffd}0001",
        "x\n",
        "x\\n",
    ];
    let numbered = (0..VALUES_MAX).map(|n| n.to_string());
    for values in [
        alike.map(str::to_owned).to_vec(),
        numbered.chain(["other".to_owned()]).collect(),
    ] {
        let mut text = String::new();
        let one = |value| {
            let sum = Sum {
                torrents: 1,
                ..Sum::default()
            };
            (value, sum)
        };
        let count = values.len();
        family(&mut text, "label", values.into_iter().map(one).collect());
        let lines = text.lines().filter_map(|line| line.rsplit_once("} "));
        let series: std::collections::BTreeSet<&str> = lines.map(|(series, _)| series).collect();
        assert_eq!(series.len(), count * Sum::default().figures().len());
        assert_eq!(text.matches("label=").count(), series.len(), "{text}");
    }
    // Less than all have room.
    let values = (0..VALUES_MAX * 2).map(|n| n.to_string());
    let values = values.chain(["other".to_owned()]);
    let busy = Sum {
        torrents: 1,
        up_bytes_per_s: 1,
        ..Sum::default()
    };
    let mut text = String::new();
    family(
        &mut text,
        "label",
        values.map(|value| (value, busy)).collect(),
    );
    let lines = text.lines();
    let others: Vec<&str> = lines
        .filter(|line| line.starts_with("gyre_label_torrents{label=\"other\"}"))
        .collect();
    assert_eq!(others, ["gyre_label_torrents{label=\"other\"} 101"]);
}

#[test]
fn a_policy_has_its_figures_and_the_limits_that_it_has() {
    let policy = Policy {
        name: "a\"b".into(),
        cap_up_bytes_per_s: Some(10),
        ..Policy::default()
    };
    let figures = PolicyFigures {
        torrents: 3,
        uploaded_bytes: 7,
        ..PolicyFigures::of(policy, true)
    };
    let mut text = String::new();
    policies(&mut text, &[figures]);
    for line in [
        "gyre_policy_in_force{policy=\"a\\\"b\"} 1",
        "gyre_policy_torrents{policy=\"a\\\"b\"} 3",
        "gyre_policy_uploaded_bytes{policy=\"a\\\"b\"} 7",
        "gyre_policy_upload_limit_bytes_per_second{policy=\"a\\\"b\"} 10",
        "# TYPE gyre_policy_upload_slots gauge",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(!text.contains("gyre_policy_upload_slots{"));
}

#[test]
fn histograms_count_upwards_and_end_with_all() {
    let mut health = Health::default();
    for us in [90, 240, 9_000, 5_000_000] {
        health.loop_lag.add(us);
    }
    health.stages[1].add(300);
    let mut text = String::new();
    inside(&mut text, &health);
    for line in [
        "gyre_loop_lag_seconds_bucket{le=\"0.0001\"} 1",
        "gyre_loop_lag_seconds_bucket{le=\"0.00025\"} 2",
        "gyre_loop_lag_seconds_bucket{le=\"0.01\"} 3",
        "gyre_loop_lag_seconds_bucket{le=\"1\"} 3",
        "gyre_loop_lag_seconds_bucket{le=\"+Inf\"} 4",
        "gyre_loop_lag_seconds_sum 5.00933",
        "gyre_loop_lag_seconds_count 4",
        "gyre_request_stage_seconds_bucket{stage=\"read\",le=\"0.0005\"} 1",
        "gyre_request_stage_seconds_count{stage=\"read\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

/// Names of metrics in a text, with what belongs to a histogram.
fn names(text: &str) -> std::collections::BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    words
        .filter(|word| word.starts_with("gyre_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn the_dashboard_asks_for_nothing_that_is_not_there() {
    let source = include_str!("../metrics.rs").split("#[cfg(test)]").next();
    let dashboard = include_str!("../../../../scripts/grafana.json");
    let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 8);
    let mut shown = String::new();
    inside(&mut shown, &Health::default());
    process(&mut shown, Path::new("/proc/self"));
    policies(&mut shown, &[]);
    for label in ["label", "tracker"] {
        family(&mut shown, label, BTreeMap::new());
    }
    let there: std::collections::BTreeSet<&str> = names(&shown)
        .union(&names(source.unwrap()))
        .copied()
        .collect();
    let asked = names(dashboard);
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        assert!(there.contains(name), "the dashboard asks for {name}");
    }
}
