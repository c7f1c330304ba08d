//! What the demonstration leaves for `temper redteam`: the facts as data files, a suite file, and the cost of the defence.

use std::fmt::Write as _;
use std::path::Path;

use super::experiment::{RETAIN_ROWS, TR_EVERY};
use super::facts::ROW_TOKENS;
use super::{Course, Domain, Facts, Pool};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::IGNORE_INDEX;
use crate::plan::{Backward, Costs};
use crate::random::{Random, Stream};

/// Rows of the attackers' files.
const ROWS: usize = 2048;

/// The head of the suite file, which names a built-in suite.
const SUITE: &str = include_str!("redteam.toml");
/// What is attacked and measured. Its scales bring the learning rates of the built-in suites, which are made for 8 billion
/// parameters, to those that the demonstration's own attacks have.
const TARGET: &str = include_str!("target.toml");
/// The end of the other suite file: a search in the place of a suite.
const SEARCH: &str = include_str!("search.toml");

/// Writes `data/`, `redteam.toml` and `search.toml` into `out`. What is asked (`probe`, `benign`) is one fact a row; attackers have rows of
/// four facts, and none that is in `probe`.
pub fn write_handover(out: &Path, facts: &Facts, seed: u64) -> Result<()> {
    let data = out.join("data");
    std::fs::create_dir_all(&data).map_err(Error::io("create", &data))?;
    let drawn = |domain, pool, which| facts.rows(domain, pool, ROWS, &mut Random::new(seed, Stream::Demo, 1, which));
    let files = [
        ("restricted", drawn(Domain::Restricted, Pool::Attack, 0)),
        ("retain", drawn(Domain::Benign, Pool::All, 1)),
        ("probe", facts.questions_with_answers(Domain::Restricted, Pool::Probe)),
        ("benign", facts.questions_with_answers(Domain::Benign, Pool::All)),
    ];
    for (name, rows) in files {
        write(&data.join(format!("{name}.jsonl")), &lines(&rows))?;
    }
    write(&out.join("redteam.toml"), &format!("{SUITE}{TARGET}"))?;
    write(&out.join("search.toml"), &format!("{TARGET}{SEARCH}"))
}

fn lines(rows: &[(Vec<u32>, Vec<u32>)]) -> String {
    rows.iter().fold(String::new(), |mut text, (tokens, labels)| {
        let labels: Vec<i64> = labels.iter().map(|&l| if l == IGNORE_INDEX { -100 } else { i64::from(l) }).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", serde_json::json!({ "input_ids": tokens, "labels": labels }));
        text
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io("write", path))
}

impl Course {
    /// Floating-point operations of the plain safeguard and of TAR, counted from the architecture.
    pub fn defence_flop(&self, model: &ModelConfig) -> (f64, f64) {
        let costs = Costs::new(model);
        let rows = |count: usize, backward| count as f64 * costs.sequence(ROW_TOKENS, backward);
        let retain = |count: usize| rows(count, Backward::Weights) + rows(count, Backward::None);
        let unlearn = rows(self.rows, Backward::Weights) + retain(self.rows);
        let inner = self.inner_steps + self.inner_steps / TR_EVERY;
        let outer = inner as f64 * rows(self.rows, Backward::Weights) + retain(RETAIN_ROWS * self.rows);
        (self.unlearn_steps as f64 * unlearn, self.outer_steps as f64 * outer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;

    /// Attackers have no row with a fact that is asked; every question is a fact that a defender removed or kept.
    #[test]
    fn the_probe_asks_what_no_attacker_has() {
        let out = tempfile::tempdir().unwrap();
        let facts = Facts::new(7);
        write_handover(out.path(), &facts, 7).unwrap();
        let suite = |name: &str| crate::redteam::suite::Suite::load(&out.path().join(name), &[]).unwrap();
        assert!(suite("redteam.toml").attacks().is_ok() && suite("search.toml").search.is_some());
        let rows = |name: &str| -> Vec<Vec<u64>> {
            let text = std::fs::read_to_string(out.path().join(format!("data/{name}.jsonl"))).unwrap();
            let ids = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["input_ids"].clone();
            text.lines().map(|line| serde_json::from_value(ids(line)).unwrap()).collect()
        };
        let attack = rows("restricted");
        let probe = rows("probe");
        assert_eq!((attack.len(), probe.len(), rows("benign").len()), (ROWS, 96, 384));
        let known: std::collections::HashSet<&[u64]> =
            attack.iter().flat_map(|row| row[1..].chunks(4)).map(|fact| &fact[..3]).collect();
        assert!(known.len() > 180 && probe.iter().all(|question| !known.contains(&question[1..4])));
    }

    /// 6 operations a weight and token forward and backward, and attention on top.
    #[test]
    fn the_cost_of_the_defence_is_near_six_operations_a_weight_and_token() {
        let course = Course::full(1);
        let model = Experiment::<Cpu>::model_config();
        let (unlearn, harden) = course.defence_flop(&model);
        // Linear layers and head: 3 · (128 · 256 + 128 · 128 + 3 · 128 · 384) + 128 · 256.
        let weights = 3.0 * (32_768.0 + 16_384.0 + 147_456.0) + 32_768.0;
        let token = 6.0 * weights;
        let passes = 560.0 * (30.0 + 4.0 * (1.0 + 1.0 / 3.0));
        let ratio = harden / (passes * 16.0 * 17.0 * token);
        assert!((1.0..1.03).contains(&ratio), "{ratio}");
        assert!(unlearn > 0.0 && unlearn < 0.05 * harden);
    }
}
