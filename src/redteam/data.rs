//! The data that attackers have.

use std::collections::BTreeMap;

use super::suite::Role;
use crate::data::DataStream;
use crate::error::{Error, Result};

/// What attackers have, by role. A file that cannot be used fails only the attacks that need it: in its place stands the reason.
#[derive(Clone, Debug, Default)]
pub struct AttackerData(BTreeMap<Role, std::result::Result<DataStream, String>>);

impl AttackerData {
    /// Takes in the data of a role, or why there is none.
    pub fn insert(&mut self, role: Role, opened: std::result::Result<DataStream, String>) {
        self.0.insert(role, opened);
    }

    /// The data of a role.
    ///
    /// # Errors
    /// [`Error::Config`] where there is none, or none that can be used.
    pub fn stream(&self, role: Role) -> Result<&DataStream> {
        let problem = match self.0.get(&role) {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(problem)) => problem,
            None => "missing",
        };
        let key = format!("data.{}", role.name());
        Err(Error::config(key, problem, "mend it, or leave out the attacks that need it"))
    }

    /// The data that can be used.
    pub fn usable(&self) -> impl Iterator<Item = (Role, &DataStream)> {
        self.0.iter().filter_map(|(role, opened)| Some((*role, opened.as_ref().ok()?)))
    }
}

impl FromIterator<(Role, DataStream)> for AttackerData {
    fn from_iter<I: IntoIterator<Item = (Role, DataStream)>>(streams: I) -> Self {
        Self(streams.into_iter().map(|(role, stream)| (role, Ok(stream))).collect())
    }
}
