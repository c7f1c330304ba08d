//! From a suite file, a built-in suite and overrides to a checked [`Suite`], and back to text.

use std::path::{Path, PathBuf};

use super::schema::{ScaleTable, Suite};
use super::{builtin, validate};
use crate::data::DataFile;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::settings::{add_place, parse, read_text, suggestion, to_toml, typed};

impl Suite {
    /// Reads the suite file at `path`, lays `overrides` (`evaluate.points=4`) over it, adds the attacks of its built-in
    /// suite before its own, and checks the result. Relative paths, also those of overrides, count from its folder.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_text(&read_text(path, "pass a TOML suite file")?, path, overrides)
    }

    /// As [`Suite::load`], from the text of a file that lies (or would lie) at `path`.
    pub fn from_text(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let mut tree = parse(text, path)?;
        for assignment in overrides {
            tree.set(assignment)?;
        }
        let mut suite: Self = typed(&tree, path)?;
        validate::check(&suite).map_err(|error| add_place(error, &tree, path))?;
        suite.add_built_in().map_err(|error| add_place(error, &tree, path))?;
        validate::check_names(&suite).map_err(|error| add_place(error, &tree, path))?;
        suite.resolve_paths(path)?;
        Ok(suite)
    }

    /// Fails where a setting is out of its range or contradicts another, as [`Suite::load`] does; for whoever builds a suite
    /// in code.
    pub fn check(&self) -> Result<()> {
        validate::check(self)?;
        validate::check_names(self)
    }

    /// What reports call it.
    pub fn title(&self) -> &str {
        self.name.as_deref().or(self.suite.as_deref()).unwrap_or("own attacks")
    }

    /// The whole suite as a file: built-in attacks, scales and overrides worked in, paths absolute. Loading it gives the
    /// same attacks.
    pub fn resolved(&self) -> Result<String> {
        let attack = self.attack.iter().map(|attack| attack.filled(&self.seeds)).collect();
        to_toml(&Self { name: Some(self.title().into()), attack, ..self.clone() }, "suite file")
    }

    /// Tells suites apart whose measurements differ: every setting counts but which attacks and seeds are run, and what is
    /// only reported.
    pub(crate) fn identity(&self) -> Result<Fingerprint> {
        let mut same = Self {
            name: None,
            seeds: vec![],
            only: None,
            budget: Default::default(),
            defender: None,
            search: None,
            attack: vec![],
            ..self.clone()
        };
        // Files count by what is in them.
        for path in same.paths_mut() {
            *path = PathBuf::new();
        }
        Fingerprint::of(&same)
    }

    /// Takes in the attacks of the built-in suite, which leaves no factor to apply.
    fn add_built_in(&mut self) -> Result<()> {
        if let Some(name) = &self.suite {
            let mut attacks = builtin::attacks(name, self.scale)?;
            for (index, attack) in attacks.iter().enumerate() {
                validate::check_attack(&format!("suite `{name}`, attack {index}"), attack, self)?;
            }
            attacks.append(&mut self.attack);
            self.attack = attacks;
        }
        self.scale = ScaleTable::default();
        if self.attack.is_empty() && self.search.is_none() {
            let known: Vec<&str> = builtin::BUILT_IN.iter().map(|(name, _)| *name).collect();
            let remedy = format!("name a built-in suite ({}) or add tables [[attack]]", known.join(", "));
            return Err(Error::config("suite", "there is no attack", remedy));
        }
        Ok(())
    }

    fn resolve_paths(&mut self, file: &Path) -> Result<()> {
        let file = std::path::absolute(file).map_err(Error::io("find", file))?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
        for path in self.paths_mut() {
            *path = folder.join(&*path);
        }
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        fn path(file: &mut Option<DataFile>) -> Option<&mut PathBuf> {
            file.as_mut().map(|file| &mut file.path)
        }
        let data = &mut self.data;
        let roles = [
            &mut data.restricted,
            &mut data.retain,
            &mut data.ood,
            &mut data.restricted_prompts,
            &mut data.harmless_prompts,
        ];
        let restricted = self
            .restricted
            .iter_mut()
            .flat_map(|table| [Some(&mut table.data.path), table.unprotected.as_mut(), path(&mut table.shots)]);
        let utility = self.utility.iter_mut().flat_map(|table| [Some(&mut table.data.path), path(&mut table.shots)]);
        let text = self.perplexity.iter_mut().map(|table| &mut table.data.path);
        let base = data.base_model.iter_mut();
        roles.into_iter().filter_map(path).chain(base).chain(restricted.flatten()).chain(utility.flatten()).chain(text)
    }

    /// Fails unless every name of `only` belongs to an attack.
    pub(super) fn check_only(&self) -> Result<()> {
        let names = || self.attack.iter().map(|attack| attack.name.as_str());
        match self.only.iter().flatten().find(|name| !names().any(|known| known == *name)) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("the suite has no attack `{name}`");
                Err(Error::config("only", problem, suggestion(name, names())))
            }
        }
    }
}
