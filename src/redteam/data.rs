//! The data that attackers have.

use std::collections::{BTreeMap, BTreeSet};

use super::AnswerReader;
use super::suite::Role;
use crate::data::DataStream;
use crate::error::{Error, Result};

/// What was opened, or why it cannot be used.
type Opened<T> = std::result::Result<T, String>;

/// What attackers have, by role. A file that cannot be used fails only the attacks that need it: in its place stands the reason.
#[derive(Default)]
pub struct AttackerData {
    streams: BTreeMap<Role, Opened<DataStream>>,
    /// Roles whose rows are prompts without answers.
    unanswered: BTreeSet<Role>,
    reader: Option<Opened<AnswerReader>>,
    base_model: Option<Opened<Vec<f32>>>,
}

impl AttackerData {
    /// Takes in the data of a role, or why there is none.
    pub fn insert(&mut self, role: Role, opened: Opened<DataStream>) {
        self.streams.insert(role, opened);
    }

    /// Takes in the weights of the model that merges go towards, which has the shape of the attacked one, or why there are
    /// none.
    pub fn insert_base_model(&mut self, read: Opened<Vec<f32>>) {
        self.base_model = Some(read);
    }

    /// The weights of the model that merges go towards, in the layout of the attacked model.
    ///
    /// # Errors
    /// [`Error::Config`] where there are none, or none that can be used.
    pub fn base_model(&self) -> Result<&[f32]> {
        opened(self.base_model.as_ref()).map(Vec::as_slice).map_err(|problem| unusable("base_model", problem))
    }

    /// Takes in the data of a role that has prompts without answers: each row is a prompt.
    pub fn insert_prompts(&mut self, role: Role, prompts: DataStream) {
        self.streams.insert(role, Ok(prompts));
        self.unanswered.insert(role);
    }

    /// Takes in what reads generated answers, or why nothing does.
    pub fn read_answers_with(&mut self, reader: Opened<AnswerReader>) {
        self.reader = Some(reader);
    }

    /// The data of a role.
    ///
    /// # Errors
    /// [`Error::Config`] where there is none, or none that can be used.
    pub fn stream(&self, role: Role) -> Result<&DataStream> {
        opened(self.streams.get(&role)).map_err(|problem| unusable(role.name(), problem))
    }

    /// Whether the rows of a role are prompts without answers.
    pub fn is_unanswered(&self, role: Role) -> bool {
        self.unanswered.contains(&role)
    }

    /// What reads generated answers.
    ///
    /// # Errors
    /// [`Error::Config`] where nothing does, as for models without a tokenizer.
    pub fn answer_reader(&self) -> Result<&AnswerReader> {
        opened(self.reader.as_ref()).map_err(|problem| {
            let problem = format!("generated answers cannot be read: {problem}");
            Error::config("model", problem, "give the model its tokenizer, or the prompts their answers")
        })
    }

    /// The data that can be used.
    pub fn usable(&self) -> impl Iterator<Item = (Role, &DataStream)> {
        self.streams.iter().filter_map(|(role, opened)| Some((*role, opened.as_ref().ok()?)))
    }
}

impl FromIterator<(Role, DataStream)> for AttackerData {
    fn from_iter<I: IntoIterator<Item = (Role, DataStream)>>(streams: I) -> Self {
        let streams = streams.into_iter().map(|(role, stream)| (role, Ok(stream))).collect();
        Self { streams, ..Self::default() }
    }
}

fn opened<T>(entry: Option<&Opened<T>>) -> std::result::Result<&T, &str> {
    entry.map_or(Err("missing"), |opened| opened.as_ref().map_err(String::as_str))
}

fn unusable(name: &str, problem: &str) -> Error {
    Error::config(format!("data.{name}"), problem, "mend it, or leave out the attacks that need it")
}
