//! Multiple-choice questions: shared beginnings change no score and save tokens; written answers are matched to the letter.

use std::collections::HashSet;
use std::sync::Arc;

use temper::Result;
use temper::backend::cpu::Cpu;
use temper::eval::{
    ChoiceReport, GenerateOptions, LETTERS, PromptForm, Question, Sampling, generate, multiple_choice,
    multiple_choice_written,
};
use temper::model::Batch;
use temper::objective::{Evaluator, LossBatch};
use temper::ops::{Backend, IGNORE_INDEX};

use crate::support::models::Adapted;

fn open<B: Backend>(backend: &B) -> Adapted<B> {
    Adapted::open(backend, "llama31", 1024, None)
}

/// A byte is a token, so that " A" is two of them.
fn encode(text: &str, start: bool) -> Result<Vec<u32>> {
    Ok(start.then_some(1).into_iter().chain(text.bytes().map(u32::from)).collect())
}

/// Questions of two subjects in turn and one without, of different lengths; two begin with the same words.
fn questions() -> Vec<Question> {
    let choices = ["north", "south", "east", "west"].map(str::to_string).to_vec();
    let texts = [
        "Where does the sun rise?",
        "How is bread baked, and by whom, and in which of the four quarters of the town?",
        "Where does the sun set?",
        "Which?",
        "Which way does the river flow on its long way to the sea?",
    ];
    let question = |index: usize| Question {
        question: format!("{} ({index})", texts[index % texts.len()]),
        choices: choices.clone(),
        answer: index % 4,
        subject: [Some("map_reading"), Some("baking"), None][index % 3].map(str::to_string),
    };
    (0..17).map(question).collect()
}

/// The two examples of a question's subject.
fn shots(question: &Question) -> Vec<Question> {
    let example = |shot: usize| Question {
        question: format!("Example {shot} of {:?}", question.subject),
        answer: shot,
        ..question.clone()
    };
    vec![example(0), example(1)]
}

/// The prompt and continuations of a question, as tokens.
fn texts(form: PromptForm, question: &Question) -> (Vec<u32>, Vec<Vec<u32>>) {
    let shots = shots(question);
    let prompt = form.prompt(question.subject.as_deref(), &shots.iter().collect::<Vec<_>>(), question);
    let continuations = form.continuations(question.choices.len()).unwrap();
    let continuations = continuations.iter().map(|text| encode(text, false).unwrap()).collect();
    (encode(&prompt, true).unwrap(), continuations)
}

/// Scores without a cache: each prompt with each continuation is a sequence of one packed batch.
fn scores_one_by_one<B: Backend>(fixture: &Adapted<B>, questions: &[Question], form: PromptForm) -> Vec<Vec<f64>> {
    let mut evaluator = Evaluator::new(Arc::clone(&fixture.model), 4096, &[&fixture.adapter]).unwrap();
    let one = |question| {
        let (prompt, continuations) = texts(form, question);
        let mut batch = Batch::default();
        for continuation in continuations {
            let tokens = [prompt.clone(), continuation.clone()].concat();
            let labels = [vec![IGNORE_INDEX; prompt.len()], continuation].concat();
            batch.push(&tokens, &labels, tokens.len());
        }
        let batch = LossBatch::new(&fixture.model, batch).unwrap();
        evaluator.sequence_log_probabilities(fixture.adapted(), &batch).unwrap()
    };
    questions.iter().map(one).collect()
}

fn ask<B: Backend>(fixture: &Adapted<B>, asked: &[Question], form: PromptForm, pass_tokens: usize) -> ChoiceReport {
    let shots = |index: usize| shots(&asked[index]);
    multiple_choice(&fixture.model, fixture.adapted(), asked, &shots, form, pass_tokens, &encode).unwrap()
}

fn check_scores(report: &ChoiceReport, expected: &[Vec<f64>], bound: f64) {
    assert_eq!(report.predictions.len(), expected.len());
    for (prediction, expected) in report.predictions.iter().zip(expected) {
        let scores = prediction.scores.as_ref().unwrap();
        for (found, expected) in scores.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() <= bound, "{prediction:?}: {found} and {expected}");
        }
        assert_eq!(scores.len(), expected.len());
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        assert_eq!(prediction.predicted, Some(LETTERS[best]));
    }
}

#[test]
fn shared_beginnings_change_no_score() {
    let fixture = open(&Cpu);
    for form in [PromptForm::Mmlu, PromptForm::LmEval] {
        let expected = scores_one_by_one(&fixture, &questions(), form);
        for pass_tokens in [1, 40, 300, 4096] {
            check_scores(&ask(&fixture, &questions(), form, pass_tokens), &expected, 1e-5);
        }
    }
}

/// Each of 2, 4 and 10 choices is scored by its own letter, and by no letter beyond the last, whatever is asked beside it.
#[test]
fn questions_with_other_numbers_of_choices_are_scored_by_their_own() {
    let fixture = open(&Cpu);
    let mut questions = questions();
    questions.truncate(9);
    for (index, question) in questions.iter_mut().enumerate() {
        let count = [2, 4, 10][index % 3];
        question.choices = (0..count).map(|choice| format!("{choice}")).collect();
        question.answer = (7 * index) % count;
    }
    for form in [PromptForm::Mmlu, PromptForm::LmEval] {
        let report = ask(&fixture, &questions, form, 300);
        check_scores(&report, &scores_one_by_one(&fixture, &questions, form), 1e-5);
        let answers: Vec<&str> = report.predictions.iter().map(|prediction| prediction.answer).collect();
        assert_eq!(answers[..6], ["A", "D", "E", "B", "A", "F"]);
    }
}

#[test]
fn shared_beginnings_change_no_score_on_a_simulated_device() {
    use temper::{backend::cuda::Cuda, ops::DType};
    let short = |text: &str| Question {
        question: text.into(),
        choices: ["a", "b", "c", "d"].map(str::to_string).to_vec(),
        answer: 1,
        subject: None,
    };
    let questions = [short("Which?"), short("Who?")];
    let form = PromptForm::LmEval;
    let expected = scores_one_by_one(&open(&Cpu), &questions, form);
    let fixture = open(&Cuda::simulated(DType::F32).unwrap());
    check_scores(&ask(&fixture, &questions, form, 4096), &expected, 1e-5);
}

/// What is computed is at least every different beginning of a prompt once (and, where a continuation has two tokens, its first
/// after every prompt), and little more; without the cache it is four times everything.
#[test]
fn what_questions_have_in_common_is_computed_once() {
    let fixture = open(&Cpu);
    for (form, read) in [(PromptForm::Mmlu, 0), (PromptForm::LmEval, 4)] {
        let prompts: Vec<Vec<u32>> = questions().iter().map(|question| texts(form, question).0).collect();
        let beginnings: HashSet<&[u32]> =
            prompts.iter().flat_map(|prompt| (1..=prompt.len()).map(|length| &prompt[..length])).collect();
        let least = (beginnings.len() + read * prompts.len()) as u64;
        let total: usize = prompts.iter().map(Vec::len).sum();
        let without_cache = 4 * (total + prompts.len() * (1 + read / 4)) as u64;
        let report = ask(&fixture, &questions(), form, 4096);
        assert_eq!(report.prompt_tokens, total as u64);
        let computed = report.computed_tokens.unwrap();
        println!("{form:?}: {without_cache} tokens without the cache, {computed} with it, {least} at least");
        assert!((least..least + least / 4).contains(&computed) && 8 * computed < without_cache);
        // One prompt at a time: nothing is computed twice.
        assert_eq!(ask(&fixture, &questions(), form, 1).computed_tokens, Some(least));
    }
}

#[test]
fn subjects_are_counted_and_long_questions_left_out() {
    let fixture = open(&Cpu);
    let mut questions = questions();
    questions[3].question = "long ".repeat(200);
    let shots = |_: usize| Vec::new();
    let model = &fixture.model;
    let subject = fixture.adapted();
    let report = multiple_choice(model, subject, &questions, &shots, PromptForm::Mmlu, 512, &encode).unwrap();
    assert_eq!((report.too_long, report.questions, report.shots), (1, 16, 0));
    let asked: Vec<usize> = report.predictions.iter().map(|prediction| prediction.question).collect();
    assert_eq!(asked, (0..17).filter(|&index| index != 3).collect::<Vec<_>>());
    let counts: Vec<usize> = report.subjects.values().map(|(_, count)| *count).collect();
    assert_eq!(counts, [5, 6, 5]);
    let right = report.predictions.iter().filter(|p| p.predicted == Some(p.answer)).count();
    assert_eq!(report.accuracy, right as f64 / 16.0);
}

/// The first written word has to be the letter: nothing before it, nothing attached to it.
#[test]
fn written_answers_are_matched_to_the_letter() {
    let fixture = open(&Cpu);
    let model = &fixture.model;
    let subject = fixture.adapted();
    let questions = questions();
    let sampling = Some(Sampling { temperature: 2.0, top_k: None, top_p: 1.0 });
    let options = GenerateOptions { max_new_tokens: 3, sampling, ..GenerateOptions::default() };
    // What a token stands for is made up, so that all kinds of answers occur.
    let pieces = ["A", " B", "C\n", "D ", "x", "A.", "\n"];
    let decode = |tokens: &[u32]| Ok(tokens.iter().map(|&token| pieces[token as usize % pieces.len()]).collect());
    let report = multiple_choice_written(model, subject, &questions, &options, &encode, &decode).unwrap();
    let prompt = |q: &Question| encode(&PromptForm::Qi.prompt(q.subject.as_deref(), &[], q), true).unwrap();
    let prompts: Vec<Vec<u32>> = questions.iter().map(prompt).collect();
    let written = generate(model, subject, &prompts, &options).unwrap();
    let mut kinds = HashSet::new();
    for ((prediction, tokens), question) in report.predictions.iter().zip(&written).zip(&questions) {
        let response = decode(tokens).unwrap();
        let expected = match response.trim_start().split([' ', '\n']).next().unwrap() {
            letter @ ("A" | "B" | "C" | "D") => Some(letter),
            _ => None,
        };
        assert_eq!(prediction.predicted, expected, "{response:?}");
        assert_eq!(prediction.response.as_deref(), Some(response.as_str()));
        assert_eq!(prediction.answer, question.letter());
        kinds.insert(expected.is_some());
    }
    assert_eq!(kinds.len(), 2, "answers that match and answers that do not occur");
    let right = report.predictions.iter().filter(|p| p.predicted == Some(p.answer)).count();
    assert_eq!((report.accuracy, report.computed_tokens), (right as f64 / 17.0, None));
    let form = PromptForm::Qi;
    let result = multiple_choice(model, subject, &questions, &|_| Vec::new(), form, 64, &encode);
    assert!(result.unwrap_err().to_string().contains("written"));
}
