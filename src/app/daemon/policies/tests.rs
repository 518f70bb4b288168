use super::*;
use crate::daemon::Places;

fn policies(text: &str) -> Result<Vec<Policy>, Failure> {
    let table = DeTable::parse(text).unwrap();
    let value = table.get_ref().get(POLICY).unwrap();
    let place = |at: usize| format!("line {}", text[..at].matches('\n').count() + 1);
    parse(value.get_ref(), place)
}

#[test]
fn the_printed_example_is_read() {
    let text = template();
    let lines = text.lines().skip_while(|line| !line.contains("[[policy]]"));
    let lines: Vec<&str> = lines.filter_map(|line| line.strip_prefix("# ")).collect();
    let read = policies(&lines.join("\n")).unwrap();
    let one = &read[0];
    assert_eq!(
        (one.cap_up_bytes_per_s, one.share),
        (Some(10_000_000), Some(5_000))
    );
    assert_eq!(
        one.places,
        Places {
            downloads: Some(3),
            seeds: Some(20)
        }
    );
    assert!(one.super_seeds);
    assert_eq!(one.slots, Some(8));
    let goal = one.goal.as_ref().unwrap();
    assert_eq!(goal.ratio, Some(2.0));
    assert_eq!(
        goal.then,
        Then::Throttle {
            up_bytes_per_s: 1_000_000
        }
    );
    let keys = lines
        .iter()
        .filter(|line| line.contains(" = ") && !line.starts_with("# "));
    assert_eq!(keys.count(), KEYS.len());
    // The same with the keys that stand for another end.
    let lines = lines.iter().filter(|line| !line.starts_with("throttle-up"));
    let text: Vec<String> = lines
        .map(|line| {
            line.replace("#hook", "hook")
                .replace("\"throttle\"", "\"hook\"")
        })
        .collect();
    let read = policies(&text.join("\n")).unwrap();
    let hook = Hook {
        argv: vec!["/usr/local/bin/done".into(), "WORD".into()],
        time_limit: Duration::from_secs(300),
    };
    assert_eq!(read[0].goal.as_ref().unwrap().then, Then::Run(hook));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, told) in [
        (
            "[[policy]]\ncap-up = \"1MB\"",
            "line 1: a policy has no name",
        ),
        (
            "[[policy]]\nname = \"a\"\ncap = 3",
            "line 3: a policy has no key cap",
        ),
        (
            "[[policy]]\nname = \"a\"\nshare = \"101%\"",
            "line 3: \"101%\" is no value of share",
        ),
        (
            "[[policy]]\nname = \"a\"\ncap-up = 0",
            "line 3: \"0\" is no value of cap-up",
        ),
        (
            "[[policy]]\nname = \"a\"\ncap-up = \"9000000TiB\"",
            "line 3: \"9000000TiB\" is no value of cap-up",
        ),
        (
            "[[policy]]\nname = \"a\"\nseed-queue-size = 0",
            "line 3: \"0\" is no value of seed-queue-size",
        ),
        (
            "[[policy]]\nname = \"a\"\nupload-slots = -1",
            "line 3: \"-1\" is no value of upload-slots",
        ),
        (
            "[[policy]]\nname = \"a\"\ndevice = \"sda1\"",
            "line 3: \"sda1\" is no value of device",
        ),
        (
            "[[policy]]\nname = \"a\"\nfolder = \"/srv/../etc\"",
            "line 3: \"/srv/../etc\" is no value of folder",
        ),
        (
            "[[policy]]\nname = \"a\"\nwhen = [\"mon\", \"noon\"]",
            "line 3: \"mon, noon\" is no value of when",
        ),
        (
            "[[policy]]\nname = \"a\"\ncap-up = [[1], {}]",
            "line 3: array is no value of cap-up",
        ),
        (
            "[[policy]]\nname = \"a\"\n[[policy]]\nname = \"a\"",
            "line 3: there are two policies named \"a\"",
        ),
        (
            "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"throttle\"",
            "line 1: the policy \"a\" throttles to no rate",
        ),
        (
            "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"hook\"",
            "line 1: the policy \"a\" runs no program",
        ),
        (
            "[[policy]]\nname = \"a\"\nratio = 1\nhook = [\"/bin/x\"]",
            "line 1: the policy \"a\" has a hook and does not run it",
        ),
        (
            "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"hook\"\nhook = \"sh -c x\"",
            "line 5: \"sh -c x\" is no value of hook",
        ),
        (
            "[[policy]]\nname = \"a\"\nthen = \"stop\"",
            "line 1: the policy \"a\" has no goal for then",
        ),
        (
            "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"burn\"",
            "line 1: the policy \"a\" ends with \"burn\", which is no value of then",
        ),
        (
            "[[policy]]\nname=\"a\"\nlabel=\"x\"\nshare=\"60%\"\n[[policy]]\nname=\"b\"\nlabel=\"y\"\nshare=\"50%\"",
            "line 1: the shares of policies of this kind are more than 100% together",
        ),
    ] {
        assert_eq!(policies(text).unwrap_err().message(), told, "{text}");
    }
    let many: String = (0..=POLICIES_MAX)
        .map(|n| format!("[[policy]]\nname = \"{n}\"\n"))
        .collect();
    let refused = policies(&many).unwrap_err();
    assert!(
        refused.message().ends_with("more than 256 policies"),
        "{refused:?}"
    );
}

#[test]
fn shares_are_parts_of_a_hundred() {
    assert_eq!(share("50%"), Ok(5_000));
    assert_eq!(share("0.01 %"), Ok(1));
    assert_eq!(share("100%"), Ok(SHARE_WHOLE));
    for bad in ["50", "0%", "100.01%", "1.234%", "-1%", "%", "9999999%"] {
        assert!(share(bad).is_err(), "{bad}");
    }
}

#[test]
fn shares_are_added_up_at_the_same_time_alone() {
    let two = |first: &str, other: &str| {
        policies(&format!(
            "[[policy]]\nname=\"a\"\nshare=\"60%\"\n{first}\n[[policy]]\nname=\"b\"\nshare=\"60%\"\n{other}\n"
        ))
    };
    assert!(two("when=\"08:00-17:00\"", "when=\"17:00-08:00\"").is_ok());
    assert!(two("when=\"08:00-17:00\"", "when=\"16:59-08:00\"").is_err());
    assert!(two("when=\"sat 08:00-09:00\"", "").is_err());
}
