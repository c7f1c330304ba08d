//! `temper report`.

use std::path::{Path, PathBuf};

use clap::Args;
use temper::error::one_line;
use temper::redteam::Results;
use temper::report::{Comparison, Found, read_results, units, write_beside_results, write_redteam_report};

use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Output directories of `temper redteam`
    #[arg(value_name = "DIR", required = true)]
    pub directories: Vec<PathBuf>,
    /// The page to write; where absent, everything beside the results.json of one run, or comparison.html of several
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes the report of a run again, or compares several.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let read = |directory: &PathBuf| Ok((directory.clone(), read_results(directory)?));
    let runs: Vec<(PathBuf, Results)> = arguments.directories.iter().map(read).collect::<temper::Result<_>>()?;
    let comparison = Comparison::of(&runs);
    let page = match (&arguments.out, runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [(directory, _)]) => directory.join("report.html"),
        (None, _) => PathBuf::from("comparison.html"),
    };
    match (runs.as_slice(), &arguments.out) {
        ([(directory, results)], None) => write_beside_results(directory, results)?,
        ([(_, results)], Some(_)) => write_redteam_report(&page, results)?,
        _ => comparison.write_report(&page, &runs)?,
    }
    if arguments.json { print::json(&comparison) } else { print::text(&describe(&comparison, &page)) }
}

fn describe(comparison: &Comparison, page: &Path) -> String {
    let names: Vec<String> = comparison.names().iter().map(|name| print::cell(name)).collect();
    let row = |first: &str, cells: &mut dyn Iterator<Item = String>| -> Vec<String> {
        std::iter::once(first.to_string()).chain(cells).map(|cell| print::cell(&cell)).collect()
    };
    let header = |first: &str| row(first, &mut names.iter().cloned());
    let overview = comparison.overview();
    let overview: Vec<Vec<String>> =
        overview.into_iter().map(|(name, cells)| row(&name, &mut cells.into_iter())).collect();
    let attacks: Vec<Vec<String>> =
        comparison.attacks.iter().map(|attack| row(&attack.name, &mut attack.runs.iter().map(found))).collect();
    let notes: String =
        comparison.differences.iter().map(|difference| format!("note: {}\n", one_line(difference))).collect();
    format!(
        "{}\n{}\n{notes}report: {}\n",
        print::table(header(""), overview),
        print::table(header("attack"), attacks),
        page.display()
    )
}

/// The highest restricted score within the utility floor, and what it means.
fn found(found: &Option<Found>) -> String {
    match found {
        None => "not in this run".into(),
        Some(found) => match found.restricted {
            Some(restricted) => format!("{}, {}", units::percent(restricted), found.outcome()),
            None => found.outcome(),
        },
    }
}
