//! What several test programs use. Each uses a part of it.
#![allow(dead_code)]

pub mod chat_model;
pub mod models;
pub mod numbers;
pub mod parquet_file;
pub mod program;
pub mod redteam_results;
