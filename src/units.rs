//! Numbers for people: durations, counts and shares with three significant digits, and durations read
//! from a command line.
//!
//! What is printed here is never wider than [`DURATION_WIDTH`], [`COUNT_WIDTH`] and [`PERCENT_WIDTH`]
//! columns, so that tables can be laid out before the numbers are known.

use std::time::Duration;

/// Widest output of [`duration`] for anything below 1000 days.
pub const DURATION_WIDTH: usize = 6;
/// Widest output of [`count`].
pub const COUNT_WIDTH: usize = 5;
/// Widest output of [`percent`].
pub const PERCENT_WIDTH: usize = 5;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * S;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `812ns`, `1.20µs`, `20.1ms`, `4.36s`, `2m05s`, `3h07m`, `4d04h`.
pub fn duration(ns: u64) -> String {
    // Each unit ends where rounding would print the next one: 999.6 µs is 1.00ms, not 1000µs.
    if ns < US {
        format!("{ns}ns")
    } else if ns < 999_500 {
        format!("{}µs", three_digits(ns, US))
    } else if ns < 999_500 * US {
        format!("{}ms", three_digits(ns, MS))
    } else if ns < 59_950 * MS {
        format!("{}s", three_digits(ns, S))
    } else if ns < HOUR - S / 2 {
        let seconds = rounded(ns, S);
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else if ns < 100 * HOUR - MINUTE / 2 {
        let minutes = rounded(ns, MINUTE);
        format!("{}h{:02}m", minutes / 60, minutes % 60)
    } else if ns < 100 * DAY - HOUR / 2 {
        let hours = rounded(ns, HOUR);
        format!("{}d{:02}h", hours / 24, hours % 24)
    } else {
        format!("{}d", rounded(ns, DAY))
    }
}

/// [`duration`], or `-` for what is not known.
pub fn duration_or_dash(ns: Option<u64>) -> String {
    ns.map_or_else(|| "-".to_string(), duration)
}

/// `1234`, `12.3k`, `4.56M`.
pub fn count(n: u64) -> String {
    if n < 10_000 {
        return n.to_string();
    }
    let mut unit = 1_000u64;
    for (index, suffix) in ["k", "M", "G", "T", "P", "E"].iter().enumerate() {
        // As in `duration`; the last unit has no next one.
        let next = if index == 5 { u64::MAX } else { unit * 999 + unit / 2 };
        if n < next || index == 5 {
            return format!("{}{suffix}", three_digits(n, unit));
        }
        unit *= 1_000;
    }
    unreachable!("the last unit takes whatever is left")
}

/// A share from 0 to 1: `0%`, `<0.1%`, `12.3%`, `100%`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent <= 0.0 {
        "0%".to_string()
    } else if percent < 0.1 {
        "<0.1%".to_string()
    } else if percent >= 99.95 {
        "100%".to_string()
    } else {
        format!("{percent:.1}%")
    }
}

fn rounded(value: u64, unit: u64) -> u64 {
    value / unit + u64::from(value % unit >= unit.div_ceil(2))
}

/// `value / unit` with three significant digits; `value` is at least `unit` and rounds to less than 1000 of it.
fn three_digits(value: u64, unit: u64) -> String {
    let value = u128::from(value);
    let unit = u128::from(unit);
    let hundredths = (value * 100 + unit / 2) / unit;
    if hundredths < 1_000 {
        return format!("{}.{:02}", hundredths / 100, hundredths % 100);
    }
    let tenths = (value * 10 + unit / 2) / unit;
    if tenths < 1_000 {
        return format!("{}.{}", tenths / 10, tenths % 10);
    }
    ((value + unit / 2) / unit).to_string()
}

/// Reads `10`, `500ms`, `1.5s`, `2m`, `1h`; a number alone is seconds.
///
/// The error is a sentence that quotes the input. Zero is refused: there is nothing to measure in it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "write a duration like 10, 500ms, 1.5s, 2m or 1h (a number alone is seconds)";
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(format!("`{text}` is negative: {HELP}"));
    }
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(format!("`{text}` is not a duration: {HELP}"));
    }
    let scale = match unit.trim() {
        "ns" => 1,
        "us" | "µs" | "μs" => US,
        "ms" => MS,
        "" | "s" => S,
        "m" | "min" => MINUTE,
        "h" => HOUR,
        other => return Err(format!("`{text}`: unknown unit `{other}`: {HELP}")),
    };
    let too_long = || format!("`{text}` is too long: durations end at 584 years");
    let mut ns = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| too_long())? }
        .checked_mul(scale)
        .ok_or_else(too_long)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        // Digits below a nanosecond change nothing.
        place /= 10;
        ns = ns.checked_add(u64::from(digit - b'0') * place).ok_or_else(too_long)?;
    }
    if ns == 0 {
        return Err(format!("`{text}` is zero: there is nothing to measure in it"));
    }
    Ok(Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_significant_digits() {
        for (ns, text) in [
            (0, "0ns"),
            (812, "812ns"),
            (1_000, "1.00µs"),
            (1_204, "1.20µs"),
            (12_340, "12.3µs"),
            (123_400, "123µs"),
            (20_149_000, "20.1ms"),
            (4_360_000_000, "4.36s"),
            (59_900_000_000, "59.9s"),
            (125_000_000_000, "2m05s"),
            (3_599 * S, "59m59s"),
            (3 * HOUR + 7 * MINUTE, "3h07m"),
            (100 * HOUR, "4d04h"),
            (1000 * DAY, "1000d"),
        ] {
            assert_eq!(duration(ns), text, "{ns}");
        }
    }

    #[test]
    fn rounding_up_takes_the_next_unit() {
        for (ns, text) in [
            (9_999, "10.0µs"),
            (99_960, "100µs"),
            (999_499, "999µs"),
            (999_500, "1.00ms"),
            (999_600_000, "1.00s"),
            (59_960_000_000, "1m00s"),
            (HOUR - 1, "1h00m"),
            (100 * HOUR - 1, "4d04h"),
        ] {
            assert_eq!(duration(ns), text, "{ns}");
        }
    }

    #[test]
    fn no_duration_below_a_thousand_days_is_wider_than_promised() {
        let mut ns = 1u64;
        while ns < 999 * DAY {
            for near in [ns - 1, ns, ns + 1] {
                assert!(duration(near).chars().count() <= DURATION_WIDTH, "{near}: {}", duration(near));
            }
            ns += ns / 97 + 1;
        }
    }

    #[test]
    fn counts_are_never_wider_than_promised() {
        for (n, text) in [
            (0, "0"),
            (9_999, "9999"),
            (12_345, "12.3k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (4_560_000, "4.56M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(n), text);
        }
        let mut n = 1u64;
        while n < u64::MAX / 2 {
            assert!(count(n).len() <= COUNT_WIDTH, "{n}: {}", count(n));
            n += n / 97 + 1;
        }
    }

    #[test]
    fn a_small_share_is_not_shown_as_zero() {
        for (share, text) in [
            (0.0, "0%"),
            (0.000_01, "<0.1%"),
            (0.001, "0.1%"),
            (0.123_4, "12.3%"),
            (0.999_6, "100%"),
            (1.0, "100%"),
        ] {
            assert_eq!(percent(share), text);
            assert!(percent(share).len() <= PERCENT_WIDTH);
        }
    }

    #[test]
    fn durations_are_read_with_and_without_units() {
        for (text, ns) in [
            ("10", 10 * S),
            ("500ms", 500 * MS),
            ("1.5s", 1_500 * MS),
            (".5", 500 * MS),
            ("2m", 2 * MINUTE),
            ("1h", HOUR),
            ("250us", 250 * US),
            ("1.0000000004s", S),
            (" 3 s ", 3 * S),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_positive_duration_is_refused_and_quoted() {
        for (text, part) in [
            ("0", "zero"),
            ("0.0ms", "zero"),
            ("-5s", "negative"),
            ("", "not a duration"),
            ("abc", "not a duration"),
            (".", "not a duration"),
            ("1.2.3s", "not a duration"),
            ("5 parsecs", "unknown unit `parsecs`"),
            ("1m30s", "unknown unit `m30s`"),
            ("99999999999h", "too long"),
            ("99999999999999999999999", "too long"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(&format!("`{text}`")), "{text}: {error}");
        }
    }
}
