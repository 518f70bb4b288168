//! Sizes, rates and durations as users write and read them. Layer 7.

use std::time::Duration;

/// Powers of the units, both families. A single letter means the binary unit, as in most tools.
const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// Parses `16KiB`, `1.5MiB`, `2GB`, `4096`; units are case-insensitive and a single letter is binary.
///
/// # Errors
/// A sentence for the user.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| *scale)
        .ok_or("a size is a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 16KiB")?;
    scaled(number, scale)
}

/// Parses a size per second; `/s` may follow. 0 is no limit.
///
/// # Errors
/// A sentence for the user.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    parse_size(text.strip_suffix("/s").unwrap_or(text)).map_err(|why| {
        why.replace("a size is", "a rate is")
            .replace("16KiB", "10MiB")
    })
}

/// Parses `30s`, `10m`, `2h`, `1d`, `500ms`, `1h30m`; a plain number is seconds.
///
/// # Errors
/// A sentence for the user.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "a duration is a number with ms, s, m, h or d, such as 10m";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(WRONG.into());
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale_ms = match unit {
            "ms" => 1,
            "" | "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(WRONG.into()),
        };
        let part = scaled(number, scale_ms).map_err(|_| WRONG)?;
        total_ms = total_ms.checked_add(part).ok_or("that is too long")?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// A decimal number times a whole unit, in whole numbers so that nothing is lost to rounding.
fn scaled(number: &str, scale: u64) -> Result<u64, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err("a size is a number followed by a unit, such as 16KiB".into());
    }
    const TOO_LARGE: &str = "that number is too large";
    let whole: u64 = whole.parse().map_err(|_| TOO_LARGE)?;
    // Nine digits of a fraction are below a byte of any unit a user means.
    let digits = &fraction[..fraction.len().min(9)];
    let tail = if digits.is_empty() {
        0
    } else {
        let numerator: u128 = digits.parse().map_err(|_| TOO_LARGE)?;
        let denominator = digits.bytes().fold(1u128, |power, _| power * 10);
        u64::try_from(numerator * u128::from(scale) / denominator).map_err(|_| TOO_LARGE)?
    };
    whole
        .checked_mul(scale)
        .and_then(|bytes| bytes.checked_add(tail))
        .ok_or_else(|| TOO_LARGE.into())
}

/// `1.50 GiB`, `17.0 KiB`, `12 B`.
pub fn bytes(count: u64) -> String {
    const NAMES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut name = 0;
    while value >= 1023.95 && name + 1 < NAMES.len() {
        value /= 1024.0;
        name += 1;
    }
    let unit = NAMES.get(name).copied().unwrap_or("EiB");
    if value < 9.995 {
        format!("{value:.2} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// [`bytes`] without decimals where there is nothing behind the point: `16 KiB`.
pub fn round_bytes(count: u64) -> String {
    bytes(count)
        .replacen(".00 ", " ", 1)
        .replacen(".0 ", " ", 1)
}

/// `1.50GiB`, `17.0KiB`, `190MiB`: at most seven characters, for columns.
pub fn short_bytes(count: u64) -> String {
    let long = bytes(count);
    let (number, unit) = long.split_once(' ').unwrap_or((&long, ""));
    let number = match number.split_once('.') {
        Some((whole, _)) if whole.len() > 2 => whole,
        _ => number,
    };
    format!("{number}{unit}")
}

/// [`bytes`] per second.
pub fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", bytes(bytes_per_s))
}

/// `45s`, `12m03s`, `3h05m`, `2d04h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, s) = (seconds / 60, seconds % 60);
    let (hours, m) = (minutes / 60, minutes % 60);
    let (days, h) = (hours / 24, hours % 24);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s:02}s"),
        (0, _, _) => format!("{h}h{m:02}m"),
        _ => format!("{days}d{h:02}h"),
    }
}

/// Time left at this rate, if there is one to speak of.
pub fn eta(left_bytes: u64, bytes_per_s: u64) -> Option<String> {
    const SECONDS_MAX: u64 = 100 * 86_400; // past 100 days it is no estimate
    let seconds = left_bytes.checked_div(bytes_per_s)?;
    (seconds < SECONDS_MAX).then(|| duration(seconds))
}

/// `1 file`, `2 files`.
pub fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_binary_and_decimal_units() {
        assert_eq!(parse_size("16KiB"), Ok(16_384));
        assert_eq!(parse_size("1MiB"), Ok(1_048_576));
        assert_eq!(parse_size("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("2 gb"), Ok(2_000_000_000));
        assert_eq!(parse_size("1.5m"), Ok(1_572_864));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_rate("10MiB/s"), Ok(10_485_760));
    }

    #[test]
    fn nonsense_sizes_are_errors() {
        for text in [
            "",
            "KiB",
            "1XB",
            "-1",
            "1.",
            ".5",
            "1.2.3",
            "99999999999999999999",
            "20000000TiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_take_units_and_add_up() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("15"), Ok(Duration::from_secs(15)));
        for text in ["", "s", "10x", "1h m", "99999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes((1 << 30) - 1), "1.00 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(short_bytes(1023), "1023B");
        assert_eq!(short_bytes(1_047_552), "1023KiB");
        assert_eq!(short_bytes(200_000_000), "190MiB");
        assert_eq!(short_bytes(18 << 20), "18.0MiB");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(723), "12m03s");
        assert_eq!(duration(11_100), "3h05m");
        assert_eq!(duration(187_200), "2d04h");
        assert_eq!(eta(100, 0), None);
    }

    proptest! {
        #[test]
        fn whole_numbers_of_every_unit_are_exact(count in 0u64..1_000, unit in 0usize..UNITS.len()) {
            let (name, scale) = UNITS[unit];
            prop_assert_eq!(parse_size(&format!("{count}{name}")), Ok(count * scale));
            prop_assert_eq!(parse_size(&format!("{count} {}", name.to_uppercase())), Ok(count * scale));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,24}") {
            let _ = (parse_size(&text), parse_rate(&text), parse_duration(&text));
        }
    }
}
