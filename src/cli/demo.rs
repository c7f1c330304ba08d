//! `temper demo`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use temper::api::{self, Control, DemoConfig, DemoSummary, Event, Phase, StopFlag};
use temper::report::units;

use super::device::DeviceArguments;
use super::print;
use super::show::Progress;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Where models, data and results are written
    #[arg(long, value_name = "DIR", default_value = "temper-demo")]
    pub out: PathBuf,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// A twentieth of the steps: to see that it runs, not how well it works
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// Runs the demonstration.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = DemoConfig::new(&arguments.out);
    config.seed = arguments.seed;
    config.quick = arguments.quick;
    let device = arguments.device.open()?;
    let stop = StopFlag::install()?;
    eprintln!("temper demo: learn made-up facts, remove the restricted ones, harden, attack (seed {})", config.seed);
    let mut progress = Progress::new("demo");
    let control = Control::new().stop_by(&stop).observe(|event| show(&mut progress, &event));
    let outcome = api::demo(&device, &config, control);
    progress.finish();
    print::text(&table(&outcome?, &arguments.out))
}

/// Each phase has a bar of its own.
fn show(progress: &mut Progress, event: &Event) -> ControlFlow<()> {
    match event {
        Event::Begin { phase, .. } => {
            *progress = Progress::new(&title(*phase));
            progress.show(event)
        }
        Event::End => {
            progress.finish();
            ControlFlow::Continue(())
        }
        _ => progress.show(event),
    }
}

fn title(phase: Phase) -> String {
    match phase {
        Phase::Pretrain => "pre-train".into(),
        Phase::Safeguard => "unlearn".into(),
        Phase::AttackUnlearned(name) => format!("attack unlearned: {name}"),
        Phase::AttackHardened(name) => format!("attack hardened: {name}"),
        _ => "harden".into(),
    }
}

/// The last thing that the user sees.
fn table(summary: &DemoSummary, out: &Path) -> String {
    // As wide as 100 %, so that the decimal points stand below one another.
    let percent = |share: f64| format!("{:>7}", units::percent(share));
    let mut rows =
        vec![["before any attack".into(), percent(summary.restricted.unlearned), percent(summary.restricted.hardened)]];
    rows.extend(summary.attacks.iter().map(|a| {
        let name = format!("after {}, {} steps", a.name, a.steps);
        [name, percent(a.unlearned_restricted), percent(a.hardened_restricted)]
    }));
    rows.push([
        "benign facts (higher is better)".into(),
        percent(summary.benign.unlearned),
        percent(summary.benign.hardened),
    ]);
    let header = ["restricted facts (lower is safer)", "plain safeguard", "hardened"];
    format!(
        "\n{}\nguessing gets {}; {}; report: {}\n",
        print::table(header, rows),
        units::percent(summary.chance),
        units::duration(summary.seconds),
        out.join("report.html").display()
    )
}
