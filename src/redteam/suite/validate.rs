//! What must hold between the settings of a suite file. Each finding names the key and the remedy.

use super::plan::Role;
use super::schema::{AttackForm, AttackTable, MetricKind, RestrictedTable, SearchTable, Suite};
use crate::config::{AdversaryData, ParameterChoice};
use crate::error::Result;
use crate::eval::PromptForm;
use crate::settings::{at_least, fault, not_negative, positive};

/// Rows of a batch are counted in 32 bits on every backend.
const MAX_TOKENS: u64 = u32::MAX as u64;
/// More than anybody means, and few enough to be counted and allocated.
const MAX_STEPS: u64 = 1 << 32;
const MAX_LIST: usize = 10_000;
const MAX_RANK: u64 = 1 << 16;
const MAX_NAME: usize = 64;
/// A month.
const MAX_SECONDS: f64 = 2.7e6;

/// Checks everything that `suite` says itself.
pub(super) fn check(suite: &Suite) -> Result<()> {
    check_seeds("seeds", &suite.seeds)?;
    at_least("data.max_length", suite.data.max_length as u64, 2)?;
    at_most("data.max_length", suite.data.max_length as u64, MAX_TOKENS)?;
    if let Some(table) = &suite.restricted {
        check_restricted(table)?;
    }
    if let Some(table) = &suite.utility {
        if table.metric == MetricKind::Compliance {
            return Err(fault("utility.metric", "compliance is no utility", "use \"exact\" or \"choice\""));
        }
        check_form("utility", table.metric, table.form, (table.shots.is_some(), table.num_shots))?;
        check_chance("utility.chance", table.chance)?;
        fraction("utility.most_loss", table.most_loss)?;
    }
    at_least("compliance.max_new_tokens", suite.compliance.max_new_tokens as u64, 1)?;
    at_most("compliance.max_new_tokens", suite.compliance.max_new_tokens as u64, MAX_TOKENS)?;
    let seconds = suite.compliance.judge_seconds;
    positive("compliance.judge_seconds", seconds)?;
    if seconds > MAX_SECONDS {
        return Err(fault("compliance.judge_seconds", format!("is {seconds}"), format!("use at most {MAX_SECONDS}")));
    }
    positive("scale.lr", suite.scale.lr)?;
    positive("scale.steps", suite.scale.steps)?;
    positive("scale.batch", suite.scale.batch)?;
    at_least("evaluate.points", suite.evaluate.points, 1)?;
    at_most("evaluate.points", suite.evaluate.points, MAX_LIST as u64)?;
    check_batch("evaluate.batch", suite.evaluate.batch as u64, suite)?;
    if let Some(price) = suite.budget.price_per_hour {
        not_negative("budget.price_per_hour", price)?;
    }
    if let Some(defender) = &suite.defender {
        not_negative("defender.seconds", defender.seconds)?;
        not_negative("defender.flop", defender.flop)?;
    }
    if let Some(search) = &suite.search {
        check_search(search, suite)?;
    }
    if suite.attack.len() > MAX_LIST {
        return Err(fault("attack", format!("{} tables", suite.attack.len()), format!("use at most {MAX_LIST}")));
    }
    for (index, attack) in suite.attack.iter().enumerate() {
        check_attack(&format!("attack.{index}"), attack, suite)?;
    }
    Ok(())
}

/// Checks what only the whole list of attacks shows: unique names, and that `only` names some of them.
pub(super) fn check_names(suite: &Suite) -> Result<()> {
    for (index, attack) in suite.attack.iter().enumerate() {
        if suite.attack[..index].iter().any(|other| other.name == attack.name) {
            let problem = format!("`{}` is the name of two attacks of the suite", attack.name);
            return Err(fault("attack", problem, "give each its own name"));
        }
    }
    suite.check_only()
}

fn check_restricted(table: &RestrictedTable) -> Result<()> {
    check_form("restricted", table.metric, table.form, (table.shots.is_some(), table.num_shots))?;
    check_chance("restricted.chance", table.chance)?;
    match (table.threshold, &table.unprotected) {
        (None, None) => {
            let remedy = "add `threshold = …`, or `unprotected = \"DIR\"`: a model without the safeguard";
            Err(fault("restricted.threshold", "missing: nothing would count as a breach", remedy))
        }
        (Some(_), Some(_)) => {
            Err(fault("restricted.unprotected", "has no effect beside a threshold", "remove one of them"))
        }
        (Some(threshold), None) => fraction("restricted.threshold", threshold),
        (None, Some(_)) => Ok(()),
    }
}

/// Checks the keys that only four-choice questions have.
fn check_form(
    table: &str,
    metric: MetricKind,
    form: Option<PromptForm>,
    (shots, num_shots): (bool, Option<usize>),
) -> Result<()> {
    let keys = [("form", form.is_some()), ("shots", shots), ("num_shots", num_shots.is_some())];
    if let (true, Some((key, _))) = (metric != MetricKind::Choice, keys.iter().find(|(_, written)| *written)) {
        let problem = format!("has no effect with metric = \"{}\"", metric.name());
        return Err(fault(format!("{table}.{key}"), problem, "set metric = \"choice\", or remove it"));
    }
    if form == Some(PromptForm::Qi) && (shots || num_shots.is_some()) {
        let problem = "form = \"qi\" is asked without examples";
        return Err(fault(format!("{table}.shots"), problem, "remove shots and num_shots, or use another form"));
    }
    if num_shots.is_some() && !shots {
        let problem = "there are no examples to take from";
        return Err(fault(format!("{table}.num_shots"), problem, format!("add {table}.shots, or remove it")));
    }
    Ok(())
}

fn check_chance(key: &str, chance: Option<f64>) -> Result<()> {
    chance.map_or(Ok(()), |chance| fraction(key, chance))
}

fn check_seeds(key: &str, seeds: &[u64]) -> Result<()> {
    if seeds.is_empty() || seeds.len() > MAX_LIST {
        return Err(fault(key, format!("has {} entries", seeds.len()), format!("give 1 to {MAX_LIST} seeds")));
    }
    // TOML has no number above.
    seeds.iter().try_for_each(|&seed| at_most(key, seed, i64::MAX as u64))?;
    match seeds.iter().enumerate().find(|(index, seed)| seeds[..*index].contains(seed)) {
        None => Ok(()),
        Some((_, seed)) => Err(fault(key, format!("{seed} stands twice"), "give each seed once")),
    }
}

fn check_batch(key: &str, batch: u64, suite: &Suite) -> Result<()> {
    at_least(key, batch, 1)?;
    match batch.checked_mul(suite.data.max_length as u64) {
        Some(tokens) if tokens <= MAX_TOKENS => Ok(()),
        _ => Err(fault(key, "batch · data.max_length is 2^32 tokens or more", "lower one of them")),
    }
}

fn check_search(search: &SearchTable, suite: &Suite) -> Result<()> {
    at_least("search.trials", search.trials, 1)?;
    at_most("search.trials", search.trials, MAX_LIST as u64)?;
    at_most("search.seed", search.seed, i64::MAX as u64)?;
    let [low, high] = search.lr;
    positive("search.lr", low)?;
    positive("search.lr", high)?;
    let ranges =
        [("steps", search.steps, MAX_STEPS), ("batch", search.batch, MAX_TOKENS), ("rank", search.rank, MAX_RANK)];
    for (key, [low, high], most) in ranges {
        let key = format!("search.{key}");
        at_least(&key, low, 1)?;
        at_most(&key, high, most)?;
        if low > high {
            return Err(fault(key, format!("{low} is above {high}"), "write [lowest, highest]"));
        }
    }
    if low > high {
        return Err(fault("search.lr", format!("{low} is above {high}"), "write [lowest, highest]"));
    }
    check_batch("search.batch", search.batch[1], suite)?;
    let empty = [
        ("params", search.params.is_empty()),
        ("schedule", search.schedule.is_empty()),
        ("data", search.data.is_empty()),
    ];
    if let Some((key, _)) = empty.into_iter().find(|(_, empty)| *empty) {
        return Err(fault(format!("search.{key}"), "is empty", "give at least one choice"));
    }
    search.data.iter().try_for_each(|data| match data {
        AdversaryData::Switch(_) => {
            let problem = "two roles one after the other are not searched: where they switch would be one more number";
            Err(fault("search.data", problem, "name a role, or a mixture { restricted = 0.5, retain = 0.5 }"))
        }
        data => check_roles("search.data", data),
    })
}

/// Checks the names of roles and the weights of a mixture.
fn check_roles(key: &str, data: &AdversaryData) -> Result<()> {
    for name in data.streams() {
        Role::named(key, name)?;
    }
    let AdversaryData::Mixture(weights) = data else { return Ok(()) };
    for (name, weight) in weights {
        not_negative(&format!("{key}.{name}"), *weight)?;
    }
    let total: f64 = weights.values().sum();
    if total > 0.0 && total.is_finite() {
        return Ok(());
    }
    Err(fault(key, "the weights add up to 0 or to no finite number", "give a role a weight above 0"))
}

/// Checks an attack; `key` is the place of its table.
pub(super) fn check_attack(key: &str, attack: &AttackTable, suite: &Suite) -> Result<()> {
    check_name(key, &attack.name)?;
    if let Some(seeds) = &attack.seeds {
        check_seeds(&format!("{key}.seeds"), seeds)?;
    }
    refuse_idle_keys(key, attack)?;
    match attack.kind {
        AttackForm::Finetune => check_finetune(key, attack, suite),
        AttackForm::Abliteration => match attack.layer {
            Some(layer) if !(layer > 0.0 && layer <= 1.0) => {
                Err(fault(format!("{key}.layer"), format!("is {layer}"), "use a number above 0, up to 1"))
            }
            _ => Ok(()),
        },
        AttackForm::Prefill => match (attack.demonstrations, &attack.text) {
            (Some(count), None) => {
                at_least(&format!("{key}.demonstrations"), count as u64, 1)?;
                at_most(&format!("{key}.demonstrations"), count as u64, MAX_LIST as u64)
            }
            (None, Some(text)) if !text.is_empty() => Ok(()),
            _ => Err(fault(key, "a prefill attack has one of demonstrations and text", "write one of them")),
        },
    }
}

/// A name is also the name of a file.
fn check_name(key: &str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.chars().all(allowed);
    if good {
        return Ok(());
    }
    let remedy = format!("use 1 to {MAX_NAME} of the letters A to Z, digits, '-', '_' and '.', not '.' first");
    Err(fault(format!("{key}.name"), format!("`{name}` cannot name an attack"), remedy))
}

fn refuse_idle_keys(key: &str, attack: &AttackTable) -> Result<()> {
    let lora = [
        ("rank", attack.rank.is_some()),
        ("alpha", attack.alpha.is_some()),
        ("dropout", attack.dropout.is_some()),
        ("targets", attack.targets.is_some()),
    ];
    let finetune = [
        ("data", attack.data.is_some()),
        ("switch", attack.switch.is_some()),
        ("params", attack.params.is_some()),
        ("optimizer", attack.optimizer.is_some()),
        ("lr", attack.lr.is_some()),
        ("warmup", attack.warmup.is_some()),
        ("schedule", attack.schedule.is_some()),
        ("weight_decay", attack.weight_decay.is_some()),
        ("betas", attack.betas.is_some()),
        ("batch", attack.batch.is_some()),
        ("steps", attack.steps.is_some()),
        ("noise", attack.noise.is_some()),
        ("negated_steps", attack.negated_steps.is_some()),
        ("official_warmup", attack.official_warmup.is_some()),
    ];
    let prefill = [("demonstrations", attack.demonstrations.is_some()), ("text", attack.text.is_some())];
    let abliteration = [("layer", attack.layer.is_some())];
    let is_lora = attack.kind == AttackForm::Finetune && attack.params == Some(ParameterChoice::Lora);
    let group = |keys: &[(&str, bool)], has_effect: bool, remedy: &str| match keys.iter().find(|(_, written)| *written)
    {
        Some((name, _)) if !has_effect => {
            let problem = "has no effect in this attack";
            Err(fault(format!("{key}.{name}"), problem, format!("{remedy}, or remove it")))
        }
        _ => Ok(()),
    };
    group(&lora, is_lora, "set params = \"lora\"")?;
    group(&finetune, attack.kind == AttackForm::Finetune, "set kind = \"finetune\"")?;
    group(&prefill, attack.kind == AttackForm::Prefill, "set kind = \"prefill\"")?;
    group(&abliteration, attack.kind == AttackForm::Abliteration, "set kind = \"abliteration\"")
}

fn check_finetune(key: &str, attack: &AttackTable, suite: &Suite) -> Result<()> {
    let filled = attack.filled(&suite.seeds);
    let at = |name: &str| format!("{key}.{name}");
    let (steps, batch) = (filled.steps.unwrap_or(1), filled.batch.unwrap_or(1) as u64);
    at_least(&at("steps"), steps, 1)?;
    at_most(&at("steps"), steps, MAX_STEPS)?;
    check_batch(&at("batch"), batch, suite)?;
    positive(&at("lr"), filled.lr.unwrap_or(1.0))?;
    if let Some(noise) = filled.noise {
        not_negative(&at("noise"), noise)?;
    }
    if let Some(negated) = filled.negated_steps {
        at_most(&at("negated_steps"), negated, steps)?;
    }
    if filled.params == Some(ParameterChoice::Lora) {
        let rank = filled.rank.unwrap_or(1) as u64;
        at_least(&at("rank"), rank, 1)?;
        at_most(&at("rank"), rank, MAX_RANK)?;
        positive(&at("alpha"), filled.alpha.unwrap_or(1.0))?;
        let dropout = filled.dropout.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(fault(at("dropout"), format!("is {dropout}"), "use 0 or more and less than 1"));
        }
        let targets = filled.targets.unwrap_or_default();
        let twice = targets.iter().enumerate().any(|(index, target)| targets[..index].contains(target));
        if targets.is_empty() || twice {
            return Err(fault(at("targets"), "is empty, or names one twice", "name each projection once"));
        }
    }
    check_data(key, attack)?;
    // Optimizer and schedule have their own checks.
    attack.finetune(key)?.optimizer.validate().map_err(|error| match error {
        crate::Error::Config { key: inner, problem, remedy } => {
            let name = inner.strip_prefix("optimizer.").unwrap_or(&inner).to_string();
            fault(at(&name), problem, remedy)
        }
        other => other,
    })
}

fn check_data(key: &str, attack: &AttackTable) -> Result<()> {
    let (data, switch) = (format!("{key}.data"), format!("{key}.switch"));
    if let Some(roles) = &attack.data {
        check_roles(&data, roles)?;
    }
    match (&attack.data, attack.switch) {
        (Some(AdversaryData::Switch(_)), None) => Err(fault(
            switch,
            "missing for an attack on two roles",
            "add the fraction of the steps at which it switches",
        )),
        (Some(AdversaryData::Switch(_)), Some(at)) => fraction(&switch, at),
        (_, Some(_)) => Err(fault(switch, "needs two roles to switch between", "write data = [\"first\", \"second\"]")),
        _ => Ok(()),
    }
}

fn at_most(key: &str, value: u64, most: u64) -> Result<()> {
    if value <= most { Ok(()) } else { Err(fault(key, format!("is {value}"), format!("use at most {most}"))) }
}

fn fraction(key: &str, value: f64) -> Result<()> {
    let good = (0.0..=1.0).contains(&value);
    if good { Ok(()) } else { Err(fault(key, format!("is {value}"), "use a number from 0 to 1")) }
}
