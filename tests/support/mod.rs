//! What several test programs use. Each uses a part of it.
#![allow(dead_code)]

pub mod chat_model;
pub mod parquet_file;
pub mod redteam_results;
