//! Times of the week in which something counts. Layer 6, pure.

use std::fmt;
use std::str::FromStr;

/// Spans of one schedule.
pub const SPANS_MAX: usize = 32;
const DAY_MINUTES: u16 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const HINT: &str =
    "write days, hours or both, such as \"mon-fri 08:00-17:30\", \"sat sun\" or \"22:00-06:00\"";

/// A minute of the week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// From Monday as 0.
    pub day: u8,
    /// Of the day.
    pub minute: u16,
}

/// Some hours of some days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// A bit a day, Monday's lowest.
    days: u8,
    from_minute: u16,
    /// The first one behind it; at or before `from_minute` it is that of the next day.
    until_minute: u16,
}

impl Span {
    fn has_day(self, day: u8) -> bool {
        self.days >> (day % 7) & 1 == 1
    }

    fn holds(self, at: Moment) -> bool {
        let (from, until) = (self.from_minute, self.until_minute);
        let begins_today = self.has_day(at.day);
        match from < until {
            true => begins_today && (from..until).contains(&at.minute),
            false => {
                let began_yesterday = self.has_day(at.day + 6);
                (begins_today && at.minute >= from) || (began_yesterday && at.minute < until)
            }
        }
    }
}

impl FromStr for Span {
    /// What to write instead.
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let (mut days, mut hours) = (0, None);
        for word in text.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
            if !word.contains(':') {
                days |= days_of(&word.to_ascii_lowercase())?;
            } else if hours.replace(hours_of(word)?).is_some() {
                return Err("write other hours as another text of a list".to_owned());
            }
        }
        if days == 0 && hours.is_none() {
            return Err(HINT.to_owned());
        }
        let (from_minute, until_minute) = hours.unwrap_or((0, DAY_MINUTES));
        Ok(Span {
            days: if days == 0 { 0x7f } else { days },
            from_minute,
            until_minute,
        })
    }
}

fn days_of(word: &str) -> Result<u8, String> {
    let day = |word: &str| DAYS.iter().position(|day| *day == word).ok_or(HINT);
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (day(first)?, day(last)?);
    let count = (last + 7 - first) % 7 + 1;
    Ok((first..first + count).fold(0, |days, day| days | 1 << (day % 7)))
}

fn hours_of(word: &str) -> Result<(u16, u16), String> {
    let (from, until) = word.split_once('-').ok_or(HINT)?;
    let (from, until) = (minute_of(from)?, minute_of(until)?);
    if from == until || from == DAY_MINUTES {
        return Err("write the end of the hours behind their beginning".to_owned());
    }
    Ok((from, until))
}

fn minute_of(text: &str) -> Result<u16, String> {
    let (hours, minutes) = text.split_once(':').ok_or(HINT)?;
    let number = |text: &str| -> Option<u16> {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    let (hours, minutes) = number(hours).zip(number(minutes)).ok_or(HINT)?;
    let minute = hours * 60 + minutes;
    match minutes < 60 && minute <= DAY_MINUTES {
        true => Ok(minute),
        false => Err("write hours from 00:00 to 24:00".to_owned()),
    }
}

/// Times of the week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    spans: Vec<Span>,
    /// As they were written.
    words: String,
}

impl Schedule {
    /// Of texts that each name days, hours, or both.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Schedule, String> {
        let mut schedule = Schedule {
            spans: Vec::new(),
            words: String::new(),
        };
        for text in texts {
            schedule.spans.push(text.parse()?);
            if schedule.spans.len() > SPANS_MAX {
                return Err(format!("write at most {SPANS_MAX} texts"));
            }
            let between = if schedule.words.is_empty() { "" } else { "; " };
            schedule.words.push_str(between);
            schedule.words.push_str(text.trim());
        }
        Ok(schedule)
    }

    /// Whether it is one of its times.
    pub fn holds(&self, at: Moment) -> bool {
        self.spans.iter().any(|span| span.holds(at))
    }

    /// The first minute of each of its spans in a week.
    pub fn beginnings(&self) -> impl Iterator<Item = Moment> {
        self.spans.iter().flat_map(|span| {
            let days = (0..7).filter(|day| span.has_day(*day));
            days.map(|day| Moment {
                day,
                minute: span.from_minute,
            })
        })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(texts: &[&str]) -> Schedule {
        Schedule::parse(texts.iter().copied()).unwrap()
    }

    /// `"tue 13:30"`.
    fn at(text: &str) -> Moment {
        let (day, time) = text.split_once(' ').unwrap();
        Moment {
            day: DAYS.iter().position(|one| *one == day).unwrap() as u8,
            minute: minute_of(time).unwrap(),
        }
    }

    #[test]
    fn hours_hold_from_their_first_minute_to_the_one_before_their_end() {
        let work = schedule(&["mon-fri 08:00-17:30"]);
        for (moment, holds) in [
            ("mon 07:59", false),
            ("mon 08:00", true),
            ("fri 17:29", true),
            ("fri 17:30", false),
            ("sat 12:00", false),
        ] {
            assert_eq!(work.holds(at(moment)), holds, "{moment}");
        }
    }

    #[test]
    fn hours_through_midnight_belong_to_the_day_that_they_begin_on() {
        let night = schedule(&["fri,sun 22:00-06:00"]);
        for (moment, holds) in [
            ("fri 05:00", false),
            ("fri 22:00", true),
            ("sat 05:59", true),
            ("sat 06:00", false),
            ("sat 23:00", false),
            ("sun 23:59", true),
            ("mon 00:00", true),
            ("tue 00:00", false),
        ] {
            assert_eq!(night.holds(at(moment)), holds, "{moment}");
        }
    }

    #[test]
    fn days_wrap_and_whole_days_and_lists_are_times_too() {
        let times = schedule(&["SAT-Mon", "12:00-24:00"]);
        for (moment, holds) in [
            ("sat 00:00", true),
            ("mon 23:59", true),
            ("tue 11:59", false),
            ("tue 23:59", true),
        ] {
            assert_eq!(times.holds(at(moment)), holds, "{moment}");
        }
        assert_eq!(times.to_string(), "SAT-Mon; 12:00-24:00");
        assert_eq!(times.beginnings().count(), 3 + 7);
        assert!(times.beginnings().all(|moment| times.holds(moment)));
    }

    #[test]
    fn what_is_no_time_is_refused_with_words() {
        for bad in [
            "",
            "noon",
            "mon-",
            "8:00-9:00",
            "08:00",
            "08:00-08:00",
            "24:00-06:00",
            "08:60-09:00",
            "25:00-26:00",
            "08:00-09:00 10:00-11:00",
            "+8:00-09:00",
            "\u{0}",
        ] {
            let refused = bad.parse::<Span>();
            assert!(
                refused.is_err_and(|hint| hint.starts_with("write ")),
                "{bad}"
            );
        }
        let many = vec!["mon"; SPANS_MAX + 1];
        assert!(Schedule::parse(many.into_iter()).is_err());
    }
}
