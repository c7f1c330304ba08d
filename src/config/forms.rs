//! Settings that a run file may write in more than one form.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DataNames;
use crate::tar::{LearningRates, RateRange};
use crate::training::Source;

/// One value or a list of them, of which one is drawn: `16` or `[4, 16, 64]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices<T>(pub Vec<T>);

impl<T: Serialize> Serialize for Choices<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Choices<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrList<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrList<T> {
            type Value = Choices<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value or a list of them")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Choices<T>, E> {
                Ok(Choices(vec![T::deserialize(value.into_deserializer())?]))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Choices<T>, E> {
                Ok(Choices(vec![T::deserialize(value.into_deserializer())?]))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Choices<T>, E> {
                Ok(Choices(vec![T::deserialize(value.into_deserializer())?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Choices(values))
            }
        }

        deserializer.deserialize_any(OneOrList(PhantomData))
    }
}

/// `2e-5`, `[2e-5, 4e-5]` or `{ from = 1e-5, to = 1e-4 }`.
impl Serialize for LearningRates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(rates) => rates.serialize(serializer),
            Self::Range(range) => range.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LearningRates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberListOrRange;

        impl<'de> Visitor<'de> for NumberListOrRange {
            type Value = LearningRates;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number, a list of numbers, or { from = …, to = … }")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<LearningRates, E> {
                Ok(LearningRates::List(vec![value]))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<LearningRates, E> {
                self.visit_f64(value as f64)
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<LearningRates, E> {
                self.visit_f64(value as f64)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LearningRates, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(LearningRates::List(numbers))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<LearningRates, A::Error> {
                Ok(LearningRates::Range(RateRange::deserialize(MapAccessDeserializer::new(table))?))
            }
        }

        deserializer.deserialize_any(NumberListOrRange)
    }
}

/// One text or a list of them: `"a"` or `["a", "b"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrList;

        impl<'de> Visitor<'de> for TextOrList {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_string()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_any(TextOrList)
    }
}

/// A number, or the text `"equal"` for `None`: TOML has no way to write the absence of a key that has a default.
pub(super) mod number_or_equal {
    use std::fmt;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(number) => serializer.serialize_f64(*number),
            None => serializer.serialize_str("equal"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        struct NumberOrEqual;

        impl Visitor<'_> for NumberOrEqual {
            type Value = Option<f64>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number or \"equal\"")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Option<f64>, E> {
                Ok(Some(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Option<f64>, E> {
                Ok(Some(value as f64))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Option<f64>, E> {
                Ok(Some(value as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Option<f64>, E> {
                if text == "equal" { Ok(None) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }
        }

        deserializer.deserialize_any(NumberOrEqual)
    }
}

/// A table of layers and modules, or the text `"all"` for `None`.
pub(super) mod part_or_all {
    use std::fmt;

    use serde::de::value::MapAccessDeserializer;
    use serde::de::{Error, MapAccess, Unexpected, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::config::TrainedConfig;

    pub fn serialize<S: Serializer>(value: &Option<TrainedConfig>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(part) => part.serialize(serializer),
            None => serializer.serialize_str("all"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TrainedConfig>, D::Error> {
        struct PartOrAll;

        impl<'de> Visitor<'de> for PartOrAll {
            type Value = Option<TrainedConfig>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"all\" or a table of layers and modules")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Option<TrainedConfig>, E> {
                if text == "all" { Ok(None) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Option<TrainedConfig>, A::Error> {
                TrainedConfig::deserialize(MapAccessDeserializer::new(table)).map(Some)
            }
        }

        deserializer.deserialize_any(PartOrAll)
    }
}

/// A boolean, or the text `"auto"` for `None`.
pub(super) mod boolean_or_auto {
    use std::fmt;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_bool(*value),
            None => serializer.serialize_str("auto"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
        struct BooleanOrAuto;

        impl Visitor<'_> for BooleanOrAuto {
            type Value = Option<bool>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("true, false or \"auto\"")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Option<bool>, E> {
                Ok(Some(value))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Option<bool>, E> {
                if text == "auto" { Ok(None) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }
        }

        deserializer.deserialize_any(BooleanOrAuto)
    }
}

impl Serialize for DataNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Source::One(name) => serializer.serialize_str(name),
            Source::Switch { streams, at: () } => streams.serialize(serializer),
            Source::Mixture(parts) => serializer.collect_map(parts.iter().map(|(name, weight)| (name, weight))),
        }
    }
}

impl<'de> Deserialize<'de> for DataNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneTwoOrMixture;

        impl<'de> Visitor<'de> for OneTwoOrMixture {
            type Value = DataNames;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a stream, a list of two names, or a table of names and weights")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<DataNames, E> {
                Ok(Source::One(name.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DataNames, A::Error> {
                let mut names: Vec<String> = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                let count = names.len();
                let pair: [String; 2] = names.try_into().map_err(|_| A::Error::invalid_length(count, &self))?;
                Ok(Source::Switch { streams: pair, at: () })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<DataNames, A::Error> {
                let mut parts: Vec<(String, f64)> = Vec::new();
                while let Some(part) = table.next_entry()? {
                    parts.push(part);
                }
                Ok(Source::Mixture(parts))
            }
        }

        deserializer.deserialize_any(OneTwoOrMixture)
    }
}
