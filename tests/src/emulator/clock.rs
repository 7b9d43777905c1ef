//! Dates in AWS's formats, without a calendar library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch.
pub(crate) fn millis() -> u64 {
    u64::try_from(since_epoch(SystemTime::now()).as_millis()).unwrap_or(u64::MAX)
}

/// The current time, formatted by [`iso8601`].
pub(crate) fn now() -> String {
    iso8601(SystemTime::now())
}

/// Formats a time such as `2026-01-31T23:59:59.042Z`.
pub(crate) fn iso8601(time: SystemTime) -> String {
    let since_epoch = since_epoch(time);
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Parses the basic format of `X-Amz-Date`, such as `20260131T235959Z`.
pub(crate) fn parse_basic(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || time.len() != 6 {
        return None;
    }
    let number = |text: &str, range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let (year, month, day) = (number(date, 0..4)?, number(date, 4..6)?, number(date, 6..8)?);
    let (hour, minute, second) = (number(time, 0..2)?, number(time, 2..4)?, number(time, 4..6)?);
    let in_range = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Days from the epoch to a date of the Gregorian calendar. Years are counted from March, so that the leap
/// day is the last day of a year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * DAYS_OF_ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_EPOCH
}

/// The year, month and day of a day after the epoch.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_EPOCH;
    let (era, of_era) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Seconds of a day.
const DAY: u64 = 86_400;

/// Days in 400 years.
const DAYS_OF_ERA: u64 = 146_097;

/// Days from 1 March of the year 0 to the epoch.
const DAYS_TO_EPOCH: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_written() {
        for (basic, seconds, iso) in [
            ("19700101T000000Z", 0, "1970-01-01T00:00:00.000Z"),
            ("20000229T120000Z", 951_825_600, "2000-02-29T12:00:00.000Z"),
            ("20150830T123600Z", 1_440_938_160, "2015-08-30T12:36:00.000Z"),
            ("20241231T235959Z", 1_735_689_599, "2024-12-31T23:59:59.000Z"),
            ("20260301T000001Z", 1_772_323_201, "2026-03-01T00:00:01.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_basic(basic), Some(time), "{basic}");
            assert_eq!(iso8601(time), iso);
        }
    }

    #[test]
    fn other_forms_are_no_dates() {
        for text in ["", "20150830", "2015-08-30T12:36:00Z", "20150830T123600", "20151330T123600Z"]
        {
            assert_eq!(parse_basic(text), None, "{text}");
        }
    }
}
