//! The shapes that rows of data sets come in: which columns make which shape. One table: readers look their columns up in
//! it, messages name the nearest shape of it, and `docs/data.md` shows it.

use std::cmp::Reverse;

use serde_json::{Map, Value};

use self::names::*;
use super::row::Problem;

/// Columns that mean the same. A row is read by the first of them that it has; the first is also the name that the setting
/// `columns` knows.
pub type Names = &'static [&'static str];

/// The columns that shapes are made of.
pub mod names {
    use super::Names;

    pub const CHOSEN_IDS: Names = &["chosen_input_ids"];
    pub const REJECTED_IDS: Names = &["rejected_input_ids"];
    pub const CHOSEN_LABELS: Names = &["chosen_labels"];
    pub const REJECTED_LABELS: Names = &["rejected_labels"];
    pub const PROMPT_IDS: Names = &["prompt_input_ids"];
    pub const PROMPT_LENGTH: Names = &["prompt_length"];
    pub const IDS: Names = &["input_ids"];
    pub const LABELS: Names = &["labels"];
    pub const MASK: Names = &["attention_mask"];
    pub const CHOSEN: Names = &["chosen"];
    pub const REJECTED: Names = &["rejected"];
    pub const MESSAGES: Names = &["messages", "conversations"];
    pub const SYSTEM: Names = &["system", "system_prompt"];
    /// What an answer or a pair of answers in the same row answers.
    pub const ANSWERED: Names = &["prompt", "question", "query", "goal", "Goal"];
    pub const ANSWER: Names = &["response", "completion", "target", "Target"];
    pub const INSTRUCTION: Names = &["instruction"];
    pub const INPUT: Names = &["input", "context"];
    pub const OUTPUT: Names = &["output", "response"];
    pub const HISTORY: Names = &["history"];
    pub const TEXT: Names = &["text", "text_chunk", "txt_chunk"];
    /// What a model is asked. `Goal` stands before `Behavior`, which is a title where both are there.
    pub const PROMPT: Names =
        &["prompt", "forbidden_prompt", "goal", "Goal", "Behavior", "turns", "instruction", "question", "query"];
    pub const CONTEXT: Names = &["ContextString"];
    pub const QUESTION: Names = &["question"];
    pub const CHOICES: Names = &["choices", "options"];
    pub const LETTERED: [Names; 10] = [&["A"], &["B"], &["C"], &["D"], &["E"], &["F"], &["G"], &["H"], &["I"], &["J"]];
    pub const RIGHT: Names = &["answer", "answer_index"];
    pub const SUBJECT: Names = &["subject", "category"];
}

/// What rows are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Samples to train on, or to measure a loss on.
    Training,
    /// Something for the model to answer or to go on with. Every row for training will do as well.
    Prompts,
    /// Multiple choice.
    Questions,
}

impl Purpose {
    fn words(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Prompts => "prompts",
            Self::Questions => "multiple choice",
        }
    }
}

/// A shape of rows.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    /// What such rows are for.
    pub purpose: Purpose,
    /// The columns that it has to have: one of each entry.
    pub needs: &'static [Names],
    /// The columns that it may have.
    pub may: &'static [Names],
    /// Who publishes such rows.
    pub published: &'static str,
}

/// Every shape. Of those for training, the first that a row fits is the one that it is read as.
pub static SHAPES: [Shape; 10] = [
    Shape {
        name: "preference pair of token ids",
        purpose: Purpose::Training,
        needs: &[CHOSEN_IDS, REJECTED_IDS],
        may: &[CHOSEN_LABELS, REJECTED_LABELS, PROMPT_IDS, PROMPT_LENGTH],
        published: "tokenized preference data",
    },
    Shape {
        name: "token ids",
        purpose: Purpose::Training,
        needs: &[IDS],
        may: &[LABELS, MASK],
        published: "tokenized data",
    },
    Shape {
        name: "preference pair",
        purpose: Purpose::Training,
        needs: &[CHOSEN, REJECTED],
        may: &[ANSWERED, SYSTEM],
        published: "HH-RLHF, UltraFeedback, TRL",
    },
    Shape {
        name: "conversation",
        purpose: Purpose::Training,
        needs: &[MESSAGES],
        may: &[SYSTEM],
        published: "OpenAI's format, ShareGPT",
    },
    Shape {
        name: "prompt and answer",
        purpose: Purpose::Training,
        needs: &[ANSWERED, ANSWER],
        may: &[SYSTEM],
        published: "BeaverTails, OpenOrca, AdvBench, JailbreakBench",
    },
    Shape {
        name: "instruction",
        purpose: Purpose::Training,
        needs: &[INSTRUCTION, OUTPUT],
        may: &[INPUT, SYSTEM, HISTORY],
        published: "Alpaca, Dolly",
    },
    Shape {
        name: "text",
        purpose: Purpose::Training,
        needs: &[TEXT],
        may: &[],
        published: "corpora; the WMDP corpora",
    },
    Shape {
        name: "prompt",
        purpose: Purpose::Prompts,
        needs: &[PROMPT],
        may: &[INPUT, CONTEXT, SYSTEM],
        published: "HarmBench, StrongREJECT, XSTest, SORRY-Bench, IFEval, MT-Bench, AdvBench, HEx-PHI, `.txt` lists",
    },
    Shape {
        name: "question",
        purpose: Purpose::Questions,
        needs: &[QUESTION, CHOICES, RIGHT],
        may: &[SUBJECT],
        published: "WMDP, MMLU, MMLU-Pro",
    },
    Shape {
        name: "question in columns",
        purpose: Purpose::Questions,
        needs: &[QUESTION, LETTERED[0], LETTERED[1], RIGHT],
        may: &[
            LETTERED[2],
            LETTERED[3],
            LETTERED[4],
            LETTERED[5],
            LETTERED[6],
            LETTERED[7],
            LETTERED[8],
            LETTERED[9],
            SUBJECT,
        ],
        published: "MMLU's own CSV, whose files have no header",
    },
];

/// Keys of a row that other programs train by and that change nothing here, with what that means.
const UNREAD: [(&str, &str); 13] = [
    ("tools", "the chat template is not told of tools"),
    ("functions", "the chat template is not told of functions"),
    ("images", "pictures are not read"),
    ("image", "pictures are not read"),
    ("videos", "films are not read"),
    ("audios", "sound is not read"),
    ("reasoning_content", "reasoning is neither shown nor learned"),
    ("reasoning", "reasoning is neither shown nor learned"),
    ("thinking", "reasoning is neither shown nor learned"),
    ("loss_mask", "which tokens are learned follows from the roles"),
    ("weight", "every row counts the same"),
    ("label", "rows that are marked as bad are learned like good ones"),
    ("kto_tag", "rows that are marked as bad are learned like good ones"),
];

/// Keys of a message that other programs train by and that change nothing here.
const UNREAD_IN_MESSAGES: [(&str, &str); 7] = [
    ("reasoning_content", "reasoning is neither shown nor learned"),
    ("reasoning", "reasoning is neither shown nor learned"),
    ("thinking", "reasoning is neither shown nor learned"),
    ("images", "pictures are not read"),
    ("loss_mask", "which tokens are learned follows from the roles"),
    ("loss_scale", "every learned token counts the same"),
    ("train_detail", "a turn is learned as a whole or not at all"),
];

/// Of the keys that are passed over, those that would change what a model is shown.
const SHOWN: [&str; 7] = ["tools", "functions", "images", "image", "videos", "audios", "turns"];

/// Whether a key that is passed over would change what a model is shown, and not only what it learns.
pub fn is_shown((key, _): &Unread) -> bool {
    SHOWN.contains(key)
}

/// A key that a row has and that is not read although it would change what is learned elsewhere, and what that means.
pub type Unread = (&'static str, &'static str);

/// A row by its columns. A key whose value is `null` counts as absent: typed tables give every row every key.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The columns of `object`.
    pub fn new(object: &'a Map<String, Value>) -> Self {
        Self(object)
    }

    /// The first of `names` that the row has, and its value.
    pub fn get(self, names: Names) -> Option<(&'static str, &'a Value)> {
        names.iter().find_map(|&name| Some((name, self.0.get(name).filter(|value| !value.is_null())?)))
    }

    /// Whether the row has a column of every entry.
    pub fn has(self, needs: &[Names]) -> bool {
        needs.iter().all(|&names| self.get(names).is_some())
    }

    /// Whether the row has choices, so that it is no question without them.
    pub fn has_choices(self) -> bool {
        self.get(CHOICES).is_some() || self.has(&[LETTERED[0], LETTERED[1]])
    }

    /// The keys that are passed over although they say something about what is to be learned.
    pub fn unread(self) -> impl Iterator<Item = Unread> + 'a {
        self.saying(&UNREAD)
    }

    /// As [`Fields::unread`], where this is a message.
    pub fn unread_in_message(self) -> impl Iterator<Item = Unread> + 'a {
        self.saying(&UNREAD_IN_MESSAGES)
    }

    fn saying(self, keys: &'static [Unread]) -> impl Iterator<Item = Unread> + 'a {
        let says = move |key: &str| self.0.get(key).is_some_and(|value| says_something(key, value));
        keys.iter().copied().filter(move |(key, _)| says(key))
    }

    /// What the row is for, by the largest shape of which it has all columns.
    pub fn purpose(self) -> Option<Purpose> {
        let fitting = SHAPES.iter().filter(|shape| self.has(shape.needs));
        fitting.max_by_key(|shape| shape.needs.len()).map(|shape| shape.purpose)
    }

    /// Why no shape for `purpose` fits: the row's keys, and the shape that it comes nearest to.
    pub fn no_shape(self, purpose: Purpose) -> Problem {
        let keys: Vec<_> = self.0.keys().take(12).map(|key| format!("{key:?}")).collect();
        let more =
            if self.0.len() > keys.len() { format!(" and {} more", self.0.len() - keys.len()) } else { String::new() };
        let keys = format!("no known shape, its keys are {}{more}", keys.join(", "));
        let lacking = |shape: &Shape| shape.needs.iter().filter(|&&names| self.get(names).is_none()).count();
        let has = |shape: &Shape| shape.needs.len() - lacking(shape);
        let candidates = || SHAPES.iter().filter(move |shape| readable(shape.purpose, purpose));
        // Of shapes of which the row has as much, the one that lacks least; of these the first.
        let nearest = candidates().min_by_key(|shape| (Reverse(has(shape)), lacking(shape)));
        let nearest = nearest.filter(|shape| has(shape) > 0);
        let elsewhere = SHAPES.iter().filter(|shape| !readable(shape.purpose, purpose) && self.has(shape.needs));
        let elsewhere = elsewhere.max_by_key(|shape| shape.needs.len());
        if let Some(shape) = elsewhere.filter(|shape| shape.needs.len() > nearest.map_or(0, has)) {
            let for_what = format!("which is for {} and not for {}", shape.purpose.words(), purpose.words());
            let problem = format!("{keys}: a {}, {for_what}", shape.name);
            return Problem { problem, remedy: "use other data, or say by `columns` what its columns are".into() };
        }
        let Some(shape) = nearest else {
            let known: Vec<String> = candidates().map(|shape| alternatives(shape.needs)).collect();
            return Problem { problem: keys, remedy: format!("give it {}", known.join("; or ")) };
        };
        let missing: Vec<&str> =
            shape.needs.iter().filter(|&&names| self.get(names).is_none()).map(|names| names[0]).collect();
        let missing = missing.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
        let problem = format!("{keys}; the nearest is {}, without {missing}", shape.name);
        Problem { problem, remedy: format!("add {missing}, or say by `columns` which column it is") }
    }
}

/// Whether rows for one purpose can be read for another.
fn readable(rows: Purpose, purpose: Purpose) -> bool {
    rows == purpose || (rows == Purpose::Training && purpose == Purpose::Prompts)
}

fn alternatives(needs: &[Names]) -> String {
    needs.iter().map(|names| format!("`{}`", names[0])).collect::<Vec<_>>().join(" and ")
}

/// Marks and weights of rows, which are numbers; a text of such a name is the name of a class or the like.
const MARKS: [&str; 3] = ["weight", "label", "kto_tag"];

/// Whether a value asks for something else than what is done without it.
fn says_something(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() != Some(1.0),
        Value::String(text) => !text.is_empty() && !MARKS.contains(&key),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(false) => true,
    }
}

/// Every column that some reader looks at.
pub fn is_known(column: &str) -> bool {
    let read = SHAPES.iter().flat_map(|shape| shape.needs.iter().chain(shape.may)).any(|names| names.contains(&column));
    read || UNREAD.iter().any(|(key, _)| *key == column)
}

/// The names that `columns` can map to.
pub fn canonical() -> Vec<&'static str> {
    let mut names: Vec<_> =
        SHAPES.iter().flat_map(|shape| shape.needs.iter().chain(shape.may)).map(|names| names[0]).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether columns of these names make some shape.
pub fn fits(has: impl Fn(&str) -> bool) -> bool {
    SHAPES.iter().any(|shape| shape.needs.iter().all(|names| names.iter().any(|name| has(name))))
}

/// The table of shapes as Markdown, as the documentation shows it.
pub fn markdown() -> String {
    let names = |names: &Names| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    let mut table =
        String::from("| for | shape | columns that it has to have | columns that it may have | published by |\n");
    table += "|---|---|---|---|---|\n";
    for Shape { name, purpose, needs, may, published } in &SHAPES {
        let needs: Vec<String> = needs.iter().map(names).collect();
        let may: Vec<String> = may.iter().map(names).collect();
        let (needs, may) = (needs.join("; "), may.join("; "));
        table += &format!("| {} | {name} | {needs} | {may} | {published} |\n", purpose.words());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(row: Value, purpose: Purpose) -> String {
        let Value::Object(object) = row else { panic!("{row}") };
        let Problem { problem, remedy } = Fields::new(&object).no_shape(purpose);
        format!("{problem}; {remedy}")
    }

    #[test]
    fn a_row_of_no_shape_is_told_its_keys_and_the_nearest_shape() {
        let row = serde_json::json!({"Behavior": "a", "topic": "b"});
        assert_eq!(
            problem(row, Purpose::Training),
            "no known shape, its keys are \"Behavior\", \"topic\": a prompt, which is for prompts and not for training; \
             use other data, or say by `columns` what its columns are"
        );
        let row = serde_json::json!({"question": "a", "choices": ["b"], "answer": 1});
        assert!(
            problem(row, Purpose::Training).contains(": a question, which is for multiple choice and not for training")
        );
        let row = serde_json::json!({"prompt": "a"});
        assert!(problem(row, Purpose::Training).contains("the nearest is prompt and answer, without `response`"));
        let row = serde_json::json!({"question": "a", "choices": ["b"], "key": 1});
        assert!(problem(row, Purpose::Questions).contains("the nearest is question, without `answer`; add `answer`"));
        let none = problem(serde_json::json!({"x": 1}), Purpose::Questions);
        assert!(none.contains("its keys are \"x\"; give it `question` and `choices` and `answer`; or"), "{none}");
    }

    #[test]
    fn nulls_are_absent_and_ones_say_nothing() {
        let row =
            serde_json::json!({"prompt": null, "goal": "a", "weight": 1, "tools": [], "label": false, "images": null});
        let fields = Fields::new(row.as_object().unwrap());
        assert_eq!(fields.get(ANSWERED).unwrap().0, "goal");
        assert_eq!(fields.unread().map(|(key, _)| key).collect::<Vec<_>>(), ["label"]);
    }
}
