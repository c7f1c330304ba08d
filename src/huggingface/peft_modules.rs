//! Which modules a PEFT adapter adapts, by its `target_modules`, `exclude_modules` and `layers_to_transform`.
//!
//! The rules are those of PEFT's `check_target_module_exists`: a list names modules in full or by what follows a dot in
//! their names; a text is a regular expression for full names, or "all-linear".

use std::collections::{BTreeSet, HashSet};

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::model::{ModelConfig, Projection};

const TARGETS: &str = "target_modules";
const EXCLUDED: &str = "exclude_modules";
const LAYERS: &str = "layers_to_transform";
/// Steps that a pattern may go back for one name.
const BACKTRACKING: usize = 100_000;
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;

/// The adapted modules of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AdaptedModules {
    names: HashSet<String>,
    /// The projections that are adapted in at least one layer.
    pub(super) projections: BTreeSet<Projection>,
}

/// The key of a setting, and what is wrong with it.
type Refusal = (&'static str, String);

impl AdaptedModules {
    /// Finds the modules that the settings of `adapter_config.json` name in a model of this architecture.
    pub(super) fn of(settings: &Map<String, Value>, model: &ModelConfig) -> Result<Self, Refusal> {
        let targets = settings.get(TARGETS).filter(|value| !value.is_null());
        let targets = Selection::of(TARGETS, targets.ok_or((TARGETS, "is missing".to_string()))?)?;
        let excluded = settings.get(EXCLUDED).filter(|value| !is_empty(value));
        let excluded = excluded.map(|value| Selection::of(EXCLUDED, value)).transpose()?;
        let layers = layers(settings, &targets)?;
        let mut adapted = Self { names: HashSet::new(), projections: BTreeSet::new() };
        let mut unused = targets.names();
        let mut matched = false;
        for layer in 0..model.num_hidden_layers {
            for projection in Projection::ALL {
                let name = format!("model.layers.{layer}.{}", projection.path());
                let Some(by) = targets.selects(&name)? else { continue };
                matched = true;
                spellings(&name).for_each(|spelling| {
                    unused.remove(spelling);
                });
                // A module that is named in full is adapted whatever the list of layers says.
                let listed = layers.as_ref().is_none_or(|layers| layers.contains(&(layer as u64)));
                let is_excluded = match &excluded {
                    Some(excluded) => excluded.selects(&name)?.is_some(),
                    None => false,
                };
                if (listed || by == SelectedBy::FullName) && !is_excluded {
                    adapted.names.insert(name);
                    adapted.projections.insert(projection);
                }
            }
        }
        if let Some(name) = unused.first() {
            return Err((TARGETS, format!("names `{name}`, which is no projection of the model")));
        }
        if !matched {
            return Err((TARGETS, "matches no projection of the model".into()));
        }
        if !adapted.names.is_empty() {
            return Ok(adapted);
        }
        let key = if excluded.is_some() { EXCLUDED } else { LAYERS };
        Err((key, format!("leaves nothing of `{TARGETS}` to adapt")))
    }

    /// How many they are.
    pub(super) fn count(&self) -> usize {
        self.names.len()
    }

    /// Whether the factor with this name in the adapter's file belongs to an adapted module.
    pub(super) fn has_factor(&self, tensor: &str) -> bool {
        let module = tensor.strip_prefix("base_model.model.").and_then(|name| name.rsplit_once(".lora_"));
        module.is_some_and(|(module, _)| self.names.contains(module))
    }
}

/// The names by which a list can mean a module: in full, and what follows each dot.
fn spellings(module: &str) -> impl Iterator<Item = &str> {
    std::iter::once(module).chain(module.match_indices('.').map(|(at, _)| &module[at + 1..]))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// What a setting selects of the modules.
enum Selection {
    /// Every projection.
    All,
    /// Names in full, or what follows a dot in them.
    Names(BTreeSet<String>),
    /// What a full name must match from its beginning to its end.
    Pattern { key: &'static str, regex: Box<Regex> },
}

/// What selected a module.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SelectedBy {
    /// Its full name.
    FullName,
    /// The end of its name, or a pattern.
    Another,
}

impl Selection {
    fn of(key: &'static str, value: &Value) -> Result<Self, Refusal> {
        let refuse = |problem: String| Err((key, problem));
        match value {
            Value::String(text) if key == TARGETS && text.eq_ignore_ascii_case("all-linear") => Ok(Self::All),
            Value::String(pattern) => {
                let whole = format!(r"\A(?:{pattern})\z");
                let limited = RegexBuilder::new(&whole)
                    .backtrack_limit(BACKTRACKING)
                    .delegate_size_limit(PATTERN_BYTES)
                    .delegate_dfa_size_limit(PATTERN_BYTES)
                    .build();
                match limited {
                    Ok(regex) => Ok(Self::Pattern { key, regex: Box::new(regex) }),
                    Err(error) => refuse(format!("is a pattern that cannot be used: {error}")),
                }
            }
            Value::Array(list) => match list.iter().map(|name| name.as_str().map(str::to_string)).collect() {
                Some(names) => Ok(Self::Names(names)),
                None => refuse("has an entry that is no text".into()),
            },
            _ => refuse("is neither a list of names nor a pattern".into()),
        }
    }

    /// What selects the module of this full name, if anything does.
    fn selects(&self, name: &str) -> Result<Option<SelectedBy>, Refusal> {
        match self {
            Self::All => Ok(Some(SelectedBy::Another)),
            Self::Names(names) if names.contains(name) => Ok(Some(SelectedBy::FullName)),
            Self::Names(names) => {
                Ok(spellings(name).any(|spelling| names.contains(spelling)).then_some(SelectedBy::Another))
            }
            Self::Pattern { key, regex } => match regex.is_match(name) {
                Ok(matches) => Ok(matches.then_some(SelectedBy::Another)),
                Err(error) => Err((key, format!("is a pattern that cannot be used: {error}"))),
            },
        }
    }

    /// The names of a list.
    fn names(&self) -> BTreeSet<String> {
        match self {
            Self::Names(names) => names.clone(),
            Self::All | Self::Pattern { .. } => BTreeSet::new(),
        }
    }
}

/// The layers of `layers_to_transform`, where it limits them.
fn layers(settings: &Map<String, Value>, targets: &Selection) -> Result<Option<HashSet<u64>>, Refusal> {
    let pattern = settings.get("layers_pattern").filter(|value| !is_empty(value));
    if pattern.is_some_and(|pattern| *pattern != "layers" && *pattern != serde_json::json!(["layers"])) {
        return Err(("layers_pattern", "names other blocks than the `layers` of the model".into()));
    }
    let Some(value) = settings.get(LAYERS).filter(|value| !is_empty(value)) else { return Ok(None) };
    if !matches!(targets, Selection::Names(_)) {
        return Err((LAYERS, "goes with a list of `target_modules` only".into()));
    }
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    match list.iter().map(Value::as_u64).collect() {
        Some(layers) => Ok(Some(layers)),
        None => Err((LAYERS, "is neither a layer's number nor a list of them".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn model() -> ModelConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 3, "num_attention_heads": 2}"#;
        ModelConfig::from_json(text, Path::new("config.json")).unwrap()
    }

    /// The adapted modules, each as layer and projection, or what is refused.
    fn adapted(settings: Value) -> Result<Vec<String>, Refusal> {
        let adapted = AdaptedModules::of(settings.as_object().unwrap(), &model())?;
        let short = |name: &String| {
            let name = name.strip_prefix("model.layers.").unwrap();
            format!("{}.{}", &name[..1], name.rsplit('.').next().unwrap())
        };
        let mut names: Vec<String> = adapted.names.iter().map(short).collect();
        names.sort();
        Ok(names)
    }

    /// `tests/peers/check_adapters.py` has PEFT adapt a model by the same settings, and compares the merged weights.
    #[test]
    fn modules_are_selected_as_peft_selects_them() {
        let all = |projections: &[&str], layers: &[usize]| {
            let mut names: Vec<String> = projections
                .iter()
                .flat_map(|projection| layers.iter().map(move |layer| format!("{layer}.{projection}")))
                .collect();
            names.sort();
            names
        };
        let each = [0, 1, 2];
        for (settings, expected) in [
            (json!({"target_modules": ["q_proj", "o_proj"]}), all(&["q_proj", "o_proj"], &each)),
            (json!({"target_modules": ["self_attn.q_proj"]}), all(&["q_proj"], &each)),
            (json!({"target_modules": ["model.layers.0.self_attn.q_proj"]}), all(&["q_proj"], &[0])),
            (json!({"target_modules": ["layers.1.mlp.up_proj", "2.mlp.up_proj"]}), all(&["up_proj"], &[1, 2])),
            (json!({"target_modules": r".*\.(q|v)_proj"}), all(&["q_proj", "v_proj"], &each)),
            (json!({"target_modules": r"model\.layers\.[02]\.self_attn\.k_proj"}), all(&["k_proj"], &[0, 2])),
            (json!({"target_modules": r"(?!.*layers\.1).*down_proj"}), all(&["down_proj"], &[0, 2])),
            (
                json!({"target_modules": "all-linear", "exclude_modules": ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]}),
                all(&["q_proj", "o_proj"], &each),
            ),
            (json!({"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"}), all(&["q_proj"], &[0, 1])),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": ["model.layers.1.self_attn.q_proj"]}),
                all(&["q_proj"], &[0, 2]),
            ),
            (json!({"target_modules": ["q_proj"], "exclude_modules": null}), all(&["q_proj"], &each)),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}), all(&["q_proj"], &[0, 2])),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
                all(&["q_proj"], &[1]),
            ),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": []}), all(&["q_proj"], &each)),
        ] {
            assert_eq!(adapted(settings.clone()), Ok(expected), "{settings}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_its_key() {
        for (settings, key, says) in [
            (json!({}), "target_modules", "is missing"),
            (json!({"target_modules": null}), "target_modules", "is missing"),
            (json!({"target_modules": 5}), "target_modules", "neither"),
            (json!({"target_modules": ["q_proj", 5]}), "target_modules", "no text"),
            (json!({"target_modules": []}), "target_modules", "matches no projection"),
            (json!({"target_modules": ["q_proj", "lm_head"]}), "target_modules", "names `lm_head`"),
            (json!({"target_modules": ["proj"]}), "target_modules", "names `proj`"),
            (json!({"target_modules": "q_proj"}), "target_modules", "matches no projection"),
            (json!({"target_modules": "(q_proj"}), "target_modules", "cannot be used"),
            (json!({"target_modules": r"(a{1000}){1000}"}), "target_modules", "cannot be used"),
            (json!({"target_modules": ["q_proj"], "exclude_modules": "[q"}), "exclude_modules", "cannot be used"),
            (json!({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}), "exclude_modules", "leaves nothing"),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [7]}),
                "layers_to_transform",
                "leaves nothing",
            ),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": "1"}), "layers_to_transform", "neither"),
            (json!({"target_modules": ".*q_proj", "layers_to_transform": 1}), "layers_to_transform", "list"),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "h"}),
                "layers_pattern",
                "other blocks",
            ),
        ] {
            let (named, problem) = adapted(settings.clone()).unwrap_err();
            assert!(named == key && problem.contains(says), "{settings}: {named} {problem}");
        }
    }

    /// A pattern that goes back without end is given up.
    #[test]
    fn a_pattern_that_takes_for_ever_is_given_up() {
        let settings = json!({"target_modules": r"(?:(?=m)m|.*.*.*.*.*.*.*.*)*\1?(?<!x)X"});
        assert!(adapted(settings).is_err());
    }
}
