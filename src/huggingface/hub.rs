//! A model directory in the Hugging Face layout: configuration, sharded or single weight file.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;

use super::{ExportDType, TensorFile, strict_json};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ModelLayout};

/// An opened model directory.
pub struct ModelDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Its `config.json`.
    pub config: ModelConfig,
    files: Vec<TensorFile>,
    /// For each entry of the layout, the file that holds it.
    places: Vec<usize>,
}

impl ModelDirectory {
    /// Reads `config.json` and the weight index, and checks that every tensor of the layout is there with its shape, and
    /// that there is none besides that would change what the model computes.
    pub fn open(path: &Path) -> Result<Self> {
        let config = ModelConfig::from_directory(path)?;
        let files = open_files(path)?;
        let layout = ModelLayout::new(&config)?;
        refuse_unknown(&files, &layout, config.tie_word_embeddings)?;
        let mut places = Vec::with_capacity(layout.entries().len());
        for entry in layout.entries() {
            let found = files.iter().enumerate().find_map(|(i, file)| file.info(&entry.name).map(|info| (i, info)));
            let Some((index, info)) = found else {
                let problem = format!("no weight file has the tensor `{}`", entry.name);
                return Err(Error::input(path, problem, CHECK_CONFIG));
            };
            if info.shape != entry.shape {
                let problem = format!(
                    "tensor `{}` has shape {:?}, but config.json asks for {:?}",
                    entry.name, info.shape, entry.shape
                );
                return Err(Error::input(files[index].path(), problem, CHECK_CONFIG));
            }
            if !info.is_float() {
                let problem = format!("tensor `{}` is {}, not f32, bf16 or f16", entry.name, info.dtype);
                return Err(Error::input(files[index].path(), problem, "use the weights before quantisation"));
            }
            places.push(index);
        }
        Ok(Self { path: path.to_path_buf(), config, files, places })
    }

    /// All weights as f32 in the order of [`ModelLayout`].
    pub fn read_weights(&self) -> Result<Vec<f32>> {
        self.check_tied_head()?;
        let layout = ModelLayout::new(&self.config)?;
        let mut values = vec![0.0; layout.len()];
        for (entry, &file) in layout.entries().iter().zip(&self.places) {
            self.files[file].read_f32_into(&entry.name, &mut values[entry.block.range()])?;
        }
        Ok(values)
    }

    /// A tied head may be stored; if it differs from the embedding, the model has a head of its own.
    fn check_tied_head(&self) -> Result<()> {
        let Some(head) = self.files.iter().find(|file| self.config.tie_word_embeddings && file.info(HEAD).is_some())
        else {
            return Ok(());
        };
        match self.files.iter().find(|file| file.info(EMBEDDING).is_some()) {
            Some(embedding) if !head.is_same(HEAD, embedding, EMBEDDING)? => {
                let problem = format!("`{HEAD}` is not `{EMBEDDING}`, but config.json ties them");
                Err(Error::input(head.path(), problem, "remove the one, or set tie_word_embeddings to false"))
            }
            _ => Ok(()),
        }
    }

    /// The dtype that the weights are stored in; f32 for anything that is not bf16 or f16.
    pub fn weights_dtype(&self) -> ExportDType {
        match self.files.iter().find_map(TensorFile::main_dtype) {
            Some(Dtype::BF16) => ExportDType::Bf16,
            Some(Dtype::F16) => ExportDType::F16,
            _ => ExportDType::F32,
        }
    }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const CHECK_CONFIG: &str = "check that config.json belongs to these weights";

/// A tensor that the layout does not name, a bias or a further layer, makes it another model than the one computed here.
/// Passed over are the rotary frequencies that old files keep, and a tied head.
fn refuse_unknown(files: &[TensorFile], layout: &ModelLayout, tied: bool) -> Result<()> {
    let known: HashSet<&str> = layout.entries().iter().map(|entry| entry.name.as_str()).collect();
    for file in files {
        let harmless = |name: &str| name.ends_with(".rotary_emb.inv_freq") || (tied && name == HEAD);
        if let Some(name) = file.names().into_iter().find(|name| !known.contains(name) && !harmless(name)) {
            let problem = format!("tensor `{name}` has no place in the model that config.json describes");
            return Err(Error::input(file.path(), problem, CHECK_CONFIG));
        }
    }
    Ok(())
}

fn open_files(path: &Path) -> Result<Vec<TensorFile>> {
    if path.join(SINGLE).is_file() {
        return Ok(vec![TensorFile::open(&path.join(SINGLE))?]);
    }
    let index = path.join(INDEX);
    if index.is_file() {
        return open_shards(path, &index);
    }
    let pickled = path.join("pytorch_model.bin").exists() || path.join("pytorch_model.bin.index.json").exists();
    let (problem, remedy) = if pickled {
        (
            "it has only pickled weights (pytorch_model.bin), which can run code and are never loaded",
            "convert them: load the model with Transformers and call save_pretrained",
        )
    } else {
        ("it has neither model.safetensors nor model.safetensors.index.json", "name a model directory")
    };
    Err(Error::input(path, problem, remedy))
}

/// Opens the files of an index, each once, and checks that they hold what the index says and nothing twice.
fn open_shards(path: &Path, index: &Path) -> Result<Vec<TensorFile>> {
    let refuse = |problem: String| Error::input(index, problem, "download the model again");
    let map = strict_json::object(&strict_json::read_small_file(index)?, index)?;
    let Some(Value::Object(weights)) = map.get("weight_map") else {
        return Err(refuse("there is no object `weight_map`".into()));
    };
    let mut files: BTreeMap<&str, TensorFile> = BTreeMap::new();
    for (tensor, name) in weights {
        let Some(name) = name.as_str() else {
            return Err(refuse(format!("the file of tensor `{tensor}` is not a text")));
        };
        if !files.contains_key(name) {
            files.insert(name, open_shard(path, name, &refuse)?);
        }
        if files.get(name).is_none_or(|file| file.info(tensor).is_none()) {
            return Err(refuse(format!("`{name}` does not hold tensor `{tensor}`")));
        }
    }
    let mut seen = HashSet::new();
    for file in files.values() {
        for tensor in file.names() {
            if !seen.insert(tensor.to_string()) {
                return Err(refuse(format!("tensor `{tensor}` is in two files")));
            }
        }
    }
    Ok(files.into_values().collect())
}

/// A file that an index names: directly in the directory, also after following links.
fn open_shard(path: &Path, name: &str, refuse: &dyn Fn(String) -> Error) -> Result<TensorFile> {
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err(refuse(format!("`{name}` is not a plain file name")));
    }
    let file = path.join(name);
    let real = std::fs::canonicalize(&file).map_err(Error::io("read", &file))?;
    let inside = std::fs::canonicalize(path).map_err(Error::io("read", path))?;
    // The hub's cache links a snapshot's files to its own blobs; that is the one way out that is allowed.
    let cached = inside.ancestors().nth(2).is_some_and(|repository| real.starts_with(repository.join("blobs")));
    if real.starts_with(&inside) || cached {
        return TensorFile::open(&file);
    }
    Err(refuse(format!("`{name}` is a link that leaves the directory")))
}
