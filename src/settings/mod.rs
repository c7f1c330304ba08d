//! The settings engine that run files, suite files and attack files stand on: TOML with the line of every value, presets
//! below, overrides above, and errors that name the key, its place and the nearest known name.

mod checks;
mod document;
mod reader;
mod tree;

pub(crate) use checks::{at_least, at_most, betas, fault, finite, fraction, not_negative, positive, repeated};
pub(crate) use document::{add_place, located, parse, read_text, to_toml, typed};
pub(crate) use reader::suggestion;
pub(crate) use tree::{Node, Origin, Value};
