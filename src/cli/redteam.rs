//! `temper redteam`.

use std::path::{Path, PathBuf};

use clap::Args;
use temper::api::{self, Control, RedteamConfig, StopFlag};
use temper::redteam::suite::{Attack, BUILT_IN, Suite, about};
use temper::redteam::{AttackResult, Least, Outcome, Results};
use temper::report::units;
use temper::{Error, Result};

use super::device::DeviceArguments;
use super::show::Progress;
use super::{parse, print};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The suite file; where there is none, everything comes from --suite, --data and --set
    #[arg(value_name = "SUITE.toml")]
    pub file: Option<PathBuf>,
    /// Built-in suite to start from: quick, strong, strong-2026, tar-weaponization or tar-refusal
    #[arg(long, value_name = "NAME")]
    pub suite: Option<String>,
    /// The model to attack: a Hugging Face directory
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    pub model: Option<PathBuf>,
    /// Where results are written
    #[arg(long, value_name = "DIR", default_value = "temper-redteam")]
    pub out: PathBuf,
    /// Run these attacks of the suite, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Seeds of attacks that name none, separated by commas
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    pub seeds: Vec<u64>,
    /// Attacks side by side on the CPU, each with an equal share of the threads; as many as there are cores where not given
    #[arg(long, value_name = "N", value_parser = parse::count)]
    pub jobs: Option<usize>,
    /// What attackers have, by role: restricted=FILE, retain=FILE, ood=FILE
    #[arg(long, value_name = "ROLE=FILE")]
    pub data: Vec<String>,
    /// Override a key of the suite file: evaluate.points=4, scale.steps=0.1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the attacks of the suite with all their settings and stop; without a suite, the built-in suites
    #[arg(long)]
    pub list: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Go on with what is in the output directory: finished attacks are not repeated
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// Attacks a model with a suite.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list && arguments.file.is_none() && arguments.suite.is_none() {
        return list_suites();
    }
    let suite = arguments.suite()?;
    if arguments.list {
        return list(&suite.all_attacks()?, arguments.json);
    }
    let model = arguments.model.clone().unwrap_or_default();
    let device = arguments.device.open()?;
    let mut config = RedteamConfig::new(suite, model, &arguments.out);
    config.jobs = arguments.jobs;
    config.command = command_line();
    let stop = StopFlag::install()?;
    let mut progress = Progress::new("redteam");
    let control = Control::new().resume(arguments.resume).stop_by(&stop).observe(|event| progress.show(&event));
    let outcome = api::redteam(&device, &config, control);
    progress.finish();
    let results = outcome?;
    if arguments.json {
        return print::json(&results);
    }
    print::text(&format!("{}\n{}", table(&results), verdict(&results, &arguments.out)))
}

impl Arguments {
    /// The suite that they describe.
    fn suite(&self) -> Result<Suite> {
        let mut overrides: Vec<String> = self.suite.iter().map(|name| format!("suite={}", quoted(name))).collect();
        if !self.only.is_empty() {
            let names: Vec<String> = self.only.iter().map(|name| quoted(name)).collect();
            overrides.push(format!("only=[{}]", names.join(", ")));
        }
        if !self.seeds.is_empty() {
            let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
            overrides.push(format!("seeds=[{}]", seeds.join(", ")));
        }
        for data in &self.data {
            let Some((role, file)) = data.split_once('=') else {
                return Err(Error::config("--data", format!("`{data}` has no `=`"), "write --data ROLE=FILE"));
            };
            let file = std::path::absolute(file).map_err(Error::io("find", file))?;
            overrides.push(format!("data.{}={}", role.trim(), quoted(&file.to_string_lossy())));
        }
        overrides.extend(self.overrides.iter().cloned());
        match &self.file {
            Some(path) => Suite::load(path, &overrides),
            None => Suite::from_text("", Path::new("command line"), &overrides),
        }
    }
}

/// A text as TOML (and JSON) writes it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The command line as a shell takes it.
fn command_line() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    let quote = |argument: String| {
        let needs_none = argument.chars().all(plain) && !argument.is_empty();
        if needs_none { argument } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    };
    let arguments = std::env::args_os().skip(1).map(|argument| quote(argument.to_string_lossy().into_owned()));
    std::iter::once("temper".to_string()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn list_suites() -> anyhow::Result<()> {
    let row = |(name, _): &(&str, &str)| Ok([name.to_string(), about(name)?]);
    let rows: Vec<[String; 2]> = BUILT_IN.iter().map(row).collect::<Result<_>>()?;
    print::text(&print::table(["suite", "what it is"], rows))
}

fn list(attacks: &[Attack], json: bool) -> anyhow::Result<()> {
    if json {
        let row = |attack: &Attack| {
            serde_json::json!({
                "id": attack.id, "name": attack.name, "about": attack.about, "kind": attack.kind, "seed": attack.seed,
                "settings": attack.settings, "unavailable": attack.unavailable,
            })
        };
        return print::json(&attacks.iter().map(row).collect::<Vec<_>>());
    }
    let row = |attack: &Attack| {
        let settings: Vec<String> = attack.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let about = match &attack.unavailable {
            Some(reason) => format!("{} [not run: {reason}]", attack.about),
            None => attack.about.clone(),
        };
        [attack.id.clone(), attack.kind.name().into(), format!("{about}\n    {}", settings.join(" ").replace('"', ""))]
    };
    let rows: Vec<[String; 3]> = attacks.iter().map(row).collect();
    print::text(&print::table(["attack", "kind", "what it is, and its settings"], rows))
}

/// A table with one row for each attack.
fn table(results: &Results) -> String {
    let rows: Vec<[String; 6]> = results.attacks.iter().map(|attack| row(attack, results)).collect();
    print::table(["attack", "kind", "steps", "restricted", "utility", "breached"], rows)
}

fn row(attack: &AttackResult, results: &Results) -> [String; 6] {
    let steps = attack.settings.get("steps").map_or("-".into(), |steps| steps.to_string());
    let [restricted, utility, breached] = match &attack.outcome {
        Outcome::Failed { error, .. } => ["-".into(), "-".into(), format!("failed: {error}")],
        Outcome::Skipped { reason } => ["-".into(), "-".into(), format!("not run: {reason}")],
        Outcome::Done { curve, breach, .. } => {
            let best = results.goal.best(curve).map_or(&results.before, |point| &point.scores);
            let way = format!("{} -> {}", units::percent(results.before.restricted), units::percent(best.restricted));
            let end = breach.as_ref().map_or("no".into(), |cost| units::after_steps(cost.steps));
            [way, units::percent(best.utility), end]
        }
    };
    [attack.id.clone(), attack.kind.name().into(), steps, restricted, utility, breached]
}

/// A line with a least cost.
fn least(what: &str, least: &Least, words: &dyn Fn(f64) -> String) -> String {
    let tried = least.alone != least.value;
    let alone = if tried { format!(", {} by itself", words(least.alone)) } else { String::new() };
    format!("  {what:<10} {} ({}{alone})", words(least.value), least.attack)
}

/// The conclusion in a few lines: how many attacks breached the model, and at what cost.
fn verdict(results: &Results, out: &Path) -> String {
    let Results { goal, summary, before, .. } = results;
    let mut lines = vec![format!(
        "before: restricted {}, utility {}; breached from {} at utility {} or more",
        units::percent(before.restricted),
        units::percent(before.utility),
        units::percent(goal.threshold),
        units::percent(goal.utility_floor)
    )];
    let counts = [("failed", summary.failed), ("not run", summary.skipped)];
    let more = counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!(", {count} {what}"));
    lines.push(format!("{} of {} attacks breached it{}", summary.breached, summary.done, more.collect::<String>()));
    if let Some(cost) = &summary.cost_to_breach {
        lines.push("cost to breach, the least of each over all attacks, with what was tried in vain before:".into());
        lines.push(least("steps", &cost.steps, &units::count));
        lines.push(least("samples", &cost.examples, &units::count));
        lines.push(least("tokens", &cost.tokens, &units::count));
        lines.push(least("arithmetic", &cost.flop, &units::flop));
        lines.push(least("time", &cost.hours, &|hours| units::duration(3600.0 * hours)));
        if let Some(price) = &cost.price {
            lines.push(least("price", price, &|price| units::price(price, &goal.currency)));
        }
    }
    if let Some(defender) = &summary.defender {
        let flop = units::flop(defender.flop);
        let time = units::duration(defender.seconds);
        lines.push(format!("the defence cost {flop} and {time} on {}", defender.device));
    }
    if let Some(share) = summary.attacker_per_defender_flop {
        lines.push(format!("arithmetic of the cheapest breach against the defence's: {}", units::ratio(share, 1.0)));
    }
    lines.push(format!("results: {}\n", out.join("results.json").display()));
    lines.join("\n")
}
