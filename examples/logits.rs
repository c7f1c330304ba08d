//! Logits of a model directory, with or without a PEFT adapter: the shortest use of the library.
//!
//!     cargo run --release --example logits -- MODEL [--adapter DIR] ROWS.jsonl LOGITS.f32
//!
//! ROWS holds `{"input_ids": [...]}` lines; LOGITS gets [tokens, vocab_size] little-endian f32, row after row.

use std::path::{Path, PathBuf};

use temper::backend::cpu::Cpu;
use temper::huggingface::{ModelDirectory, read_adapter};
use temper::model::Adapter;
use temper::objective::{Evaluator, LossBatch, Subject};
use temper::run::{LoadedModel, StreamFile};
use temper::{Error, Result};

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let adapter = arguments.iter().position(|a| a == "--adapter").map(|at| {
        let path = PathBuf::from(arguments.remove(at + 1));
        arguments.remove(at);
        path
    });
    let [model, rows, out] = arguments.as_slice() else {
        return Err(Error::config("usage", "MODEL [--adapter DIR] ROWS.jsonl LOGITS.f32", "pass these arguments"));
    };
    logits(Path::new(model), adapter.as_deref(), Path::new(rows), Path::new(out))
}

fn logits(model: &Path, adapter: Option<&Path>, rows: &Path, out: &Path) -> Result<()> {
    let loaded = LoadedModel::new(Cpu, ModelDirectory::open(model)?, 256)?;
    let adapter = match adapter {
        None => None,
        Some(path) => {
            let (config, factors) = read_adapter(path, &loaded.model.config)?;
            let mut adapter = Adapter::zeros(&Cpu, &loaded.model.config, config)?;
            adapter.parameters.upload(&Cpu, &factors)?;
            Some(adapter)
        }
    };
    let file =
        StreamFile { name: "rows", data: &rows.into(), batch: 4, max_length: 256, shuffle: false, pack: true, seed: 0 };
    let stream = file.open(&loaded.directory)?;
    let adapters: Vec<&Adapter<Cpu>> = adapter.iter().collect();
    let mut evaluator = Evaluator::new(loaded.model.clone(), stream.max_batch_tokens(), &adapters)?;
    let subject = Subject { weights: &loaded.weights, adapter: adapter.as_ref(), dropout: None };
    let mut bytes = Vec::new();
    for batch in stream.all_batches()? {
        let tokens: Vec<u32> = (0..batch.len() as u32).collect();
        evaluator.forward(subject, &LossBatch::new(&loaded.model, batch)?)?;
        let logits = loaded.model.logits(&loaded.weights, evaluator.workspace(), &tokens)?;
        bytes.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
    }
    std::fs::write(out, bytes).map_err(Error::io("write", out))
}
