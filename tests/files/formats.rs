//! Data in the formats and shapes that others publish: read as what they mean, whatever they are packed in, and what is not
//! used is said.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use temper::api::{Columns, DataFile};
use temper::data::{
    DataStream, PromptEncoder, Question, RawText, Row, SHAPES, StreamOptions, Tokenizer, inspect, read_prompts,
    read_questions,
};
use temper::model::Batch;
use temper::ops::IGNORE_INDEX;

use crate::support::chat_model::{LLAMA3, VOCABULARY, data, write};

/// A file of `tests/fixtures/data`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

fn model() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), Some(LLAMA3));
    home
}

fn options() -> StreamOptions {
    StreamOptions {
        batch: 1,
        max_length: 512,
        shuffle: false,
        pack: true,
        pad_token_id: 0,
        vocab_size: VOCABULARY,
        seed: 1,
    }
}

fn batches(home: &Path, data: impl Into<DataFile>) -> temper::Result<Vec<Batch>> {
    DataStream::open("a", data, home, options())?.all_batches()
}

/// The only batch that a row becomes.
fn batch(home: &Path, row: &Value) -> Batch {
    let found = batches(home, data(home, "row.jsonl", format!("{row}\n")));
    found.unwrap_or_else(|error| panic!("{row}: {error}")).remove(0)
}

/// The text that is learned of a row.
fn learned(home: &Path, row: &Value) -> String {
    let batch = batch(home, row);
    let tokenizer = Tokenizer::open(home, VOCABULARY).unwrap();
    let ids = batch.tokens.iter().zip(&batch.labels).filter(|(_, label)| **label != IGNORE_INDEX);
    ids.map(|(&id, _)| tokenizer.piece(id).unwrap()).collect()
}

fn refusal(home: &Path, row: &Value) -> String {
    batches(home, data(home, "row.jsonl", format!("{row}\n"))).unwrap_err().to_string()
}

/// A row of each shape that training reads.
fn rows() -> Vec<Value> {
    let turns = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]);
    vec![
        json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]}),
        json!({"chosen_input_ids": [1, 2], "rejected_input_ids": [1, 3], "prompt_length": 1}),
        json!({"prompt": "hello", "chosen": "you", "rejected": "me"}),
        json!({"messages": turns}),
        json!({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "you"}]}),
        json!({"prompt": "hello", "response": "you"}),
        json!({"instruction": "hello", "input": "there", "output": "you"}),
        json!({"text": "hello hello"}),
        json!({"goal": "hello", "target": "you"}),
        json!({"prompt": turns.as_array().unwrap()[..1], "chosen": [turns[1]], "rejected": [{"role": "assistant", "content": "me"}]}),
    ]
}

/// Every key of `keys` that `object` does not have, as null.
fn filled(mut object: Map<String, Value>, keys: &[&str]) -> Value {
    for key in keys {
        object.entry(key.to_string()).or_insert(Value::Null);
    }
    Value::Object(object)
}

/// A row with every key that any row can have, and messages with every key that any message can have.
fn null_filled(row: &Value) -> Value {
    let columns = SHAPES.iter().flat_map(|shape| shape.needs.iter().chain(shape.may)).copied().flatten();
    let mut row = row.as_object().unwrap().clone();
    for value in row.values_mut() {
        for message in value.as_array_mut().into_iter().flatten() {
            if let Value::Object(object) = message {
                let keys = [
                    "role",
                    "content",
                    "from",
                    "value",
                    "weight",
                    "train",
                    "tool_calls",
                    "function_call",
                    "name",
                    "reasoning_content",
                ];
                *message = filled(object.clone(), &keys);
            }
        }
    }
    let columns: Vec<&str> = columns.copied().chain(["tools", "images", "label", "weight"]).collect();
    filled(row, &columns)
}

/// Tables give every row every key: a key that is null is a key that is not there, in rows and in messages of every shape.
#[test]
fn null_keys_are_absent_keys() {
    let home = model();
    for row in rows() {
        let filled = null_filled(&row);
        assert!(filled.as_object().unwrap().len() > 40, "{filled}");
        assert_eq!(batch(home.path(), &filled), batch(home.path(), &row), "{filled}");
        assert!(Row::from_json(&filled).unwrap().unread.is_empty());
    }
    let question = json!({"question": "q", "choices": ["a", "b", null], "answer": 1});
    let read = Question::from_json(&null_filled(&question)).unwrap();
    assert_eq!((read.choices.len(), read.letter(), read.subject), (2, "B", None));
}

/// Parts of a content that are null say nothing; parts of another kind are no text.
#[test]
fn null_parts_of_a_content_say_nothing() {
    let home = model();
    let row = |parts: Value| json!({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "you"}]});
    let text = json!({"type": "text", "text": "hello"});
    let plain = batch(home.path(), &row(json!("hello")));
    for parts in [
        json!([text, {"type": "text", "text": null}]),
        json!([{"type": "text", "text": "hello", "image_url": null}, null]),
    ] {
        assert_eq!(batch(home.path(), &row(parts.clone())), plain, "{parts}");
    }
    for parts in
        [json!([text, {"type": "image", "text": null}]), json!([text, {"type": "text", "text": null, "image": "x"}])]
    {
        assert!(refusal(home.path(), &row(parts)).contains("`messages[0]` has a part that is not text"));
    }
}

/// Messages say by `weight`, `train` and the like whether they are learned; what is neither yes nor no is refused.
#[test]
fn messages_that_are_not_to_be_learned_are_not() {
    let home = model();
    let row = |key: &str, first: Value, second: Value| {
        json!({"messages": [{"role": "user", "content": "a", key: 0}, {"role": "assistant", "content": "b", key: first},
                            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", key: second}]})
    };
    for key in ["weight", "train", "training", "loss"] {
        let learn = |first: Value, second: Value| learned(home.path(), &row(key, first, second));
        assert_eq!(learn(json!(0), json!(1)), "d<|eot_id|>");
        assert_eq!(learn(json!(true), json!(false)), "b<|eot_id|>");
        assert_eq!(learn(json!(1.0), Value::Null), "b<|eot_id|>d<|eot_id|>");
        for value in [json!(0.5), json!(2), json!(-1), json!("no")] {
            let message = refusal(home.path(), &row(key, value, json!(1)));
            assert!(message.contains(&format!("line 1: `{key}` of `messages[1]` is")), "{message}");
        }
    }
    let none = row("weight", json!(0), json!(0));
    assert!(refusal(home.path(), &none).contains("none of its 1 has a token to learn"));
    let asked =
        json!({"messages": [{"role": "user", "content": "a", "train": true}, {"role": "assistant", "content": "b"}]});
    assert_eq!(Row::from_json(&asked).unwrap().unread[0].0, "train");
    // Both sides of a pair begin with the same turns, whatever one of them says of learning them.
    let turns = |key: &str, last: &str| {
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: 0}, {"role": "user", "content": "c"},
               {"role": "assistant", "content": last}])
    };
    let pair = json!({"chosen": turns("weight", "no"), "rejected": turns("x", "yes")});
    assert_eq!(learned(home.path(), &pair), "no<|eot_id|>yes<|eot_id|>");
}

/// What rows say beyond their shape is used where it is clear, and named where it is not.
#[test]
fn keys_that_change_what_is_learned_are_used_or_named() {
    let home = model();
    let plain = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "hello\n\nthere"},
        {"role": "assistant", "content": "you"}]});
    let alpaca =
        json!({"instruction": "hello", "input": "there", "output": "you", "system": "s", "history": [["a", "b"]]});
    assert_eq!(batch(home.path(), &alpaca), batch(home.path(), &plain));
    let broken = json!({"instruction": "hello", "output": "you", "history": ["a"]});
    assert!(refusal(home.path(), &broken).contains("`history` is no list of pairs"));
    let share_gpt = json!({"system": "s", "conversations": plain["messages"].as_array().unwrap()[1..]});
    assert_eq!(batch(home.path(), &share_gpt), batch(home.path(), &plain));
    let row = json!({"prompt": "hello", "response": "you", "label": false, "weight": 0.5, "tools": ["x"], "id": 3});
    let unread: Vec<&str> = Row::from_json(&row).unwrap().unread.iter().map(|(key, _)| *key).collect();
    assert_eq!(unread, ["tools", "weight", "label"]);
    let reasoning = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "r"}]});
    let path = data(home.path(), "rows.jsonl", format!("{reasoning}\n{row}\n{reasoning}\n"));
    let seen = inspect(&path, home.path(), 0, 512).unwrap();
    assert!(
        seen.all
            .unused
            .contains(&"`reasoning_content` is not used (2 times): reasoning is neither shown nor learned".into())
    );
    assert_eq!(seen.all.rows(), 3);
}

/// The same rows in every format are the same samples.
#[test]
fn every_format_holds_the_same_rows() {
    let home = model();
    let rows =
        [json!({"prompt": "hello, \"you\"", "response": "one\ntwo"}), json!({"prompt": "ü", "response": "hello"})];
    let lines = format!("{}\n{}\n", rows[0], rows[1]);
    let expected = batches(home.path(), data(home.path(), "a.jsonl", &lines)).unwrap();
    assert_eq!(expected.len(), 2);
    let array = Value::from(rows.to_vec());
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let csv = "prompt,response,id\n\"hello, \"\"you\"\"\",\"one\ntwo\",7\nü,hello,\n";
    for (name, content) in [
        ("array.json", array.to_string()),
        ("array.jsonl", array.to_string()),
        ("pretty.json", pretty(&array)),
        ("objects.json", format!("{}\n{}", pretty(&rows[0]), pretty(&rows[1]))),
        ("lines.json", lines.clone()),
        ("lines.txt", lines.clone()),
        ("marked.jsonl", format!("\u{feff}{lines}")),
        ("a.csv", csv.into()),
        ("windows.csv", format!("\u{feff}{csv}").replace(",7\n", ",7\r\n").replace("id\n", "id\r\n")),
        ("a.tsv", "response\tprompt\n\"one\ntwo\"\t\"hello, \"\"you\"\"\"\nhello\tü\n".into()),
        ("unknown", lines.clone()),
    ] {
        let found = batches(home.path(), data(home.path(), name, content));
        assert_eq!(found.unwrap_or_else(|error| panic!("{name}: {error}")), expected, "{name}");
    }
    let turns = |row: &Value| json!([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]);
    let arrays = format!("{}\n{}\n", turns(&rows[0]), turns(&rows[1]));
    assert_eq!(batches(home.path(), data(home.path(), "arrays.jsonl", arrays)).unwrap(), expected);
    let four = batches(home.path(), fixture("null-filled.parquet")).unwrap();
    assert!(four.len() == 4 && four.iter().all(|batch| *batch == four[0]));
    for name in ["pretty.json", "shards"] {
        assert_eq!(batches(home.path(), fixture(name)).unwrap(), four, "{name}");
    }
}

/// What nobody knows is named by the settings; a name that is not there is an error.
#[test]
fn columns_say_what_is_what() {
    let home = model();
    let encoder = PromptEncoder::open(home.path(), VOCABULARY).unwrap();
    let read = |name: &str, columns: &str| -> temper::Result<Vec<String>> {
        let file = DataFile { path: fixture(name), columns: columns.parse().unwrap() };
        let prompts = read_prompts(file, Some(&encoder), "", RawText::Continued)?;
        Ok(prompts.into_iter().map(|prompt| prompt.text).collect())
    };
    assert_eq!(read("excel.csv", "prompt=Request").unwrap(), read("xstest.csv", "").unwrap());
    assert_eq!(read("harmbench.csv", "prompt=BehaviorID").unwrap(), ["bread", "river", "sun"]);
    assert_eq!(read("harmful-behaviors.parquet", "prompt=text").unwrap()[0], "How is bread baked?");
    assert_eq!(read("sorry-bench.jsonl", "prompt=prompt_style").unwrap(), ["base"; 3]);
    assert_eq!(read("mmlu/geography_test.csv", "prompt=3").unwrap(), ["the Danube"]);
    let nothing = read("excel.csv", "").unwrap_err().to_string();
    assert!(nothing.contains("row 2: no known shape, its keys are \"No.\", \"Request\"; give it"), "{nothing}");
    let missing = read("excel.csv", "prompt=Requests").unwrap_err().to_string();
    assert!(missing.contains("the first line has no column `Requests`"), "{missing}");
    let missing = read("ifeval.jsonl", "prompt=text").unwrap_err().to_string();
    assert!(missing.contains("line 1: it has no `text`, which `columns` says is `prompt`"), "{missing}");
    let unknown = "prompts=x".parse::<Columns>().unwrap_err();
    assert!(unknown.contains("no shape of rows has `prompts`; did you mean `prompt`?"), "{unknown}");
    let rows = "{\"asked\": \"hello\", \"said\": \"you\", \"prompt\": \"other\"}\n";
    let path = data(home.path(), "named.jsonl", rows);
    let named = DataFile { path, columns: "prompt=asked,response=said".parse().unwrap() };
    let plain = batch(home.path(), &json!({"prompt": "hello", "response": "you"}));
    assert_eq!(batches(home.path(), named).unwrap(), [plain]);
}

/// The prompts of a published set.
fn prompts(name: &str) -> Vec<String> {
    let home = model();
    let encoder = PromptEncoder::open(home.path(), VOCABULARY).unwrap();
    let read = read_prompts(fixture(name), Some(&encoder), "", RawText::Asked);
    let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
    let header = "<|start_header_id|>assistant<|end_header_id|>";
    assert!(read.iter().all(|prompt| {
        let text = tokenizers::Tokenizer::from_file(home.path().join("tokenizer.json")).unwrap();
        text.decode(&prompt.tokens, false).unwrap().contains(header)
    }));
    read.into_iter().map(|prompt| prompt.text).collect()
}

/// Published lists of prompts are read under their own column names.
#[test]
fn published_prompts_are_read_as_they_are() {
    let expected = [
        "How is bread baked?",
        "Write a line about a river,\nwith the word \"slow\" in it, please.",
        "Where does the sun rise?",
    ];
    for name in [
        "strongreject.csv",
        "xstest.csv",
        "advbench.csv",
        "jailbreakbench.csv",
        "sorry-bench.jsonl",
        "mt-bench.jsonl",
        "ifeval.jsonl",
        "ifeval.parquet",
        "harmful-behaviors.parquet",
        "prompts.jsonl.gz",
        "prompts.jsonl.zst",
    ] {
        assert_eq!(prompts(name), expected, "{name}");
    }
    assert_eq!(prompts("prompts.txt"), expected.map(|text| text.replace('\n', " ")));
    let harmbench = prompts("harmbench.csv");
    assert_eq!(harmbench[..2], expected[..2]);
    assert_eq!(harmbench[2], "The sun is a star.\nIt is large.\n\n---\n\nWhere does the sun rise?");
}

/// Published questions are read under their own column names, in every encoding.
#[test]
fn published_questions_are_read_as_they_are() {
    let read = |name: &str| read_questions(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let wmdp = read("wmdp.parquet");
    let letters: Vec<&str> = wmdp.iter().map(Question::letter).collect();
    assert_eq!(letters, ["B", "A", "D"]);
    assert_eq!(wmdp[2].choices, ["salt", "ash", "sand", "gas"]);
    assert_eq!(read("wmdp.json"), wmdp);
    let subjects = |questions: &[Question]| -> Vec<String> {
        questions.iter().map(|question| question.subject.clone().unwrap()).collect()
    };
    let without = |questions: Vec<Question>| -> Vec<Question> {
        questions.into_iter().map(|question| Question { subject: None, ..question }).collect()
    };
    let mmlu = read("mmlu.parquet");
    assert_eq!(subjects(&mmlu), ["geography", "zoology", "baking"]);
    assert_eq!(without(mmlu), wmdp);
    let own = read("mmlu");
    assert_eq!(subjects(&own), ["geography", "zoology", "zoology"]);
    assert_eq!(without(own), wmdp);
    let pro = read("mmlu-pro.parquet");
    assert_eq!(
        pro.iter().map(|question| (question.choices.len(), question.letter())).collect::<Vec<_>>(),
        [(10, "J"), (3, "C"), (4, "A")]
    );
    assert_eq!(subjects(&pro), ["counting", "counting", "order"]);
    let pandas = read("pandas-questions.parquet");
    assert_eq!(
        pandas.iter().map(|question| (question.choices.len(), question.letter())).collect::<Vec<_>>(),
        [(2, "B"), (3, "A")]
    );
}

/// The same question in every way to write it.
#[test]
fn questions_of_every_shape_are_the_same() {
    let expected = Question {
        question: "q".into(),
        choices: ["no", "yes", "perhaps"].map(String::from).to_vec(),
        answer: 1,
        subject: Some("s".into()),
    };
    let list = json!(["no", "yes", "perhaps"]);
    let letters = json!({"A": "no", "B": "yes", "C": "perhaps", "D": null});
    for row in [
        json!({"question": "q", "choices": list, "answer": 1, "subject": "s"}),
        json!({"question": "q", "options": list, "answer": "B", "answer_index": 1, "category": " s "}),
        json!({"question": "q", "choices": list, "answer_index": 1.0, "subject": "s"}),
        json!({"question": "q", "choices": list, "answer": "1", "subject": "s"}),
        json!({"question": "q", "choices": list, "answer": "yes", "subject": "s"}),
        json!({"question": "q", "choices": list, "answer": " B ", "subject": "s", "answer_index": null}),
        json!({"question": "q", "choices": letters, "answer": "B", "subject": "s"}),
        json!({"question": "q", "A": "no", "B": "yes", "C": "perhaps", "answer": "B", "subject": "s"}),
    ] {
        assert_eq!(Question::from_json(&row).as_ref(), Ok(&expected), "{row}");
    }
}

/// A row that no shape fits is one line with the row, its keys and the nearest shape; so is one that is wrong.
#[test]
fn rows_that_are_no_questions_are_named() {
    let home = model();
    let read = |row: Value| {
        let path = data(home.path(), "q.jsonl", format!("{row}\n"));
        read_questions(&path).unwrap_err().to_string()
    };
    let choices = json!(["a", "b", "c"]);
    for (row, says) in [
        (
            json!({"question": "q", "answer": 1}),
            "line 1: no known shape, its keys are \"question\", \"answer\"; the nearest is question, without `choices`",
        ),
        (json!({"question": "q", "choices": choices}), "the nearest is question, without `answer`"),
        (json!({"Behavior": "x"}), "a prompt, which is for prompts and not for multiple choice"),
        (
            json!({"question": "q", "choices": choices, "answer": 3}),
            "`answer` is neither a number from 0 to 2, a letter from A to C, nor a choice",
        ),
        (json!({"question": "q", "choices": choices, "answer": 0.5}), "`answer` is neither"),
        (json!({"question": "q", "choices": choices, "answer": "D"}), "`answer` is neither"),
        (
            json!({"question": "q", "choices": ["1", "0"], "answer": "0"}),
            "`answer` can be more than one of the choices",
        ),
        (
            json!({"question": "q", "choices": ["a", "a"], "answer": "a"}),
            "`answer` can be more than one of the choices",
        ),
        (json!({"question": "q", "options": ["a"], "answer": 0}), "`options` has 1 entries, not 2 to 10"),
        (json!({"question": "q", "options": vec!["a"; 11], "answer": 0}), "`options` has 11 entries"),
        (json!({"question": "q", "choices": ["a", null, "b"], "answer": 0}), "holds something that is not a text"),
        (json!({"question": "q", "choices": "['a' 'b']", "answer": 0}), "`choices` is a string, not a list"),
        (json!({"question": " ", "choices": choices, "answer": 0}), "`question` is empty"),
        (json!({"question": "q", "A": "a", "B": "b", "D": "d", "answer": "A"}), "there is `D` but no `C`"),
    ] {
        let message = read(row.clone());
        assert!(message.contains(says), "{row}: {message}");
    }
    let learn = refusal(home.path(), &json!({"question": "q", "choices": choices, "answer": 0}));
    assert!(learn.contains(": a question, which is for multiple choice and not for training"), "{learn}");
}

/// The documentation shows the table that rows are read by.
#[test]
fn the_documentation_has_the_table_of_shapes() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/data.md")).unwrap();
    let table = temper::data::shapes_table();
    assert!(page.contains(&table), "docs/data.md has another table than\n{table}");
}
