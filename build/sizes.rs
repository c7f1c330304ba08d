//! The sizes that kernels and launchers share: `kernels/sizes.cuh` as a Rust module.

use std::collections::BTreeSet;
use std::fmt::Write;

/// The declarations of the header as constants and functions of `usize`.
///
/// # Errors
/// A declaration that is none of what the header's first lines allow.
pub fn rust(header: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut constants = BTreeSet::new();
    for statement in statements(header) {
        let declaration = declaration(&statement).filter(Declaration::is_plain);
        let declaration = declaration.ok_or_else(|| format!("sizes.cuh: not understood: {statement}"))?;
        let Declaration { name, parameters, expression } = declaration;
        let value = words(expression, |word| match constants.contains(word) {
            true => word.to_uppercase(),
            false => word.to_string(),
        });
        let _ = if let Some(parameters) = parameters {
            let parameters: Vec<String> = parameters.iter().map(|parameter| format!("{parameter}: usize")).collect();
            writeln!(text, "pub const fn {name}({}) -> usize {{\n    {value}\n}}", parameters.join(", "))
        } else {
            constants.insert(name.to_string());
            writeln!(text, "pub const {}: usize = {value};", name.to_uppercase())
        };
    }
    Ok(text)
}

/// What the header declares, each on one line.
fn statements(header: &str) -> Vec<String> {
    let mut statements = vec![String::new()];
    let lines = header.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let statement = statements.last_mut().expect("never empty");
        *statement += if statement.is_empty() { "" } else { " " };
        *statement += line;
        if line.ends_with('}') || line.ends_with(';') && !statement.contains('{') {
            statements.push(String::new());
        }
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

struct Declaration<'a> {
    name: &'a str,
    /// Of a function.
    parameters: Option<Vec<&'a str>>,
    expression: &'a str,
}

impl Declaration<'_> {
    fn is_plain(&self) -> bool {
        let name = |word: &str| word.starts_with(|c: char| c.is_ascii_lowercase()) && word.bytes().all(in_word);
        let operator = |c: char| c.is_ascii() && in_word(c as u8) || " +-*/(),".contains(c);
        let parameters = self.parameters.iter().flatten();
        name(self.name) && parameters.into_iter().all(|word| name(word)) && self.expression.chars().all(operator)
    }
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

fn declaration(line: &str) -> Option<Declaration<'_>> {
    let rest = line.strip_prefix("constexpr uint32_t ")?;
    if let Some((name, expression)) = rest.strip_suffix(';').and_then(|rest| rest.split_once(" = ")) {
        return Some(Declaration { name, parameters: None, expression });
    }
    let (head, expression) = rest.strip_suffix("; }")?.split_once(") { return ")?;
    let (name, parameters) = head.split_once('(')?;
    let parameters =
        parameters.split(", ").map(|parameter| parameter.strip_prefix("uint32_t ")).collect::<Option<_>>()?;
    Some(Declaration { name, parameters: Some(parameters), expression })
}

/// The text with every word replaced.
fn words(text: &str, replace: impl Fn(&str) -> String) -> String {
    let mut replaced = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.bytes().take_while(|byte| in_word(*byte)).count();
        replaced += &replace(&rest[..word]);
        let other = rest[word..].bytes().take_while(|byte| !in_word(*byte)).count();
        replaced += &rest[word..word + other];
        rest = &rest[word + other..];
    }
    replaced
}
