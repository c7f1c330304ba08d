//! What the demonstration leaves for `temper harden` and `temper redteam`: the facts as data files, the run file of its
//! hardening, suite files, and the cost of the defence.

use std::fmt::Write as _;
use std::path::Path;

use super::facts::ROW_TOKENS;
use super::{Course, Domain, Facts, Pool, hardening};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::IGNORE_INDEX;
use crate::plan::{Backward, Costs, run_flop};

/// The head of the suite file, which names a built-in suite.
const SUITE: &str = include_str!("redteam.toml");
/// What is attacked and measured. Its scales bring the learning rates of the built-in suites, which are made for 8 billion
/// parameters, to those that the demonstration's own attacks have.
const TARGET: &str = include_str!("target.toml");
/// The end of the other suite file: a search in the place of a suite.
const SEARCH: &str = include_str!("search.toml");

/// Writes `data/`, `harden.toml`, `redteam.toml` and `search.toml` into `out`. What is asked (`probe`, `benign`) is one fact a
/// row; attackers and defenders have rows of four facts, and none that is in `probe`.
pub fn write_handover(out: &Path, facts: &Facts, course: &Course) -> Result<()> {
    let data = out.join("data");
    std::fs::create_dir_all(&data).map_err(Error::io("create", &data))?;
    let asked = [
        ("probe.jsonl", facts.questions_with_answers(Domain::Restricted, Pool::Probe)),
        ("benign.jsonl", facts.questions_with_answers(Domain::Benign, Pool::All)),
    ];
    for (name, rows) in hardening::training_files(facts, course.seed).chain(asked) {
        write(&data.join(name), &lines(&rows))?;
    }
    write(&out.join(hardening::RUN_FILE), &hardening::run_file(course))?;
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
    ///
    /// # Errors
    /// When the course has numbers with which no run file is possible.
    pub fn defence_flop(&self, model: &ModelConfig) -> Result<(f64, f64)> {
        let costs = Costs::new(model);
        let rows = |backward| self.rows as f64 * costs.sequence(ROW_TOKENS, backward);
        let unlearn = 2.0 * rows(Backward::Weights) + rows(Backward::None);
        Ok((self.unlearn_steps as f64 * unlearn, run_flop(&hardening::run_config(self)?, model)))
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
        write_handover(out.path(), &facts, &Course::quick(7)).unwrap();
        let suite = |name: &str| crate::redteam::suite::Suite::load(&out.path().join(name), &[]).unwrap();
        assert!(suite("redteam.toml").attacks().is_ok() && suite("search.toml").search.is_some());
        let rows = |name: &str| -> Vec<Vec<u64>> {
            let text = std::fs::read_to_string(out.path().join(format!("data/{name}.jsonl"))).unwrap();
            let ids = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["input_ids"].clone();
            text.lines().map(|line| serde_json::from_value(ids(line)).unwrap()).collect()
        };
        let attack = rows("restricted");
        let probe = rows("probe");
        assert_eq!((attack.len(), probe.len(), rows("benign").len()), (2048, 96, 384));
        let defence = rows("defence");
        for (training, most) in [(&attack, 192), (&defence, 288)] {
            let known: std::collections::HashSet<&[u64]> =
                training.iter().flat_map(|row| row[1..].chunks(4)).map(|fact| &fact[..3]).collect();
            assert!(known.len() > most - 12 && known.len() <= most, "{} of {most}", known.len());
            assert!(probe.iter().all(|question| !known.contains(&question[1..4])));
        }
    }

    /// 6 operations a weight and token forward and backward, and attention on top.
    #[test]
    fn the_cost_of_the_defence_is_near_six_operations_a_weight_and_token() {
        let course = Course::full(1);
        let model = Experiment::<Cpu>::model_config();
        let (unlearn, harden) = course.defence_flop(&model).unwrap();
        // Linear layers and head: 3 · (128 · 256 + 128 · 128 + 3 · 128 · 384) + 128 · 256.
        let weights = 3.0 * (32_768.0 + 16_384.0 + 147_456.0) + 32_768.0;
        // An attack step has 8 rows, a tamper-resistance gradient 16, and the retain batch 64 with a pass of the reference. LoRA,
        // a fifth of the attacks, needs no gradient of the weights; its factors and attention come on top.
        let attack_rows = 80.0 * 8.0 * (1.0 - 0.2 / 3.0);
        let rows = 400.0 * (attack_rows + 4.0 * 16.0 + 64.0 * (4.0 / 3.0));
        let ratio = harden / (rows * 17.0 * 6.0 * weights);
        assert!((1.0..1.05).contains(&ratio), "{ratio}");
        assert!(unlearn > 0.0 && unlearn < 0.05 * harden);
    }
}
