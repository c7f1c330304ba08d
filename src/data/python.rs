//! What of Python chat templates see: `json.dumps`, `strftime` at a fixed date, and what counts as white space.

use serde_json::Value;

/// The day that templates see: Friday, 26 July 2024, 12:00. It is the one that Llama 3.1's template falls back to, and it
/// is fixed so that a sample does not depend on when a run is started.
const DAY: [(char, &str); 35] = [
    ('d', "26"),
    ('b', "Jul"),
    ('h', "Jul"),
    ('B', "July"),
    ('m', "07"),
    ('Y', "2024"),
    ('G', "2024"),
    ('y', "24"),
    ('C', "20"),
    ('a', "Fri"),
    ('A', "Friday"),
    ('w', "5"),
    ('u', "5"),
    ('j', "208"),
    ('U', "29"),
    ('W', "30"),
    ('V', "30"),
    ('e', "26"),
    ('H', "12"),
    ('I', "12"),
    ('M', "00"),
    ('S', "00"),
    ('f', "000000"),
    ('p', "PM"),
    ('Z', ""),
    ('z', ""),
    ('D', "07/26/24"),
    ('x', "07/26/24"),
    ('F', "2024-07-26"),
    ('T', "12:00:00"),
    ('X', "12:00:00"),
    ('R', "12:00"),
    ('c', "Fri Jul 26 12:00:00 2024"),
    ('n', "\n"),
    ('t', "\t"),
];

/// Whether Python's `str.isspace` holds of a letter.
pub fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

/// Whether Python's `str.splitlines` ends a line here.
pub fn is_line_end(letter: char) -> bool {
    matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Formats the fixed date as `strftime` does, `%-d` and `%-m` included.
pub fn strftime(format: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(next) = rest.next() {
        if next != '%' {
            text.push(next);
            continue;
        }
        let mut code = rest.next();
        let bare = code == Some('-');
        if bare {
            code = rest.next();
        }
        if code == Some('%') {
            text.push('%');
            continue;
        }
        let known = DAY.iter().find(|(letter, _)| Some(*letter) == code);
        let (_, said) = known.ok_or_else(|| format!("strftime_now does not know the format {format:?}"))?;
        match said.trim_start_matches('0') {
            "" if bare && !said.is_empty() => text.push('0'),
            short if bare => text.push_str(short),
            _ => text.push_str(said),
        }
    }
    Ok(text)
}

/// The options of `json.dumps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonOptions {
    /// Whether everything beyond ASCII is escaped.
    pub ensure_ascii: bool,
    /// What a line gets for each level; all on one line where absent.
    pub indent: Option<String>,
    /// What stands between entries, and behind a key.
    pub separators: Option<(String, String)>,
    /// Whether keys are in alphabetical order.
    pub sort_keys: bool,
}

/// Writes a value as `json.dumps` does.
pub fn json_dumps(value: &Value, options: &JsonOptions) -> String {
    let (item, key) = match &options.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None if options.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { text: String::new(), options, item, key };
    writer.value(value, 1);
    writer.text
}

struct Writer<'a> {
    text: String,
    options: &'a JsonOptions,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(list) => self.list('[', ']', list.iter().map(|value| (None, value)), depth),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, value)| (Some(key.as_str()), value)).collect();
                if self.options.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list('{', '}', entries.into_iter(), depth);
            }
            Value::Number(number) if number.is_f64() => {
                self.text.push_str(&number.as_f64().map_or_else(|| number.to_string(), float));
            }
            other => self.text.push_str(&other.to_string()),
        }
    }

    fn list<'v>(
        &mut self,
        open: char,
        close: char,
        entries: impl ExactSizeIterator<Item = (Option<&'v str>, &'v Value)>,
        depth: usize,
    ) {
        let empty = entries.len() == 0;
        self.text.push(open);
        for (index, (key, value)) in entries.enumerate() {
            if index > 0 {
                self.text.push_str(self.item);
            }
            self.line(depth);
            if let Some(key) = key {
                self.string(key);
                self.text.push_str(self.key);
            }
            self.value(value, depth + 1);
        }
        if !empty {
            self.line(depth - 1);
        }
        self.text.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.options.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.options.ensure_ascii {
            self.text.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            if character.is_ascii() {
                self.text.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                self.text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

/// A float as Python writes it: with an exponent from 1e16 on, which has a sign and at least two digits.
pub fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return value.to_string() };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are what Python's json.dumps gives.
    #[test]
    fn json_is_written_as_python_writes_it() {
        let value =
            serde_json::json!({"b": [1, 2.5, {"c": []}], "a": {"é😀": "x\n\"<"}, "n": null, "t": true, "e": {}});
        let dumps = |value: &Value, options: JsonOptions| json_dumps(value, &options);
        let plain = dumps(&value, JsonOptions::default());
        assert_eq!(plain, r#"{"b": [1, 2.5, {"c": []}], "a": {"é😀": "x\n\"<"}, "n": null, "t": true, "e": {}}"#);
        let ascii = dumps(&value["a"], JsonOptions { ensure_ascii: true, ..JsonOptions::default() });
        assert_eq!(ascii, r#"{"\u00e9\ud83d\ude00": "x\n\"<"}"#);
        let indented = dumps(&value["b"], JsonOptions { indent: Some("  ".into()), ..JsonOptions::default() });
        assert_eq!(indented, "[\n  1,\n  2.5,\n  {\n    \"c\": []\n  }\n]");
        let separators = Some((",".into(), ":".into()));
        let sorted = dumps(&value, JsonOptions { separators, sort_keys: true, ..JsonOptions::default() });
        assert_eq!(sorted, r#"{"a":{"é😀":"x\n\"<"},"b":[1,2.5,{"c":[]}],"e":{},"n":null,"t":true}"#);
    }

    /// Expected texts are what Python's repr gives.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e100, "1.5e+100"),
            (1e-4, "0.0001"),
            (1.5e-7, "1.5e-07"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(json_dumps(&value.into(), &JsonOptions::default()), expected);
        }
    }

    #[test]
    fn the_date_is_fixed() {
        assert_eq!(strftime("%A, %-d %B %Y, %-m/%y, %j %%").unwrap(), "Friday, 26 July 2024, 7/24, 208 %");
        assert!(strftime("%Q").is_err());
        assert!(strftime("100%").is_err());
    }
}
