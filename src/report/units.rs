//! Numbers as people read them, on pages and on terminals. Files for programs hold the numbers themselves.
//!
//! A no-break space stands between a number and its unit, so that no line ends between them.

use std::fmt::Display;

use indicatif::DecimalBytes;
use serde_json::Value;

/// A number and its unit, which stay on one line.
fn with_unit(number: impl Display, unit: impl Display) -> String {
    format!("{number}\u{a0}{unit}")
}

/// A share as a percentage with one decimal.
pub fn percent(share: f64) -> String {
    with_unit(format_args!("{:.1}", 100.0 * share), "%")
}

/// A share as a percentage without decimals.
pub(super) fn whole_percent(share: f64) -> String {
    with_unit(format_args!("{:.0}", 100.0 * share), "%")
}

/// A number of bytes in the unit that suits it, in powers of 1000 as memory is sold.
pub fn bytes(count: u64) -> String {
    DecimalBytes(count).to_string().replace(' ', "\u{a0}")
}

/// Floating-point operations in the unit that suits them.
pub fn flop(count: f64) -> String {
    let units = [(1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")];
    match units.iter().find(|(size, _)| count >= *size) {
        Some((size, name)) => with_unit(significant(count / size, 4), name),
        None => with_unit(format_args!("{count:.0}"), "FLOP"),
    }
}

/// A time in the unit that suits it.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => with_unit(significant(1e3 * s, 2), "ms"),
        s if s < 120.0 => with_unit(format_args!("{s:.1}"), "s"),
        s if s < 7200.0 => with_unit(format_args!("{:.1}", s / 60.0), "min"),
        s => with_unit(format_args!("{:.1}", s / 3600.0), "h"),
    }
}

/// A whole number with its thousands apart.
pub fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number < 0.0 { "-".to_string() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && digits.chars().all(|c| c.is_ascii_digit()) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number rounded to so many significant digits, in scientific notation where it is far from 1.
pub fn significant(number: f64, digits: usize) -> String {
    if number == 0.0 {
        return "0".into();
    }
    let magnitude = number.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        return format!("{number:.*e}", digits.saturating_sub(1));
    }
    let decimals = (digits as f64 - 1.0 - magnitude).max(0.0) as usize;
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A price, with cents, or finer where it is less than some of them.
pub fn price(value: f64, currency: &str) -> String {
    match value {
        v if v == 0.0 || v >= 0.1 => with_unit(format_args!("{v:.2}"), currency),
        v => with_unit(significant(v, 2), currency),
    }
}

/// When an attack breached a model.
pub fn after_steps(steps: u64) -> String {
    match steps {
        0 => "without a training step".into(),
        1 => "after 1 step".into(),
        steps => format!("after {} steps", count(steps as f64)),
    }
}

/// How one cost compares with another: "3.1 times", "1/830".
pub fn ratio(numerator: f64, denominator: f64) -> String {
    match numerator / denominator {
        r if !r.is_finite() => "—".into(),
        r if r >= 1.0 => with_unit(significant(r, 2), "times"),
        r if r > 0.0 => format!("1/{}", count((1.0 / r).round())),
        _ => "0".into(),
    }
}

/// A setting's value.
pub fn setting(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(x) if x != 0.0 && x.abs() < 1e-2 => format!("{x:e}"),
            Some(x) => x.to_string(),
            None => number.to_string(),
        },
        Value::Array(values) => values.iter().map(setting).collect::<Vec<_>>().join(", "),
        Value::Object(parts) => {
            parts.iter().map(|(name, value)| format!("{name} {}", setting(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// A short label for an axis: 600, 1.5k, 2M, 10G.
pub(super) fn label(x: f64) -> String {
    let units = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(size, _)| x.abs() >= *size) {
        Some((_, "E")) if x.abs() >= 1e21 => format!("{x:.0e}"),
        Some((size, name)) => format!("{}{name}", significant(x / size, 3)),
        None => significant(x, 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0, -1234.0].map(count), ["0", "999", "1,000", "1,234,567", "-1,234"]);
        assert_eq!(count(f64::INFINITY), "inf");
        assert_eq!(
            [0.00123, 0.5, 12.34, 123_456.0, 1.5e-7].map(|x| significant(x, 2)),
            ["0.0012", "0.5", "12", "123456", "1.5e-7"]
        );
        let plain = |text: String| text.replace('\u{a0}', " ");
        assert_eq!([0.0021, 3.04, 300.0, 1e5].map(duration).map(plain), ["2.1 ms", "3.0 s", "5.0 min", "27.8 h"]);
        let prices = [0.0, 0.000_284, 12.3].map(|x| price(x, "USD"));
        assert_eq!(prices.map(plain), ["0.00 USD", "0.00028 USD", "12.30 USD"]);
        let ratios = [(1.0, 830.0), (3.1, 1.0), (0.0, 2.0)].map(|(a, b)| ratio(a, b));
        assert_eq!(ratios.map(plain), ["1/830", "3.1 times", "0"]);
        assert_eq!([0, 999, 12_345, 141_000_000_000].map(bytes).map(plain), ["0 B", "999 B", "12.35 kB", "141.00 GB"]);
        assert_eq!([percent(0.1234), whole_percent(0.25)], ["12.3\u{a0}%", "25\u{a0}%"]);
        assert_eq!([600.0, 1500.0, 2e6, 1e10, 0.0].map(label), ["600", "1.5k", "2M", "10G", "0"]);
        assert_eq!(setting(&serde_json::json!([2e-5, 0.4, 16, "adamw"])), "2e-5, 0.4, 16, adamw");
        assert_eq!(setting(&serde_json::json!({"retain": 0.5, "ood": 2})), "retain 0.5, ood 2");
    }
}
