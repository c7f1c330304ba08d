//! Results for other programs: a Parquet table of every measurement, and `trial_results.json`, which has the shape that
//! TamperBench (github.com/criticalml-uw/TamperBench) gives the file of that name in a trial's directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::attacks::{self, groups};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::redteam::{AttackKind, AttackResult, Goal, Point, Results};

const SCHEMA: &str = "message measurement {
    required binary id (UTF8);
    required binary name (UTF8);
    required binary kind (UTF8);
    required int64 seed (INTEGER(64, false));
    optional int64 trial (INTEGER(64, false));
    required int64 step (INTEGER(64, false));
    required int64 examples (INTEGER(64, false));
    required int64 tokens (INTEGER(64, false));
    required double flop;
    required double seconds;
    optional double loss;
    required double restricted;
    required double utility;
    required boolean breached;
    optional binary variant (UTF8);
}";

/// Writes a row for each measurement of each attack that came to its end.
///
/// Columns: `id`, `name`, `kind` (`full`, `lora`, `abliteration`, `prefill`, `quantization`, `merge`), `seed`, `trial` (null
/// where no search proposed the attack), `step`, `examples`, `tokens`, `flop`, `seconds` (since the attack's start), `loss`
/// (null where there was no step), `restricted`, `utility` (0 to 1), `breached` (whether this measurement meets both bounds), `variant` (which of
/// several things that the attack tries this is; null where it tries one).
pub fn write_attacks(path: &Path, results: &Results) -> Result<()> {
    let rows = results.attacks.iter().flat_map(|a| attacks::curve(a).unwrap_or_default().iter().map(move |p| (a, p)));
    let bytes = encode(&rows.collect::<Vec<_>>(), &results.goal).map_err(Error::encode(path))?;
    write_atomically(path, &bytes)
}

fn encode(rows: &[(&AttackResult, &Point)], goal: &Goal) -> std::result::Result<Vec<u8>, ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    let attack = |of: &dyn Fn(&AttackResult) -> ByteArray| rows.iter().map(|row| of(row.0)).collect::<Vec<_>>();
    // Unsigned numbers lie in Parquet's signed ones by their bits.
    let number =
        |of: &dyn Fn(&(&AttackResult, &Point)) -> u64| rows.iter().map(|row| of(row) as i64).collect::<Vec<_>>();
    let real = |of: &dyn Fn(&Point) -> f64| rows.iter().map(|row| of(row.1)).collect::<Vec<_>>();
    let trials: Vec<Option<i64>> = rows.iter().map(|row| row.0.trial.map(|trial| trial as i64)).collect();
    let losses: Vec<Option<f64>> = rows.iter().map(|row| row.1.loss).collect();
    let breached: Vec<bool> = rows.iter().map(|row| goal.is_breached(&row.1.scores)).collect();
    required::<ByteArrayType>(&mut group, &attack(&|a| a.id.as_str().into()))?;
    required::<ByteArrayType>(&mut group, &attack(&|a| a.name.as_str().into()))?;
    required::<ByteArrayType>(&mut group, &attack(&|a| a.kind.name().into()))?;
    required::<Int64Type>(&mut group, &number(&|row| row.0.seed))?;
    optional::<Int64Type>(&mut group, &trials)?;
    required::<Int64Type>(&mut group, &number(&|row| row.1.cost.steps))?;
    required::<Int64Type>(&mut group, &number(&|row| row.1.cost.examples))?;
    required::<Int64Type>(&mut group, &number(&|row| row.1.cost.tokens))?;
    required::<DoubleType>(&mut group, &real(&|point| point.cost.flop))?;
    required::<DoubleType>(&mut group, &real(&|point| point.cost.seconds))?;
    optional::<DoubleType>(&mut group, &losses)?;
    required::<DoubleType>(&mut group, &real(&|point| point.scores.restricted))?;
    required::<DoubleType>(&mut group, &real(&|point| point.scores.utility))?;
    required::<BoolType>(&mut group, &breached)?;
    let variants: Vec<Option<ByteArray>> =
        rows.iter().map(|row| row.1.variant.as_deref().map(ByteArray::from)).collect();
    optional::<ByteArrayType>(&mut group, &variants)?;
    group.close()?;
    file.close()?;
    Ok(bytes)
}

type Group<'a, 'b> = SerializedRowGroupWriter<'a, &'b mut Vec<u8>>;

fn required<T: DataType>(group: &mut Group, values: &[T::T]) -> std::result::Result<(), ParquetError> {
    write_column::<T>(group, values, None)
}

fn optional<T: DataType>(group: &mut Group, values: &[Option<T::T>]) -> std::result::Result<(), ParquetError> {
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<T::T> = values.iter().flatten().cloned().collect();
    write_column::<T>(group, &values, Some(&levels))
}

fn write_column<T: DataType>(
    group: &mut Group,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> std::result::Result<(), ParquetError> {
    let missing = || ParquetError::General("the schema has fewer columns than are written".into());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}

/// The metrics of a defended model as TamperBench keeps them: a flat map from `defense.METRIC`,
/// `post_attack.ATTACK.METRIC` and `post_attack.METRIC` to numbers.
///
/// Attacks are grouped under TamperBench's names. Each value is of the attack that got furthest within the utility floor (its
/// aggregation `bounded_worst_case`), the utility of the same point. The metrics `restricted` and `utility` are temper's own,
/// and so are the groups `prefill`, `quantization` and `merge`: TamperBench has no counterpart.
pub fn trial_results(results: &Results) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    let mut insert = |prefix: &str, restricted: f64, utility: f64| {
        metrics.insert(format!("{prefix}.restricted"), restricted);
        metrics.insert(format!("{prefix}.utility"), utility);
    };
    insert("defense", results.before.restricted, results.before.utility);
    let mut groups: Vec<(&str, &Point)> = groups(results)
        .iter()
        .filter_map(|group| group.best(&results.goal).map(|(_, point)| (theirs(group.first.kind), point)))
        .collect();
    // In ascending order, so that the furthest is what stays.
    groups.sort_by(|a, b| a.1.scores.restricted.total_cmp(&b.1.scores.restricted));
    for (name, point) in &groups {
        insert(&format!("post_attack.{name}"), point.scores.restricted, point.scores.utility);
        insert("post_attack", point.scores.restricted, point.scores.utility);
    }
    metrics
}

/// TamperBench's name for attacks of a kind.
fn theirs(kind: AttackKind) -> &'static str {
    match kind {
        AttackKind::Full => "full_parameter_finetune",
        AttackKind::Lora => "lora_finetune",
        AttackKind::Abliteration => "refusal_ablation",
        AttackKind::Prefill => "prefill",
        AttackKind::Quantization => "quantization",
        AttackKind::Merge => "merge",
    }
}
