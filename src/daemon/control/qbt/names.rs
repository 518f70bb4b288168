//! Categories and tags as labels of the daemon: a label `category:NAME` is the category, every other one is a tag. Layer 6.

/// What a label begins with that is a category.
const CATEGORY: &str = "category:";
/// Characters of a category or tag: what the daemon takes for a label, less the prefix.
const NAME_CHARS_MAX: usize = 240;

/// The category among the labels; empty without one. Of several, the first.
pub fn category(labels: &[String]) -> &str {
    let mut found = labels
        .iter()
        .filter_map(|label| label.strip_prefix(CATEGORY));
    found.next().unwrap_or_default()
}

/// The others.
pub fn tags(labels: &[String]) -> impl Iterator<Item = &str> {
    let labels = labels.iter().map(String::as_str);
    labels.filter(|label| !label.starts_with(CATEGORY))
}

/// The labels with that category, none if it is empty.
pub fn with_category(labels: &[String], name: &str) -> Vec<String> {
    let mut all: Vec<String> = tags(labels).map(str::to_owned).collect();
    if !name.is_empty() {
        all.insert(0, format!("{CATEGORY}{name}"));
    }
    all
}

/// The labels with those tags besides.
pub fn with_tags(labels: &[String], more: &[&str]) -> Vec<String> {
    let mut all = labels.to_vec();
    for tag in more {
        if all.iter().all(|label| label != tag) {
            all.push((*tag).to_owned());
        }
    }
    all
}

/// The labels without those tags; without any when none is named. The category stays.
pub fn without_tags(labels: &[String], gone: &[&str]) -> Vec<String> {
    let stays = |label: &&String| {
        label.starts_with(CATEGORY) || !(gone.is_empty() || gone.contains(&label.as_str()))
    };
    labels.iter().filter(stays).cloned().collect()
}

/// Whether a category may be called that: a path of names, as qBittorrent has it, and one label.
pub fn is_category(name: &str) -> bool {
    let is_path = !name.starts_with('/') && !name.ends_with('/') && !name.contains("//");
    is_path && !name.contains('\\') && is_name(name)
}

/// Whether a tag may be called that.
pub fn is_tag(name: &str) -> bool {
    !name.starts_with(CATEGORY) && is_name(name)
}

fn is_name(name: &str) -> bool {
    let count = name.chars().count();
    let is_bad = |c: char| c == ',' || c.is_control();
    (1..=NAME_CHARS_MAX).contains(&count) && !name.contains(is_bad) && name.trim() == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_label_is_the_category_and_the_rest_are_tags() {
        let labels: Vec<String> = ["hd", "category:tv/a", "x"].map(str::to_owned).to_vec();
        assert_eq!(category(&labels), "tv/a");
        assert_eq!(tags(&labels).collect::<Vec<_>>(), ["hd", "x"]);
        assert_eq!(with_category(&labels, "b"), ["category:b", "hd", "x"]);
        assert_eq!(with_category(&labels, ""), ["hd", "x"]);
        assert_eq!(
            with_tags(&labels, &["x", "y"]),
            ["hd", "category:tv/a", "x", "y"]
        );
        assert_eq!(without_tags(&labels, &["x"]), ["hd", "category:tv/a"]);
        assert_eq!(without_tags(&labels, &[]), ["category:tv/a"]);
        assert_eq!(category(&[]), "");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for good in ["tv", "tv/hd", "tv-sonarr", "ä b"] {
            assert!(is_category(good) && is_tag(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a\\b",
            "a,b",
            "a\nb",
            " a",
            &"x".repeat(241),
        ] {
            assert!(!is_category(bad), "{bad}");
        }
        for bad in ["", "a,b", "category:x", "a\u{1b}[0m"] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}
