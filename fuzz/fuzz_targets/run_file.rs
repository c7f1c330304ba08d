//! Any text as a run file: an error or a checked configuration, whose resolved text gives the same one again.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use temper::config::RunConfig;

fuzz_target!(|text: &str| {
    let (body, assignment) = text.split_once('\0').unwrap_or((text, ""));
    let overrides: Vec<String> = (!assignment.is_empty()).then(|| assignment.to_string()).into_iter().collect();
    let path = Path::new("run.toml");
    if let Ok(config) = RunConfig::from_text(body, path, &overrides) {
        let resolved = config.resolved().expect("a checked configuration can be written");
        let again = RunConfig::from_text(&resolved, path, &[]).expect("a resolved configuration can be read");
        assert_eq!(again.config_hash().unwrap(), config.config_hash().unwrap());
    }
});
