//! By how much a tokenizer file can make a text longer: such files can hold rules that double it a thousand times.

use serde::Deserialize;
use serde_json::Value;

/// The parts of `tokenizer.json` that rewrite or repeat a text.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Most tokens that a post-processor may add to a text. Real ones add one or two.
const MOST_ADDED: usize = 64;

/// An upper bound of bytes that come out for a byte that goes in.
pub fn growth(tokenizer: &[u8]) -> Result<f64, serde_json::Error> {
    let rules: Rules = serde_json::from_slice(tokenizer)?;
    Ok([&rules.normalizer, &rules.pre_tokenizer, &rules.post_processor].into_iter().map(factor).product())
}

fn factor(rule: &Value) -> f64 {
    let length = |key: &str| rule.get(key).and_then(Value::as_str).map_or(0, str::len) as f64;
    match rule.get("type").and_then(Value::as_str) {
        Some("Replace") => match rule.pointer("/pattern/String").and_then(Value::as_str) {
            Some(pattern) if !pattern.is_empty() => (length("content") / pattern.len() as f64).max(1.0),
            // A regular expression may match between any two bytes.
            _ => 1.0 + length("content"),
        },
        Some("Prepend") => 1.0 + length("prepend"),
        Some("ByteLevel" | "Metaspace") => 2.0,
        Some("Precompiled") => 1.0 + rule.get("precompiled_charsmap").and_then(Value::as_str).map_or(0, longest) as f64,
        // Around one text there may be a few tokens; there is no reason to have the text twice.
        Some("TemplateProcessing") if entries(rule, "single") > MOST_ADDED => f64::INFINITY,
        Some("Sequence") => ["normalizers", "pretokenizers", "processors"]
            .iter()
            .filter_map(|key| rule.get(key)?.as_array())
            .flatten()
            .map(factor)
            .product(),
        _ => 1.0,
    }
}

/// Tokens that a template may put around a text; endless if it has the text more than once.
fn entries(rule: &Value, key: &str) -> usize {
    let pieces = rule.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    let special = rule.get("special_tokens").and_then(Value::as_object);
    let ids = |token: &Value| token.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
    let longest = special.map_or(0, |special| special.values().map(ids).max().unwrap_or(0));
    if texts > 1 { usize::MAX } else { pieces.len().saturating_mul(longest.max(1)) }
}

/// Bytes of the longest replacement in a SentencePiece character map: base64 of a length, a trie of that length and
/// replacements that end in NUL.
fn longest(encoded: &str) -> usize {
    let map = base64(encoded);
    let trie = map.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    let replacements = map.get(trie.saturating_add(4)..).unwrap_or(&map);
    replacements.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}

fn base64(encoded: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = encoded.bytes().filter_map(|byte| DIGITS.iter().position(|&digit| digit == byte));
    let mut bytes = Vec::with_capacity(encoded.len() / 4 * 3);
    let mut bits = 0u32;
    let mut held = 0;
    for digit in digits {
        bits = (bits << 6) | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_in_sequence_multiply() {
        let double = r#"{"type":"Replace","pattern":{"String":"a"},"content":"aa"}"#;
        let bomb = vec![double; 40].join(",");
        let file = format!(r#"{{"normalizer":{{"type":"Sequence","normalizers":[{bomb}]}},"model":{{}}}}"#);
        assert_eq!(growth(file.as_bytes()).unwrap(), 2f64.powi(40));
        assert_eq!(growth(br#"{"normalizer":null,"pre_tokenizer":{"type":"ByteLevel"}}"#).unwrap(), 2.0);
        let template = |single: &str| {
            format!(
                r#"{{"post_processor":{{"type":"TemplateProcessing","single":[{single}],"pair":[],
                "special_tokens":{{"x":{{"id":"x","ids":[1,2],"tokens":["x","x"]}}}}}}}}"#
            )
        };
        let text = r#"{"Sequence":{"id":"A"}}"#;
        let token = r#"{"SpecialToken":{"id":"x"}}"#;
        assert_eq!(growth(template(&format!("{token},{text},{token}")).as_bytes()).unwrap(), 1.0);
        assert_eq!(growth(template(&format!("{text},{text}")).as_bytes()).unwrap(), f64::INFINITY);
        let many = vec![token; 40].join(",");
        assert_eq!(growth(template(&format!("{text},{many}")).as_bytes()).unwrap(), f64::INFINITY);
    }

    #[test]
    fn the_longest_replacement_of_a_character_map_counts() {
        assert_eq!(base64("aGVsbG8="), b"hello");
        // Length 4, a trie of four bytes, the replacements "ab" and "xyz".
        let map = "BAAAAAAAAABhYgB4eXoA";
        assert_eq!(base64(map), b"\x04\0\0\0\0\0\0\0ab\0xyz\0");
        let file = format!(r#"{{"normalizer":{{"type":"Precompiled","precompiled_charsmap":"{map}"}}}}"#);
        assert_eq!(growth(file.as_bytes()).unwrap(), 4.0);
    }
}
