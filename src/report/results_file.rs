//! `results.json` of a red-team run, and what is written beside it.

use std::path::Path;

use serde_json::Value;

use super::{tamperbench, write_redteam_report};
use crate::error::{Error, Result};
use crate::files::write_json;
use crate::redteam::{READABLE, Results, SCHEMA, Summary};

const NAME: &str = "results.json";

/// Writes `results.json` and everything beside it into a directory.
pub fn write_results(directory: &Path, results: &Results) -> Result<()> {
    write_json(&directory.join(NAME), results)?;
    write_beside_results(directory, results)
}

/// Writes what is made from a `results.json` and stands beside it: `attacks.parquet`, `trial_results.json` and
/// `report.html`.
pub fn write_beside_results(directory: &Path, results: &Results) -> Result<()> {
    tamperbench::write_attacks(&directory.join("attacks.parquet"), results)?;
    write_json(&directory.join("trial_results.json"), &tamperbench::trial_results(results))?;
    write_redteam_report(&directory.join("report.html"), results)
}

/// Reads the `results.json` of a run's output directory. What the attacks of an older version's file amount to is worked out
/// anew.
///
/// # Errors
/// Where there is none, or it is not one that this version reads.
pub fn read_results(directory: &Path) -> Result<Results> {
    let path = directory.join(NAME);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && directory.is_dir() => {
            let remedy = "name the output directory of a red-team run";
            return Err(Error::input(directory, "there is no results.json in it", remedy));
        }
        Err(source) => return Err(Error::Io { action: "read", path, source }),
    };
    let json = |error: serde_json::Error, remedy| Error::input(&path, format!("cannot be read: {error}"), remedy);
    let value: Value = serde_json::from_slice(&text)
        .map_err(|error| json(error, "it must be what `temper redteam` wrote: run it again with `resume`"))?;
    match value.get("schema").and_then(Value::as_str) {
        Some(schema) if READABLE.contains(&schema) => {}
        Some(other) => {
            let readable = READABLE.join(" and ");
            let remedy =
                format!("this version reads {readable}: use the version that wrote it, or run the suite again");
            return Err(Error::input(&path, format!("its schema is `{other}`"), remedy));
        }
        None => {
            let remedy = "name the output directory of a red-team run";
            return Err(Error::input(&path, "it has no `schema`: it is not the result of a red-team run", remedy));
        }
    }
    let mut results: Results = serde_json::from_slice(&text)
        .map_err(|error| json(error, "it was changed by hand or cut short: run the suite again with `resume`"))?;
    if results.schema != SCHEMA {
        let Results { goal, before, attacks, summary, .. } = &results;
        results.summary = Summary::of(goal, before, attacks, summary.defender.clone());
    }
    Ok(results)
}
