//! Prompts: rows of every shape as what a model is given to continue, with and without the beginning of an answer.

use std::path::Path;

use temper::data::{Message, Prompt, PromptEncoder, RawText, read_prompts};
use temper::error::Result;

use crate::support::chat_model::{LLAMA3, VOCABULARY, data, write};

fn read(home: &Path, rows: &str, prefill: &str) -> Result<Vec<Prompt>> {
    let encoder = PromptEncoder::open(home, VOCABULARY)?;
    read_prompts(data(home, "prompts.jsonl", rows), Some(&encoder), prefill, RawText::Continued)
}

fn model() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), Some(LLAMA3));
    home
}

/// The tokens with the names of special ones; every other is a byte or a few of them.
fn spelled(home: &Path, tokens: &[u32]) -> String {
    let tokenizer = tokenizers::Tokenizer::from_file(home.join("tokenizer.json")).unwrap();
    tokenizer.decode(tokens, false).unwrap()
}

const HEADER: &str = "<|start_header_id|>assistant<|end_header_id|>\n\n";

/// Whatever way a question is written down, the model gets it through the chat template, with the header of its own turn and
/// the beginning of its answer behind it; an answer that the row holds is not shown to it.
#[test]
fn questions_of_every_shape_go_through_the_chat_template() {
    let home = model();
    let rows = [
        r#"{"prompt": "hello there"}"#,
        r#"{"prompt": [{"role": "user", "content": "hello there"}]}"#,
        r#"{"prompt": "hello there", "response": "yes"}"#,
        r#"{"messages": [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "yes"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "hello there"}]}"#,
        r#"{"instruction": "hello there", "output": "yes"}"#,
        r#"{"prompt": "hello there", "chosen": "yes", "rejected": "no"}"#,
    ];
    for prefill in ["", "Sure, ", "hello"] {
        let prompts = read(home.path(), &rows.join("\n"), prefill).unwrap();
        assert_eq!(prompts.len(), rows.len());
        for (prompt, row) in prompts.iter().zip(rows) {
            let user = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello there<|eot_id|>";
            assert_eq!(spelled(home.path(), &prompt.tokens), format!("{user}{HEADER}{prefill}"), "{row}");
            assert_eq!(prompt.text, "hello there");
        }
    }
}

/// Earlier answers stay; only what comes after the last question goes.
#[test]
fn a_conversation_is_asked_up_to_its_last_question() {
    let home = model();
    let row = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#
        .replace('\n', "");
    let prompts = read(home.path(), &row, "").unwrap();
    let text = spelled(home.path(), &prompts[0].tokens);
    assert!(text.contains("\n\nb<|eot_id|>") && text.ends_with(&format!("c<|eot_id|>{HEADER}")), "{text}");
    assert_eq!(prompts[0].text, "c");
}

/// Raw text is continued as it is, with the tokenizer's start token; the prefill is simply more of it.
#[test]
fn raw_text_is_continued_as_it_is() {
    let home = model();
    let prompts = read(home.path(), r#"{"text": "hello"}"#, " hello").unwrap();
    assert_eq!(spelled(home.path(), &prompts[0].tokens), "<|begin_of_text|>hello hello");
}

/// Token ids are continued from their first label on, and need no tokenizer.
#[test]
fn token_ids_are_continued_where_their_labels_begin() {
    let home = tempfile::tempdir().unwrap();
    let rows = r#"{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
{"input_ids": [5, 6]}
{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}"#;
    let path = data(home.path(), "prompts.jsonl", rows);
    let tokens: Vec<Vec<u32>> =
        read_prompts(&path, None, "", RawText::Continued).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
    assert_eq!(tokens, [vec![5, 6], vec![5, 6], vec![1, 2, 3]]);
    assert!(read_prompts(&path, None, "Sure", RawText::Continued).unwrap_err().to_string().contains("line 1"));
}

#[test]
fn rows_that_ask_nothing_are_refused_with_their_place() {
    let home = model();
    for (row, words) in [
        (r#"{"messages": [{"role": "assistant", "content": "yes"}]}"#, "nothing but answers"),
        (r#"{"input_ids": []}"#, "no token"),
        (r#"{"prompt": 5}"#, "prompt"),
        (r#"{"topic": "x"}"#, "no known shape"),
    ] {
        let error = read(home.path(), &format!("{{\"text\": \"x\"}}\n{row}"), "").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(words), "{row}: {error}");
    }
}

/// Tokens become text again, without special ones; bytes that are no text become U+FFFD.
#[test]
fn generated_tokens_become_text() {
    let home = model();
    let encoder = PromptEncoder::open(home.path(), VOCABULARY).unwrap();
    let message = Message::new("user", "hello é");
    let tokens = encoder.chat(&[message], "").unwrap();
    assert_eq!(encoder.decode(&tokens).unwrap(), "user\n\nhello éassistant\n\n");
    assert_eq!(encoder.decode(&[0xc3]).unwrap(), "\u{fffd}");
    assert_eq!(encoder.decode(&[]).unwrap(), "");
}
