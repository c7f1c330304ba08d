//! Checks of single settings. Each finding names the key, the value and the remedy.

use crate::error::{Error, Result};

pub(crate) fn fault(key: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::config(key, problem, remedy)
}

pub(crate) fn at_least(key: &str, value: u64, least: u64) -> Result<()> {
    if value >= least { Ok(()) } else { Err(fault(key, format!("is {value}"), format!("use at least {least}"))) }
}

pub(crate) fn at_most(key: &str, value: u64, most: u64) -> Result<()> {
    if value <= most { Ok(()) } else { Err(fault(key, format!("is {value}"), format!("use at most {most}"))) }
}

pub(crate) fn fraction(key: &str, value: f64) -> Result<()> {
    let good = (0.0..=1.0).contains(&value);
    if good { Ok(()) } else { Err(fault(key, format!("is {value}"), "use a number from 0 to 1")) }
}

pub(crate) fn finite(key: &str, value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(fault(key, format!("is {value}"), "use a finite number")) }
}

pub(crate) fn positive(key: &str, value: f64) -> Result<()> {
    let good = value > 0.0 && value.is_finite();
    if good { Ok(()) } else { Err(fault(key, format!("is {value}"), "use a finite number above 0")) }
}

pub(crate) fn not_negative(key: &str, value: f64) -> Result<()> {
    let good = value >= 0.0 && value.is_finite();
    if good { Ok(()) } else { Err(fault(key, format!("is {value}"), "use a finite number, 0 or more")) }
}

pub(crate) fn betas(key: &str, values: [f64; 2]) -> Result<()> {
    let good = values.iter().all(|beta| (0.0..1.0).contains(beta));
    if good { Ok(()) } else { Err(fault(key, format!("is {values:?}"), "use two numbers, 0 or more and less than 1")) }
}

/// The first entry of a list that stands in it before.
pub(crate) fn repeated<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter().enumerate().find(|(index, entry)| list[..*index].contains(entry)).map(|(_, entry)| entry)
}
