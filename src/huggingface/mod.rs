//! The files that Transformers, PEFT and vLLM read and write: model directories, safetensors, adapters. Everything read
//! here may come from a stranger: it is checked before it is believed.

mod config_json;
mod config_keys;
mod export;
mod hub;
mod json_keys;
mod peft;
mod peft_modules;
mod rope_json;
mod safetensors;
mod strict_json;

pub use export::{ExportDType, fill_model, write_model};
pub use hub::ModelDirectory;
pub use peft::{fill_adapter, read_adapter, write_adapter};
pub use safetensors::{TensorFile, TensorInfo};
