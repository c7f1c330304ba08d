//! What must hold between the settings of a suite file. Each finding names the key and the remedy.

use super::attacks::Role;
use super::schema::{MetricKind, RestrictedTable, SearchTable, Suite};
use crate::config::{AttackForm, AttackTable, Texts};
use crate::data::{MAX_TOKENS, check_batch};
use crate::error::Result;
use crate::eval::PromptForm;
use crate::model::MAX_RANK;
use crate::settings::{at_least, at_most, fault, fraction, not_negative, positive, repeated};
use crate::training::{MAX_STEPS, Source};

/// Longer than anybody writes.
const MAX_LIST: usize = 10_000;
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
    check_judges(suite.compliance.judge.as_ref())?;
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
    at_least("evaluate.batch", suite.evaluate.batch as u64, 1)?;
    check_batch("evaluate.batch", suite.evaluate.batch, suite.data.max_length)?;
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

/// Checks the list of attacks as a whole: names are unique, and `only` names some of them.
pub(super) fn check_names(suite: &Suite) -> Result<()> {
    for (index, attack) in suite.attack.iter().enumerate() {
        if suite.attack[..index].iter().any(|other| other.name == attack.name) {
            let problem = format!("`{}` is the name of two attacks of the suite", attack.name);
            return Err(fault("attack", problem, "give each its own name"));
        }
    }
    suite.check_only()
}

fn check_judges(judges: Option<&Texts>) -> Result<()> {
    let Some(Texts(judges)) = judges else { return Ok(()) };
    let key = "compliance.judge";
    if judges.is_empty() || judges.iter().any(|judge| judge.trim().is_empty()) {
        return Err(fault(key, "names no judge", "write \"keywords\", a command, or a list of them"));
    }
    match repeated(judges) {
        None => Ok(()),
        Some(judge) => Err(fault(key, format!("`{judge}` stands twice"), "name each judge once")),
    }
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
    match repeated(seeds) {
        None => Ok(()),
        Some(seed) => Err(fault(key, format!("{seed} stands twice"), "give each seed once")),
    }
}

fn check_search(search: &SearchTable, suite: &Suite) -> Result<()> {
    at_least("search.trials", search.trials, 1)?;
    at_most("search.trials", search.trials, MAX_LIST as u64)?;
    at_most("search.seed", search.seed, i64::MAX as u64)?;
    let [low, high] = search.lr;
    positive("search.lr", low)?;
    positive("search.lr", high)?;
    let ranges = [
        ("steps", search.steps, MAX_STEPS),
        ("batch", search.batch, MAX_TOKENS),
        ("rank", search.rank, MAX_RANK as u64),
    ];
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
    check_batch("search.batch", usize::try_from(search.batch[1]).unwrap_or(usize::MAX), suite.data.max_length)?;
    let empty = [
        ("params", search.params.is_empty()),
        ("schedule", search.schedule.is_empty()),
        ("data", search.data.is_empty()),
    ];
    if let Some((key, _)) = empty.into_iter().find(|(_, empty)| *empty) {
        return Err(fault(format!("search.{key}"), "is empty", "give at least one choice"));
    }
    search.data.iter().try_for_each(|data| match data {
        data if data.streams().iter().any(|name| *name == Role::Measured.name()) => {
            let problem = "what is measured is not searched with";
            Err(fault("search.data", problem, "name data that attackers have"))
        }
        Source::Switch { .. } => {
            let problem = "two roles one after the other are not searched: where they switch would be one more number";
            Err(fault("search.data", problem, "name a role, or a mixture { restricted = 0.5, retain = 0.5 }"))
        }
        data => data.try_map(|name| Role::named("search.data", name), |()| Ok(()))?.check("search.data"),
    })
}

/// Checks an attack; `key` is the place of its table.
pub(super) fn check_attack(key: &str, attack: &AttackTable, suite: &Suite) -> Result<()> {
    check_name(key, &attack.name)?;
    if let Some(seeds) = &attack.seeds {
        check_seeds(&format!("{key}.seeds"), seeds)?;
    }
    attack.refuse_idle_keys(key)?;
    match attack.kind {
        AttackForm::Finetune => check_finetune(key, attack, suite),
        AttackForm::Abliteration => match (attack.layer, &attack.search) {
            (Some(layer), _) if !(layer > 0.0 && layer <= 1.0) => {
                Err(fault(format!("{key}.layer"), format!("is {layer}"), "use a number above 0, up to 1"))
            }
            (Some(_), Some(_)) => {
                Err(fault(format!("{key}.layer"), "has no effect beside a search", "remove it, or set search.depth"))
            }
            (_, Some(search)) => search.check(&format!("{key}.search")),
            _ => Ok(()),
        },
        AttackForm::Prefill => match (attack.demonstrations, &attack.text) {
            (Some(count), None) => {
                at_least(&format!("{key}.demonstrations"), count as u64, 1)?;
                at_most(&format!("{key}.demonstrations"), count as u64, MAX_LIST as u64)
            }
            (None, Some(Texts(texts))) if !texts.is_empty() => check_beginnings(key, texts),
            _ => Err(fault(key, "a prefill attack has one of demonstrations and text", "write one of them")),
        },
        AttackForm::Quantization => check_quantization(key, attack),
        AttackForm::Merge => check_merge(key, attack.coefficients.as_deref().unwrap_or_default()),
    }
}

fn check_beginnings(key: &str, texts: &[String]) -> Result<()> {
    let key = format!("{key}.text");
    if texts.len() > MAX_LIST {
        return Err(fault(key, format!("has {} entries", texts.len()), format!("use at most {MAX_LIST}")));
    }
    match texts.iter().find(|text| text.is_empty()).or(repeated(texts)) {
        None => Ok(()),
        Some(text) if text.is_empty() => Err(fault(key, "begins no answer", "write a text that is not empty")),
        Some(text) => Err(fault(key, format!("`{text}` stands twice"), "write each once")),
    }
}

fn check_quantization(key: &str, attack: &AttackTable) -> Result<()> {
    if let Some(bits) = attack.bits {
        at_least(&format!("{key}.bits"), bits.into(), 2)?;
        at_most(&format!("{key}.bits"), bits.into(), 8)?;
    }
    attack.group.map_or(Ok(()), |group| at_least(&format!("{key}.group"), group as u64, 1))
}

fn check_merge(key: &str, coefficients: &[f64]) -> Result<()> {
    let key = format!("{key}.coefficients");
    if coefficients.is_empty() || coefficients.len() > MAX_LIST {
        return Err(fault(key, format!("has {} entries", coefficients.len()), format!("give 1 to {MAX_LIST} numbers")));
    }
    match coefficients.iter().find(|coefficient| !coefficient.is_finite() || **coefficient == 0.0) {
        None => Ok(()),
        Some(wrong) => Err(fault(key, format!("one is {wrong}"), "use finite numbers; 0 is the model as it is")),
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

fn check_finetune(key: &str, attack: &AttackTable, suite: &Suite) -> Result<()> {
    let fine_tune = attack.row_fine_tune(key)?;
    fine_tune.check(key)?;
    let measured = fine_tune.source.streams().contains(&&Role::Measured);
    if measured && fine_tune.selection.held_out == 0.0 {
        let problem = "missing: an attack on the measured rows is scored on those that it does not train on";
        return Err(fault(format!("{key}.held_out"), problem, "add the share of them, such as 0.5"));
    }
    check_batch(&format!("{key}.batch"), fine_tune.batch.unwrap_or(1), suite.data.max_length)
}
