//! The two Python functions that chat templates call: `json.dumps` and `strftime`, at a fixed date.

use serde_json::Value;

/// The day that templates see: Friday, 26 July 2024, 12:00. It is the one that Llama 3.1's template falls back to, and it
/// is fixed so that a sample does not depend on when a run is started.
const DAY: [(char, &str); 16] = [
    ('d', "26"),
    ('b', "Jul"),
    ('B', "July"),
    ('m', "07"),
    ('Y', "2024"),
    ('y', "24"),
    ('a', "Fri"),
    ('A', "Friday"),
    ('j', "208"),
    ('e', "26"),
    ('H', "12"),
    ('I', "12"),
    ('M', "00"),
    ('S', "00"),
    ('p', "PM"),
    ('%', "%"),
];

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
        let known = DAY.iter().find(|(letter, _)| Some(*letter) == code);
        let (_, said) = known.ok_or_else(|| format!("strftime_now does not know the format {format:?}"))?;
        text.push_str(if bare { said.trim_start_matches('0') } else { said });
    }
    Ok(text)
}

/// Writes a value as `json.dumps` does: `", "` and `": "` between things, or lines indented by `indent` spaces.
pub fn json_dumps(
    value: &Value,
    ensure_ascii: bool,
    indent: Option<usize>,
    separators: Option<&[String]>,
    sort_keys: bool,
) -> Result<String, String> {
    let (item, key) = match separators {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err("tojson takes two separators".into()),
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer =
        Writer { text: String::new(), ensure_ascii, indent: indent.map(|n| n.min(16)), item, key, sort_keys };
    writer.value(value, 1);
    Ok(writer.text)
}

struct Writer<'a> {
    text: String,
    ensure_ascii: bool,
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(list) => self.list('[', ']', list.iter().map(|value| (None, value)), depth),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, value)| (Some(key.as_str()), value)).collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list('{', '}', entries.into_iter(), depth);
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
        if let Some(indent) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.ensure_ascii {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are what Python's json.dumps gives.
    #[test]
    fn json_is_written_as_python_writes_it() {
        let value =
            serde_json::json!({"b": [1, 2.5, {"c": []}], "a": {"é😀": "x\n\"<"}, "n": null, "t": true, "e": {}});
        let plain = json_dumps(&value, false, None, None, false).unwrap();
        assert_eq!(plain, r#"{"b": [1, 2.5, {"c": []}], "a": {"é😀": "x\n\"<"}, "n": null, "t": true, "e": {}}"#);
        let ascii = json_dumps(&value["a"], true, None, None, false).unwrap();
        assert_eq!(ascii, r#"{"\u00e9\ud83d\ude00": "x\n\"<"}"#);
        let indented = json_dumps(&value["b"], false, Some(2), None, false).unwrap();
        assert_eq!(indented, "[\n  1,\n  2.5,\n  {\n    \"c\": []\n  }\n]");
        let separators = [",".to_string(), ":".to_string()];
        let sorted = json_dumps(&value, false, None, Some(&separators), true).unwrap();
        assert_eq!(sorted, r#"{"a":{"é😀":"x\n\"<"},"b":[1,2.5,{"c":[]}],"e":{},"n":null,"t":true}"#);
        assert!(json_dumps(&value, false, None, Some(&separators[..1]), false).is_err());
    }

    #[test]
    fn the_date_is_fixed() {
        assert_eq!(strftime("%A, %-d %B %Y, %-m/%y, %j %%").unwrap(), "Friday, 26 July 2024, 7/24, 208 %");
        assert!(strftime("%Q").is_err());
        assert!(strftime("100%").is_err());
    }
}
