//! `temper demo`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use temper::backend::cpu::Cpu;
use temper::demo::{AttackCurve, AttackPlan, Event, Experiment, Facts, Outcome, Phase, Plan, write_handover};
use temper::huggingface::{ExportDType, write_model};
use temper::ops::Backend;
use temper::redteam::DefenderCost;
use temper::report::{AttackRow, DemoSummary, MetricsWriter, Stages, write_demo_report};
use temper::run::{self, signals::StopFlag};

use super::device::{DeviceArguments, on_device};
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
    let start = Instant::now();
    let plan = if arguments.quick { Plan::quick(arguments.seed) } else { Plan::full(arguments.seed) };
    let device = arguments.device.open()?;
    prepare(&arguments.out)?;
    let stop = StopFlag::install()?;
    let mut metrics = MetricsWriter::create(&arguments.out)?;
    eprintln!("temper demo: learn made-up facts, remove the restricted ones, harden, attack (seed {})", plan.seed);
    let mut watch = Stopwatch::default();
    let (name, outcome) =
        on_device!(device, backend => (backend.description(), course(backend, &plan, &stop, &mut metrics, &mut watch)));
    let outcome = outcome?;
    write_models(&arguments.out, &plan, &outcome, &name, &watch)?;
    write_handover(&arguments.out, &Facts::new(plan.seed), plan.seed)?;
    let summary = summary(&plan, &outcome, start.elapsed().as_secs_f64());
    summary.write(&arguments.out.join("summary.json"))?;
    write_demo_report(&arguments.out.join("report.html"), &plan, &outcome, &summary)?;
    print::text(&table(&summary, &arguments.out))?;
    Ok(())
}

/// Seconds that the defence took.
#[derive(Default)]
struct Stopwatch {
    begun: Option<(Phase, Instant)>,
    unlearn: f64,
    harden: f64,
}

impl Stopwatch {
    fn begin(&mut self, phase: Phase) {
        self.begun = Some((phase, Instant::now()));
    }

    fn end(&mut self) {
        match self.begun.take() {
            Some((Phase::Unlearn, start)) => self.unlearn += start.elapsed().as_secs_f64(),
            Some((Phase::Harden, start)) => self.harden += start.elapsed().as_secs_f64(),
            _ => {}
        }
    }
}

/// Writes the three models, and with the two defended ones what their defence cost.
fn write_models(out: &Path, plan: &Plan, outcome: &Outcome, device: &str, watch: &Stopwatch) -> temper::Result<()> {
    let model = Experiment::<Cpu>::model_config();
    let (unlearn, harden) = plan.defence_flop(&model);
    let cost = |seconds, flop| DefenderCost { seconds, flop, device: device.into() };
    let models = [
        ("pretrained", &outcome.pretrained_weights, None),
        ("unlearned", &outcome.unlearned_weights, Some(cost(watch.unlearn, unlearn))),
        ("hardened", &outcome.hardened_weights, Some(cost(watch.unlearn + watch.harden, unlearn + harden))),
    ];
    for (name, weights, cost) in models {
        let directory = out.join(name);
        write_model(&directory, &model, None, weights, ExportDType::F32)?;
        cost.map_or(Ok(()), |cost| cost.write(&directory))?;
    }
    Ok(())
}

/// The output directory must be new or empty.
fn prepare(out: &Path) -> temper::Result<()> {
    std::fs::create_dir_all(out).map_err(temper::Error::io("create", out))?;
    let mut entries = std::fs::read_dir(out).map_err(temper::Error::io("read", out))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            let problem = format!("{} is not empty", out.display());
            Err(temper::Error::config("--out", problem, "choose another directory, or remove it"))
        }
    }
}

/// Runs the course with progress, metrics, and an ear for Ctrl-C.
fn course<B: Backend>(
    backend: B,
    plan: &Plan,
    stop: &StopFlag,
    metrics: &mut MetricsWriter,
    watch: &mut Stopwatch,
) -> temper::Result<Outcome> {
    let (mut progress, mut phase) = (Progress::new("demo"), "");
    let outcome = Experiment::new(backend, plan.clone())?.run(&mut |event| {
        if stop.requested() {
            let remedy = "the demonstration keeps no checkpoints: run it again".into();
            return Err(temper::Error::Interrupted { at: format!("during: {phase}"), remedy });
        }
        match event {
            Event::Begin { phase: begun, attack, steps } => {
                phase = name(begun);
                watch.begin(begun);
                let title = attack.map_or(phase.to_string(), |attack| format!("{phase}: {attack}"));
                progress = Progress::new(&title);
                progress.show(&run::Event::Begin { from: 0, steps });
            }
            Event::Inner { step, of } => progress.show(&run::Event::Inner { step, of }),
            Event::Step { step, values } => {
                metrics.record(phase, step, &values)?;
                progress.show(&run::Event::Step { step, values: &values });
            }
            Event::End => {
                watch.end();
                progress.finish();
            }
        }
        Ok(())
    });
    progress.finish();
    outcome
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pretrain => "pre-train",
        Phase::Unlearn => "unlearn",
        Phase::Harden => "harden",
        Phase::AttackUnlearned => "attack unlearned",
        Phase::AttackHardened => "attack hardened",
    }
}

fn summary(plan: &Plan, outcome: &Outcome, seconds: f64) -> DemoSummary {
    let stages = |of: fn(&(f64, f64)) -> f64| Stages {
        pretrained: of(&outcome.pretrained),
        unlearned: of(&outcome.unlearned),
        hardened: of(&outcome.hardened),
    };
    let last = |curve: &AttackCurve| curve.restricted.last().copied().unwrap_or(f64::NAN);
    let row = |(attack, (plain, hard)): (&AttackPlan, &(AttackCurve, AttackCurve))| AttackRow {
        name: attack.name.clone(),
        steps: attack.steps,
        unlearned_restricted: last(plain),
        hardened_restricted: last(hard),
    };
    DemoSummary {
        seed: plan.seed,
        seconds,
        benign: stages(|both| both.1),
        restricted: stages(|both| both.0),
        chance: Facts::chance(),
        attacks: plan.attacks.iter().zip(&outcome.attacks).map(row).collect(),
    }
}

/// The last thing that the user sees.
fn table(summary: &DemoSummary, out: &Path) -> String {
    let percent = |x: f64| format!("{:5.1} %", 100.0 * x);
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
        "\n{}\nguessing gets {}; {:.0} s; report: {}\n",
        print::table(header, &rows),
        percent(summary.chance).trim(),
        summary.seconds,
        out.join("report.html").display()
    )
}
