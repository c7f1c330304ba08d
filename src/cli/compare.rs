//! `temper compare`.

use std::path::PathBuf;

use clap::Args;
use temper::api::{self, CompareConfig, Control, DefenceComparison, StopFlag};
use temper::error::one_line;
use temper::report::ComparedSuite;

use super::device::DeviceArguments;
use super::print;
use super::show::Progress;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The comparison file
    #[arg(value_name = "COMPARE.toml")]
    pub file: PathBuf,
    /// Where models, results and the comparison are written
    #[arg(long, value_name = "DIR", default_value = "temper-compare")]
    pub out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Go on with what is in the output directory: finished models and attacks are not repeated, new defences and suites run
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// Compares defences.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = CompareConfig::load(&arguments.file)?;
    let device = arguments.device.open()?;
    let stop = StopFlag::install()?;
    let mut progress = Progress::new("compare");
    let control = Control::new().resume(arguments.resume).stop_by(&stop).observe(|event| progress.show(&event));
    let outcome = api::compare(&device, &config, &arguments.out, control);
    progress.finish();
    let comparison = outcome?;
    if arguments.json {
        return print::json(&comparison);
    }
    let page = arguments.out.join("comparison.html");
    print::text(&format!("{}report: {}\n", describe(&comparison), page.display()))
}

fn describe(comparison: &DefenceComparison) -> String {
    comparison.suites.iter().map(suite).collect()
}

fn suite(suite: &ComparedSuite) -> String {
    let cell = |(text, note): (String, String)| {
        let both = if note.is_empty() { text } else { format!("{text} ({note})") };
        print::cell(&both)
    };
    let rows: Vec<Vec<String>> = suite.rows().into_iter().map(|row| row.into_iter().map(cell).collect()).collect();
    let notes: String =
        suite.differences.iter().map(|difference| format!("note: {}\n", one_line(difference))).collect();
    let comparable = if suite.comparable { "" } else { " (not comparable)" };
    format!("suite {}{comparable}\n{}\n{notes}", suite.name, print::table(ComparedSuite::header(), rows))
}
