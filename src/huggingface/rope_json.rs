//! The rotary settings of `config.json`: `rope_parameters` (Transformers 5), or `rope_theta` and `rope_scaling` (before).

use serde_json::Value;

use super::json_keys::Keys;
use crate::error::Result;
use crate::model::RopeScaling;

/// Base and scaling of the rotary frequencies.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// The keys of each type of scaling. Every type may have `rope_theta`, and the factor 1 on how much of a head is rotated.
const TYPES: [(&str, &[&str]); 4] = [
    ("default", &[]),
    ("linear", &["factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    (
        "yarn",
        &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
    ),
];

/// Reads them from the whole file. `positions` is its `max_position_embeddings`.
pub(super) fn read(keys: &Keys, positions: usize) -> Result<Rope> {
    let mut theta = stated_theta(keys)?;
    let mut scaling = None;
    for name in ["rope_parameters", "rope_scaling"] {
        let table = match keys.get(name) {
            None => continue,
            Some(Value::Object(table)) => Keys { path: keys.path, map: table.clone() },
            Some(value) => return keys.refuse(name, &format!("is {value}, not an object")),
        };
        let of_table = stated_theta(&table)?;
        if theta.zip(of_table).is_some_and(|(outside, inside)| outside != inside) {
            return keys.refuse(name, "has another `rope_theta` than the rest of the file");
        }
        theta = theta.or(of_table);
        let read = Table { name, keys: &table, positions }.scaling()?;
        if scaling.is_some_and(|other| other != read) {
            return keys.refuse(name, "is not the scaling of `rope_parameters`");
        }
        scaling = Some(read);
    }
    let theta = theta.unwrap_or(10_000.0);
    let scaling = scaling.unwrap_or(RopeScaling::Default);
    if theta == 1.0 && matches!(scaling, RopeScaling::Yarn { .. }) {
        return keys.refuse("rope_theta", "is 1, where yarn needs more");
    }
    Ok(Rope { theta, scaling })
}

/// Below 1, rotary frequencies would grow with the dimension, without bound.
fn stated_theta(keys: &Keys) -> Result<Option<f64>> {
    keys.get("rope_theta").map(|_| keys.at_least_one("rope_theta", None)).transpose()
}

/// One of the two tables.
struct Table<'a> {
    name: &'static str,
    keys: &'a Keys<'a>,
    positions: usize,
}

impl Table<'_> {
    fn scaling(&self) -> Result<RopeScaling> {
        let keys = self.keys;
        let kind = self.kind()?;
        let Some((_, known)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
            return keys.refuse("rope_type", &format!("is `{kind}`; supported are {}", names.join(", ")));
        };
        for (key, value) in keys.present() {
            let common = matches!(key, "rope_type" | "type" | "rope_theta");
            let whole_head = key == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            if !common && !whole_head && !known.contains(&key) {
                let problem = format!("has `{key}`, which is not understood for the type {kind}");
                return keys.refuse(self.name, &problem);
            }
        }
        match kind {
            "linear" => Ok(RopeScaling::Linear { factor: keys.at_least_one("factor", None)? }),
            "llama3" => self.llama3(),
            "yarn" => self.yarn(),
            _ => Ok(RopeScaling::Default),
        }
    }

    /// The type, which old files call `type`. A table that says nothing but the base needs none.
    fn kind(&self) -> Result<&str> {
        let keys = self.keys;
        match (keys.text("rope_type")?, keys.text("type")?) {
            (Some(new), Some(old)) if new != old => {
                keys.refuse(self.name, &format!("has the `rope_type` {new} and the `type` {old}"))
            }
            (Some(kind), _) | (None, Some(kind)) => Ok(kind),
            (None, None) => match keys.present().find(|(key, _)| *key != "rope_theta") {
                None => Ok("default"),
                Some((key, _)) => keys.refuse(self.name, &format!("has no `rope_type`, which `{key}` is a setting of")),
            },
        }
    }

    fn llama3(&self) -> Result<RopeScaling> {
        let keys = self.keys;
        let low_freq_factor = keys.positive("low_freq_factor", None)?;
        let high_freq_factor = keys.positive("high_freq_factor", None)?;
        if low_freq_factor >= high_freq_factor {
            return keys.refuse("low_freq_factor", "is not below high_freq_factor");
        }
        Ok(RopeScaling::Llama3 {
            factor: keys.at_least_one("factor", None)?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: keys.size("original_max_position_embeddings")?,
        })
    }

    /// Source: Transformers `_compute_yarn_parameters`, with its defaults.
    fn yarn(&self) -> Result<RopeScaling> {
        let keys = self.keys;
        let factor = keys.at_least_one("factor", None)?;
        let beta_fast = keys.positive("beta_fast", Some(32.0))?;
        let beta_slow = keys.positive("beta_slow", Some(1.0))?;
        if beta_slow >= beta_fast {
            return keys.refuse("beta_slow", "is not below beta_fast");
        }
        let scale = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
        let mscale = keys.get("mscale").map(|_| keys.positive("mscale", None)).transpose()?;
        let mscale_all_dim = keys.get("mscale_all_dim").map(|_| keys.positive("mscale_all_dim", None)).transpose()?;
        let attention_factor = match mscale.zip(mscale_all_dim) {
            Some((numerator, denominator)) => scale(numerator) / scale(denominator),
            None => scale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: keys.size_or("original_max_position_embeddings", self.positions)?,
            beta_fast,
            beta_slow,
            truncate: keys.flag_or("truncate", true)?,
            attention_factor: keys.positive("attention_factor", Some(attention_factor))?,
        })
    }
}
