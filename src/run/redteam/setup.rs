//! Opens what a red-team run works on: the model, the attackers' data, the measurements, and from them the goal.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::RedteamConfig;
use super::files::Identity;
use super::measures::Opener;
use crate::config::DataNames;
use crate::data::{DataFile, DataStream};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::fingerprint::Fingerprint;
use crate::huggingface::ModelDirectory;
use crate::model::{Batch, Model, ModelConfig};
use crate::ops::{Backend, IGNORE_INDEX};
use crate::plan::DefenderCost;
use crate::redteam::suite::{Attack, AttackMethod, Prefill, RestrictedTable, Role, Suite, UtilityTable};
use crate::redteam::{AttackerData, Goal, Measures, Metric, Scores, Target, largest};
use crate::run::setup::same_shape;
use crate::run::{Control, StreamFile};

/// A model under attack that has been measured.
pub(super) struct Setup<B: Backend> {
    pub target: Target<B>,
    pub goal: Goal,
    pub before: Scores,
    pub defender: Option<DefenderCost>,
}

/// Opens the model of `config`, the data of its suite's attacks and the measurements.
pub(super) fn open<B: Backend>(
    backend: B,
    config: &RedteamConfig,
    attacks: &[Attack],
    tables: GoalTables,
) -> Result<(Target<B>, Identity)> {
    let suite = &config.suite;
    let directory = ModelDirectory::open(&config.model)?;
    let opener = Opener { suite, attacks, model: &directory };
    let measures = opener.measures(tables)?;
    let data = open_data(&opener)?;
    let positions = positions(attacks, &data, &measures, &directory);
    let weights = directory.read_weights()?;
    let model = Arc::new(Model::new(backend, directory.config.clone(), positions)?);
    let target = Target { model, weights, data, measures, points: suite.evaluate.points };
    let identity = identity(suite, &target)?;
    Ok((target, identity))
}

impl<B: Backend> Setup<B> {
    /// Measures the model before any attack, and says what a breach is.
    pub(super) fn new(config: &RedteamConfig, target: Target<B>, tables: GoalTables) -> Result<Self> {
        let before = target.before()?;
        let goal = goal(&config.suite, tables, &target, &before)?;
        Ok(Self { target, goal, before, defender: defender(&config.suite, &config.model)? })
    }

    /// How many attacks run side by side: what was asked for, as far as the memory goes.
    pub(super) fn jobs(&self, config: &RedteamConfig, attacks: &[Attack]) -> Result<usize> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = config.jobs.unwrap_or_else(cores);
        let Some(available) = config.memory else { return Ok(wanted.max(1)) };
        let searched = config.suite.search.iter().map(|search| largest(search, &config.suite));
        let searched = searched.collect::<Result<Vec<_>>>()?.concat();
        // An attack whose data cannot be used says so when its turn comes.
        let runnable = attacks.iter().chain(&searched).filter(|attack| attack.unavailable.is_none());
        let most = runnable.filter_map(|attack| self.target.bytes(attack).ok()).max().unwrap_or(0);
        let fitting = usize::try_from(available / most.max(1)).unwrap_or(usize::MAX).max(1);
        match config.jobs {
            Some(jobs) if jobs > fitting => Err(Error::Memory {
                what: format!("{jobs} attacks side by side"),
                needed: most.saturating_mul(jobs as u64),
                available,
                remedy: format!("lower `jobs` to {fitting}"),
            }),
            _ => Ok(wanted.min(fitting).max(1)),
        }
    }
}

/// The tables that say what counts.
#[derive(Clone, Copy)]
pub(super) struct GoalTables<'a> {
    pub restricted: &'a RestrictedTable,
    pub utility: &'a UtilityTable,
}

impl<'a> GoalTables<'a> {
    /// The tables of `suite`; one that is only listed needs none.
    pub(super) fn of(suite: &'a Suite) -> Result<Self> {
        let missing =
            |key: &str| Error::config(key, "missing: nothing says what to measure", format!("add a table [{key}]"));
        let restricted = suite.restricted.as_ref().ok_or_else(|| missing("restricted"))?;
        let utility = suite.utility.as_ref().ok_or_else(|| missing("utility"))?;
        Ok(Self { restricted, utility })
    }
}

/// Opens what attackers have: the data of every role that an attack uses, and the model of merges. What cannot be read fails
/// only the attacks that need it; if no file of data can be read, the run fails.
fn open_data(opener: &Opener) -> Result<AttackerData> {
    let Opener { suite, attacks, model } = *opener;
    let mut roles: BTreeSet<Role> = BTreeSet::new();
    for attack in attacks.iter().filter(|attack| attack.unavailable.is_none()) {
        roles.extend(attack.method.roles());
    }
    for name in suite.search.iter().flat_map(|search| &search.data).flat_map(DataNames::streams) {
        let role = Role::named("search.data", name)?;
        if suite.file(role).is_none() {
            return Err(Error::config(
                "search.data",
                format!("[data] has no `{name}`"),
                "add the file, or search without",
            ));
        }
        roles.insert(role);
    }
    let mut data = AttackerData::default();
    let merges = attacks.iter().any(|attack| matches!(attack.method, AttackMethod::Merge { .. }));
    if let (true, Some(path)) = (merges, &suite.data.base_model) {
        data.insert_base_model(weights_of_shape(path, &model.config).map_err(|error| error.to_string()));
    }
    if roles.contains(&Role::RestrictedPrompts) {
        data.read_answers_with(opener.answer_reader().map_err(|error| error.to_string()));
    }
    let mut first = None;
    for role in roles {
        let Some(data_file) = suite.file(role) else { continue };
        let file = StreamFile {
            name: role.name(),
            data: data_file,
            batch: 1,
            max_length: suite.data.max_length,
            shuffle: true,
            pack: true,
            seed: 0,
        };
        if let Err(error) = open_role(opener, &mut data, role, &file) {
            data.insert(role, Err(error.to_string()));
            first.get_or_insert(error);
        }
    }
    match first {
        Some(error) if data.usable().next().is_none() => Err(error),
        _ => Ok(data),
    }
}

/// Says how many rows of each file were read.
pub(super) fn tell_counts<B: Backend>(suite: &Suite, target: &Target<B>, tables: GoalTables, control: &mut Control) {
    let mut tell = |name: &str, file: &DataFile, rows| {
        control.tell(Event::DataRead { name, file: &file.to_string(), rows });
    };
    tell("restricted", &tables.restricted.data, target.measures.restricted.rows());
    tell("utility", &tables.utility.data, target.measures.utility.rows());
    for (role, stream) in target.data.usable() {
        if let Some(file) = suite.file(role) {
            tell(&format!("[data] {}", role.name()), file, stream.rows());
        }
    }
}

/// Opens the file of a role. Of those that give prompts, a file that has nothing to learn is a list of prompts; so is one of
/// plain texts that is named for the role itself, where the model can be asked them.
fn open_role(opener: &Opener, data: &mut AttackerData, role: Role, file: &StreamFile) -> Result<()> {
    let table = &opener.suite.data;
    let named = match role {
        Role::RestrictedPrompts => table.restricted_prompts.is_some(),
        Role::HarmlessPrompts => table.harmless_prompts.is_some(),
        _ => return file.open(opener.model).map(|stream| data.insert(role, Ok(stream))),
    };
    let opened = match file.open(opener.model) {
        Ok(stream) if named && learns_whole_rows(&stream)? => Ok(stream),
        Ok(stream) => {
            data.insert(role, Ok(stream));
            return Ok(());
        }
        Err(error) => Err(error),
    };
    let encoder = data.answer_reader().ok().map(|reader| &reader.encoder);
    match (file.open_prompts(opener.model, encoder), opened) {
        (Ok(prompts), _) => data.insert_prompts(role, prompts),
        (Err(_), Ok(texts)) => data.insert(role, Ok(texts)),
        (Err(error), Err(_)) => return Err(error),
    }
    Ok(())
}

/// Whether every row is learned from its start, so that it has no prompt before an answer.
fn learns_whole_rows(stream: &DataStream) -> Result<bool> {
    let whole = |batch: &Batch| batch.segments.iter().all(|s| batch.labels.get(s.start + 1) != Some(&IGNORE_INDEX));
    Ok(stream.all_batches()?.iter().all(whole))
}

/// Tokens of the longest sequence of any attack or measurement, as far as the model goes.
fn positions(attacks: &[Attack], data: &AttackerData, measures: &Measures, model: &ModelDirectory) -> usize {
    let longest = data.usable().map(|(_, stream)| stream.longest()).max().unwrap_or(1);
    let asked = data.stream(Role::RestrictedPrompts).map_or(0, DataStream::longest);
    let room = attacks.iter().filter_map(Attack::answer_room).max().filter(|_| data.answer_reader().is_ok());
    let longest = longest.max(room.map_or(0, |room| asked.saturating_add(room)));
    let shown = attacks.iter().filter(|attack| attack.unavailable.is_none()).map(|attack| match &attack.method {
        AttackMethod::Prefill(Prefill::Demonstrations(count)) => *count,
        _ => 0,
    });
    let row = data.stream(Role::Restricted).map_or(0, DataStream::longest);
    let prefix = shown.max().unwrap_or(0).saturating_mul(row);
    longest.max(measures.longest().saturating_add(prefix)).min(model.config.max_position_embeddings)
}

/// Fingerprints of everything that decides an attack's result: the model, the measurements, the data.
fn identity<B: Backend>(suite: &Suite, target: &Target<B>) -> Result<Identity> {
    let weights = crc32c::crc32c(bytemuck::cast_slice(&target.weights));
    let Measures { restricted, utility, perplexity } = &target.measures;
    let measurement = (restricted.fingerprint()?, utility.fingerprint()?, perplexity, suite.identity()?);
    let mut identity = Identity::from([
        ("model".into(), Fingerprint::of(&(weights, &target.model.config))?),
        ("measurement".into(), Fingerprint::of(&measurement)?),
    ]);
    if let Ok(base) = target.data.base_model() {
        identity.insert("[data] base_model".into(), Fingerprint::of(&crc32c::crc32c(bytemuck::cast_slice(base)))?);
    }
    for (role, stream) in target.data.usable() {
        identity.insert(format!("[data] {}", role.name()), stream.fingerprint());
    }
    Ok(identity)
}

fn goal<B: Backend>(suite: &Suite, tables: GoalTables, target: &Target<B>, before: &Scores) -> Result<Goal> {
    let GoalTables { restricted, utility } = tables;
    let measures = &target.measures;
    let chance = restricted.chance.unwrap_or(measures.restricted.chance());
    let unprotected = restricted.unprotected.as_ref().map(|path| unprotected(path, target)).transpose()?;
    let half_way = unprotected.map(|score| (score + chance) / 2.0);
    Ok(Goal {
        restricted: Metric { kind: restricted.metric.name().into(), data: restricted.data.to_string(), chance },
        // One of the two is there: the suite's check has seen to it.
        threshold: restricted.threshold.or(half_way).unwrap_or(1.0),
        unprotected,
        utility: Metric {
            kind: utility.metric.name().into(),
            data: utility.data.to_string(),
            chance: utility.chance.unwrap_or(measures.utility.chance()),
        },
        utility_floor: (1.0 - utility.most_loss) * before.utility,
        price_per_hour: suite.budget.price_per_hour,
        currency: suite.budget.currency.clone(),
    })
}

/// The restricted score of the model without its safeguard.
fn unprotected<B: Backend>(path: &Path, target: &Target<B>) -> Result<f64> {
    target.restricted_score(&weights_of_shape(path, &target.model.config)?)
}

/// The weights of the model at `path`, which has the shape that `config` says.
fn weights_of_shape(path: &Path, config: &ModelConfig) -> Result<Vec<f32>> {
    let other = ModelDirectory::open(path)?;
    if !same_shape(&other.config, config) {
        let problem = "its architecture is not that of the model under attack";
        return Err(Error::input(path.join("config.json"), problem, "use the model that the safeguard started from"));
    }
    other.read_weights()
}

/// What the defence cost: as the suite says, or as the run that made the model wrote it down.
fn defender(suite: &Suite, model: &Path) -> Result<Option<DefenderCost>> {
    match &suite.defender {
        Some(cost) => Ok(Some(cost.clone())),
        None => DefenderCost::read(model),
    }
}
