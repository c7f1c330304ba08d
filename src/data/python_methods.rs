//! Python's methods of texts, lists and mappings, for templates: those that minijinja-contrib lacks or does otherwise.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::python::{is_line_end, is_space};

type Called = Result<Option<Value>, Error>;

/// Calls `method` of `value`. What is not here is looked for among minijinja-contrib's.
pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => text_method(state, text, method, args)?,
        (None, ValueKind::Seq) => list_method(value, method, args)?,
        (None, ValueKind::Map) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// An operation that Python would refuse, too.
pub fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn text_method(state: &State, text: &str, method: &str, args: &[Value]) -> Called {
    match method {
        "strip" | "lstrip" | "rstrip" => stripped(text, method, args),
        "split" | "rsplit" => split(state, text, method, args),
        "splitlines" => split_lines(state, text, args),
        "partition" | "rpartition" => partition(text, method, args),
        "startswith" | "endswith" => has_affix(text, method, args),
        "removeprefix" | "removesuffix" => without_affix(text, method, args),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, method, args),
        "zfill" | "ljust" | "rjust" | "center" => pad(state, text, method, args),
        "swapcase" | "title" => cased(text, method, args),
        "isspace" | "isdigit" | "isdecimal" | "isnumeric" => consists_of(text, method, args),
        _ => Ok(None),
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Called {
    match method {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *what);
            place.map(|place| Some(Value::from(place))).ok_or_else(|| invalid(format!("{what} is not in list")))
        }
        _ => Ok(None),
    }
}

fn stripped(text: &str, method: &str, args: &[Value]) -> Called {
    let (characters,): (Option<&str>,) = from_args(args)?;
    let goes = |letter: char| characters.map_or_else(|| is_space(letter), |some| some.contains(letter));
    Ok(Some(Value::from(match method {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    })))
}

/// A list of texts, paid for.
fn list(state: &State, pieces: &[&str]) -> Called {
    state.consume_fuel(pieces.len() as u64)?;
    Ok(Some(pieces.iter().copied().map(Value::from).collect()))
}

fn split(state: &State, text: &str, method: &str, args: &[Value]) -> Called {
    let (separator, limit, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(options.get("sep")?);
    let limit = limit.or(options.get("maxsplit")?).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    options.assert_all_used()?;
    let from_the_end = method == "rsplit";
    let mut pieces: Vec<&str> = match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) if from_the_end => text.rsplitn(limit.saturating_add(1), separator).collect(),
        Some(separator) => text.splitn(limit.saturating_add(1), separator).collect(),
        None => words(text, limit, from_the_end),
    };
    if from_the_end {
        pieces.reverse();
    }
    list(state, &pieces)
}

/// Words between white space, after `limit` of them the rest as it is; from the end, the last word comes first.
fn words(text: &str, limit: usize, from_the_end: bool) -> Vec<&str> {
    fn trim(text: &str, from_the_end: bool) -> &str {
        if from_the_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) }
    }
    let mut words = Vec::new();
    let mut rest = trim(text, from_the_end);
    while !rest.is_empty() {
        let cut = if from_the_end {
            rest.char_indices().rev().find(|(_, letter)| is_space(*letter)).map(|(at, letter)| at + letter.len_utf8())
        } else {
            rest.find(is_space)
        };
        let (word, remainder) = match cut.filter(|_| words.len() < limit) {
            None => (rest, ""),
            Some(at) if from_the_end => (&rest[at..], &rest[..at]),
            Some(at) => (&rest[..at], &rest[at..]),
        };
        words.push(word);
        rest = trim(remainder, from_the_end);
    }
    words
}

fn split_lines(state: &State, text: &str, args: &[Value]) -> Called {
    let (keep, options): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = keep.or(options.get("keepends")?).unwrap_or(false);
    options.assert_all_used()?;
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line = rest.find(is_line_end).unwrap_or(rest.len());
        let end = match rest[line..].chars().next() {
            Some('\r') if rest[line..].starts_with("\r\n") => line + 2,
            Some(letter) => line + letter.len_utf8(),
            None => line,
        };
        lines.push(&rest[..if keep { end } else { line }]);
        rest = &rest[end..];
    }
    list(state, &lines)
}

fn partition(text: &str, method: &str, args: &[Value]) -> Called {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let parts = match method {
        "partition" => match text.split_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => [text, "", ""],
        },
        _ => match text.rsplit_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => ["", "", text],
        },
    };
    Ok(Some(Value::from(Tuple::from(parts.map(Value::from)))))
}

/// The part of a text that `start` and `end` choose as in Python, in letters, and how many letters are before it; `None`
/// where the start is beyond the end.
fn chosen(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    let length = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let start = place(start.unwrap_or(0));
    let end = place(end.unwrap_or(length)).min(length);
    if start > end {
        return None;
    }
    let byte = |letters: i64| text.char_indices().nth(letters as usize).map_or(text.len(), |(at, _)| at);
    Some((start as usize, &text[byte(start)..byte(end)]))
}

fn has_affix(text: &str, method: &str, args: &[Value]) -> Called {
    let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let affixes: Vec<Value> = match affix.as_str() {
        Some(_) => vec![affix.clone()],
        None if affix.is_tuple() => affix.try_iter()?.collect(),
        None => return Err(invalid(format!("{method} takes a text or a tuple of texts, not {}", affix.kind()))),
    };
    let part = chosen(text, start, end).map(|(_, part)| part);
    for affix in &affixes {
        let affix = affix.as_str().ok_or_else(|| invalid(format!("{method} takes texts, not {}", affix.kind())))?;
        if part.is_some_and(|part| if method == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) })
        {
            return Ok(Some(Value::from(true)));
        }
    }
    Ok(Some(Value::from(false)))
}

fn without_affix(text: &str, method: &str, args: &[Value]) -> Called {
    let (affix,): (&str,) = from_args(args)?;
    let without = if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
    Ok(Some(Value::from(without.unwrap_or(text))))
}

fn search(text: &str, method: &str, args: &[Value]) -> Called {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let part = chosen(text, start, end);
    if method == "count" {
        return Ok(Some(Value::from(part.map_or(0, |(_, part)| part.matches(what).count()))));
    }
    let found = part.and_then(|(before, part)| {
        let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) }?;
        Some(before + part[..at].chars().count())
    });
    match found {
        Some(place) => Ok(Some(Value::from(place))),
        None if method.ends_with("index") => Err(invalid("substring not found")),
        None => Ok(Some(Value::from(-1))),
    }
}

/// Where a text gets what fills it up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before it.
    Left,
    /// Behind it.
    Right,
    /// On both sides, as Python centres.
    Both,
}

/// A text of at least `width` letters, filled up by `fill`.
pub fn padded(state: &State, text: &str, width: usize, fill: char, side: Side) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    // What is filled up can be much longer than what the template says, so it is paid for before it is there.
    state.consume_fuel((missing / 16) as u64)?;
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let filling = |count: usize| fill.to_string().repeat(count);
    Ok(filling(left) + text + &filling(missing - left))
}

fn pad(state: &State, text: &str, method: &str, args: &[Value]) -> Called {
    let (width, fill): (i64, Option<char>) = from_args(args)?;
    let width = usize::try_from(width).unwrap_or(0);
    let side = match method {
        "ljust" => Side::Right,
        "center" => Side::Both,
        _ => Side::Left,
    };
    if method != "zfill" {
        return Ok(Some(Value::from(padded(state, text, width, fill.unwrap_or(' '), side)?)));
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = &text[..text.len() - digits.len()];
    Ok(Some(Value::from(format!("{sign}{}", padded(state, digits, width.saturating_sub(sign.len()), '0', side)?))))
}

fn cased(text: &str, method: &str, args: &[Value]) -> Called {
    let () = from_args(args)?;
    let mut result = String::with_capacity(text.len());
    let mut within_word = false;
    for letter in text.chars() {
        let upper = if method == "title" { !within_word } else { letter.is_lowercase() };
        if upper {
            result.extend(letter.to_uppercase())
        } else {
            result.extend(letter.to_lowercase())
        }
        within_word = letter.is_alphabetic();
    }
    Ok(Some(Value::from(result)))
}

/// Whether there are letters and all are of one kind. Of digits beyond ASCII Python knows more than is known here, so those
/// are refused rather than guessed.
fn consists_of(text: &str, method: &str, args: &[Value]) -> Called {
    let () = from_args(args)?;
    if method == "isspace" {
        return Ok(Some(Value::from(!text.is_empty() && text.chars().all(is_space))));
    }
    let unsure = |letter: char| !letter.is_ascii() && (letter.is_numeric() || method == "isnumeric");
    match text.chars().find(|&letter| unsure(letter)) {
        Some(letter) => Err(invalid(format!("{method} is known for ASCII only, not for {letter:?}"))),
        None => Ok(Some(Value::from(!text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit())))),
    }
}
