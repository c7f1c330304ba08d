//! Generation: the cached forward pass against the whole one, texts against Transformers, exact match against generated texts.

use std::path::Path;
use std::sync::Arc;

use temper::Result;
use temper::backend::cpu::Cpu;
use temper::eval::{GenerateOptions, Sampling, exact_match, generate};
use temper::model::{Batch, CachedSequence, ExtendWorkspace, Extension, KeyValueCache};
use temper::objective::{Evaluator, LossBatch, Subject};
use temper::ops::{Backend, IGNORE_INDEX};
use temper::random::{Random, Stream};

use crate::support::models::{Adapted, FOLDERS};
use crate::support::numbers::relative;

impl<B: Backend> Adapted<B> {
    /// The logits of every position, by one forward pass over the whole text.
    fn whole(&self, subject: Subject<B>, tokens: &[u32]) -> Vec<f32> {
        let mut evaluator = self.evaluator();
        let mut batch = Batch::default();
        batch.push(tokens, tokens, tokens.len());
        evaluator.forward(subject, &LossBatch::new(&self.model, batch).unwrap()).unwrap();
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        self.model.logits(subject.weights, evaluator.workspace(), &rows).unwrap()
    }

    fn expected(&self) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.path.join("generation.json")).unwrap()).unwrap()
    }
}

/// A cache with what is needed to use it.
struct Writer<'a, B: Backend> {
    fixture: &'a Adapted<B>,
    subject: Subject<'a, B>,
    cache: KeyValueCache<B>,
    workspace: ExtendWorkspace<B>,
}

impl<'a, B: Backend> Writer<'a, B> {
    fn new(fixture: &'a Adapted<B>, subject: Subject<'a, B>, slots: usize) -> Self {
        let model = &fixture.model;
        let workspace = ExtendWorkspace::new(&model.backend, &model.config, 64, subject.adapter).unwrap();
        Self { fixture, subject, cache: KeyValueCache::new(model, slots).unwrap(), workspace }
    }

    fn extend(&mut self, extensions: &mut [Extension]) -> Result<()> {
        let Subject { weights, adapter, .. } = self.subject;
        self.fixture.model.extend(weights, adapter, &mut self.cache, extensions, &mut self.workspace)
    }

    /// Appends pieces to sequences and gives each piece's logits.
    fn logits(&mut self, mut extensions: Vec<Extension>) -> Vec<Vec<f32>> {
        self.extend(&mut extensions).unwrap();
        let count: usize = extensions.iter().map(|e| e.tokens.len()).sum();
        let rows: Vec<u32> = (0..count as u32).collect();
        let all = self.fixture.model.extended_logits(self.subject.weights, &self.workspace, &rows).unwrap();
        let mut rest = all.as_slice();
        let mut piece = |e: &Extension| {
            let (own, others) = rest.split_at(e.tokens.len() * self.fixture.model.config.vocab_size);
            rest = others;
            own.to_vec()
        };
        extensions.iter().map(&mut piece).collect()
    }
}

fn tokens(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| 3 + random.below(253) as u32).collect()
}

/// Texts of several lengths, fed in pieces of random sizes, several texts a pass.
fn check_pieces<B: Backend>(fixture: &Adapted<B>, subject: Subject<B>, lengths: &[usize], bound: f64) {
    let mut random = Random::new(3, Stream::Demo, 0, 0);
    let texts: Vec<Vec<u32>> = lengths.iter().map(|&length| tokens(&mut random, length)).collect();
    let mut writer = Writer::new(fixture, subject, lengths.iter().sum());
    let mut sequences: Vec<CachedSequence> = texts.iter().map(|_| CachedSequence::default()).collect();
    let mut found = vec![Vec::new(); texts.len()];
    while sequences.iter().zip(&texts).any(|(sequence, text)| sequence.len() < text.len()) {
        let mut extensions = Vec::new();
        for (sequence, text) in sequences.iter_mut().zip(&texts) {
            let rest = &text[sequence.len()..];
            let count = random.below(14).min(rest.len());
            extensions.push(Extension { sequence, tokens: &rest[..count] });
        }
        for (found, piece) in found.iter_mut().zip(writer.logits(extensions)) {
            found.extend(piece);
        }
    }
    for (found, text) in found.iter().zip(&texts) {
        let error = relative(found, &fixture.whole(subject, text));
        assert!(error <= bound, "{}, {} tokens: {error:.2e}", fixture.path.display(), text.len());
    }
    assert_eq!(writer.cache.free_slots(), 0);
    sequences.into_iter().for_each(|sequence| writer.cache.release(sequence));
    assert_eq!(writer.cache.free_slots(), lengths.iter().sum::<usize>());
}

#[test]
fn logits_in_pieces_are_those_of_the_whole_text() {
    for folder in FOLDERS {
        for window in [None, Some(7)] {
            let fixture = Adapted::open(&Cpu, folder, 256, window);
            for subject in [fixture.plain(), fixture.adapted()] {
                check_pieces(&fixture, subject, &[1, 30, 57, 12], 1e-5);
            }
        }
    }
}

/// On the simulated device, in both dtypes.
#[test]
fn logits_in_pieces_are_those_of_the_whole_text_on_a_simulated_device() {
    use temper::{backend::cuda::Cuda, ops::DType};
    // bf16: both passes round every activation, in sums of another order.
    let cases = [("mistral", DType::F32, 1e-5), ("mistral", DType::Bf16, 1.5e-2), ("qwen2", DType::Bf16, 1.5e-2)];
    for (folder, dtype, bound) in cases.into_iter().chain([("qwen3-yarn", DType::F32, 1e-5)]) {
        let fixture = Adapted::open(&Cuda::simulated(dtype).unwrap(), folder, 256, Some(7));
        check_pieces(&fixture, fixture.adapted(), &[20, 9], bound);
    }
}

/// Texts with a common beginning share its slots; a beginning outlives its first owner, and a cut end is free again.
#[test]
fn forks_share_a_beginning_and_truncation_frees_an_end() {
    for window in [None, Some(7)] {
        let fixture = Adapted::open(&Cpu, "llama31", 256, window);
        let mut random = Random::new(4, Stream::Demo, 0, 0);
        let beginning = tokens(&mut random, 20);
        let ends: Vec<Vec<u32>> = [5, 1, 11].iter().map(|&count| tokens(&mut random, count)).collect();
        let mut writer = Writer::new(&fixture, fixture.plain(), 20 + 5 + 1 + 11);
        let mut first = CachedSequence::default();
        writer.logits(vec![Extension { sequence: &mut first, tokens: &beginning }]);
        let mut forks: Vec<CachedSequence> = ends.iter().map(|_| writer.cache.fork(&first, 20)).collect();
        writer.cache.release(first);
        let extensions = forks.iter_mut().zip(&ends).map(|(sequence, tokens)| Extension { sequence, tokens }).collect();
        let found = writer.logits(extensions);
        let check = |found: &[f32], end: &[u32]| {
            let whole = fixture.whole(fixture.plain(), &[&beginning, end].concat());
            assert!(relative(found, &whole[20 * 256..]) <= 1e-5);
        };
        found.iter().zip(&ends).for_each(|(found, end)| check(found, end));
        assert_eq!(writer.cache.free_slots(), 0);

        writer.cache.truncate(&mut forks[2], 20);
        assert_eq!(writer.cache.free_slots(), 11);
        let other = tokens(&mut random, 11);
        let found = writer.logits(vec![Extension { sequence: &mut forks[2], tokens: &other }]);
        check(&found[0], &other);
        forks.into_iter().for_each(|fork| writer.cache.release(fork));
        assert_eq!(writer.cache.free_slots(), 37);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let fixture = Adapted::open(&Cpu, "mistral", 256, None);
    let refused = |slots: usize, tokens: &[u32]| {
        let mut writer = Writer::new(&fixture, fixture.plain(), slots);
        let mut sequence = CachedSequence::default();
        writer.extend(&mut [Extension { sequence: &mut sequence, tokens }]).unwrap_err().to_string()
    };
    assert!(refused(9, &[5; 10]).contains("9 are free"));
    assert!(refused(70, &[5; 65]).contains("more than 64"));
    assert!(refused(9, &[5, 256]).contains("token id 256"));
    let prompts = |prompts: &[Vec<u32>], options: &GenerateOptions| {
        generate(&fixture.model, fixture.plain(), prompts, options).unwrap_err().to_string()
    };
    let options = GenerateOptions::default();
    assert!(prompts(&[vec![3], vec![]], &options).contains("prompt 1 has 0"));
    assert!(prompts(&[vec![3; 256]], &options).contains("256 of the model's 256"));
    let sampled = |temperature, top_k, top_p| {
        let sampling = Some(Sampling { temperature, top_k, top_p });
        prompts(&[vec![3]], &GenerateOptions { sampling, ..GenerateOptions::default() })
    };
    assert!(sampled(0.0, None, 1.0).contains("temperature: "));
    assert!(sampled(f64::NAN, None, 1.0).contains("temperature: "));
    assert!(sampled(1.0, Some(0), 1.0).starts_with("top_k: "));
    assert!(sampled(1.0, None, 1.5).starts_with("top_p: "));
    assert!(prompts(&[vec![3]], &GenerateOptions { batch: 0, ..GenerateOptions::default() }).starts_with("batch: "));
}

fn lists(value: &serde_json::Value) -> Texts {
    serde_json::from_value(value.clone()).unwrap()
}

type Texts = Vec<Vec<u32>>;

/// Prompts, options and the texts of Transformers: (without the adapter, with it).
fn greedy(expected: &serde_json::Value) -> (Texts, GenerateOptions, [Texts; 2]) {
    let options = GenerateOptions {
        max_new_tokens: expected["max_new_tokens"].as_u64().unwrap() as usize,
        stop: serde_json::from_value(expected["stop"].clone()).unwrap(),
        ..GenerateOptions::default()
    };
    let texts = [lists(&expected["greedy"]), lists(&expected["greedy_with_adapter"])];
    (lists(&expected["prompts"]), options, texts)
}

/// In batches of any size, with prompts read whole or in pieces.
#[test]
fn greedy_texts_are_those_of_transformers() {
    for folder in FOLDERS {
        let fixture = Adapted::open(&Cpu, folder, 256, None);
        let (prompts, options, texts) = greedy(&fixture.expected());
        assert!(texts[0].iter().any(|text| text.len() < options.max_new_tokens), "no text ends with a stop token");
        assert_ne!(texts[0], texts[1]);
        for (batch, pass_tokens) in [(32, 1024), (1, 1024), (2, 7), (5, 1)] {
            let options = GenerateOptions { batch, pass_tokens, ..options.clone() };
            for (subject, expected) in [fixture.plain(), fixture.adapted()].into_iter().zip(&texts) {
                let found = generate(&fixture.model, subject, &prompts, &options).unwrap();
                assert_eq!(&found, expected, "{folder}, {batch} at a time, {pass_tokens} a pass");
            }
        }
    }
}

#[test]
fn greedy_texts_on_a_simulated_device_are_those_of_transformers() {
    use temper::{backend::cuda::Cuda, ops::DType};
    let fixture = Adapted::open(&Cuda::simulated(DType::F32).unwrap(), "llama31", 256, None);
    let (prompts, options, [_, adapted]) = greedy(&fixture.expected());
    let options = GenerateOptions { max_new_tokens: 12, batch: 3, ..options };
    let found = generate(&fixture.model, fixture.adapted(), &prompts, &options).unwrap();
    let expected: Vec<&[u32]> = adapted.iter().map(|text| &text[..text.len().min(12)]).collect();
    assert_eq!(found, expected);
}

/// A drawn text is a function of seed, index and prompt: the batch and the pieces do not show.
#[test]
fn drawn_texts_do_not_depend_on_the_batch() {
    let fixture = Adapted::open(&Cpu, "mistral", 256, None);
    let mut random = Random::new(6, Stream::Demo, 0, 0);
    let prompts: Vec<Vec<u32>> = [4, 1, 9, 4, 30, 2].iter().map(|&count| tokens(&mut random, count)).collect();
    let with = |batch, pass_tokens, seed| {
        let sampling = Some(Sampling { temperature: 1.2, top_k: Some(50), top_p: 0.95 });
        let options =
            GenerateOptions { max_new_tokens: 20, sampling, seed, batch, pass_tokens, ..GenerateOptions::default() };
        generate(&fixture.model, fixture.plain(), &prompts, &options).unwrap()
    };
    let texts = with(6, 100, 1);
    assert!(texts.iter().all(|text| text.len() == 20));
    assert_eq!(texts, with(1, 100, 1));
    assert_eq!(texts, with(4, 5, 1));
    assert_ne!(texts, with(6, 100, 2));
    let same_prompt = vec![prompts[0].clone(); 2];
    let sampling = Some(Sampling { temperature: 1.0, top_k: None, top_p: 1.0 });
    let options = GenerateOptions { max_new_tokens: 20, sampling, ..GenerateOptions::default() };
    let two = generate(&fixture.model, fixture.plain(), &same_prompt, &options).unwrap();
    assert_ne!(two[0], two[1], "texts of one prompt are drawn apart");
}

#[test]
fn a_text_ends_at_the_last_position() {
    let fixture = Adapted::open(&Cpu, "mistral", 256, None);
    let options = GenerateOptions { max_new_tokens: 100, ..GenerateOptions::default() };
    let found = generate(&fixture.model, fixture.plain(), &[vec![9; 250], vec![9; 255]], &options).unwrap();
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [6, 1]);
}

/// Exact match says of a sequence what generating from its unlabelled beginning says: the labelled rest comes out, or not.
#[test]
fn exact_match_is_that_greedy_decoding_writes_the_labelled_tokens() {
    let fixture = Adapted::open(&Cpu, "llama3", 256, None);
    let (prompts, options, [answers, _]) = greedy(&fixture.expected());
    let options = GenerateOptions { stop: Vec::new(), ..options };
    let mut batch = Batch::default();
    let mut expected = Vec::new();
    for (prompt, answer) in prompts.iter().zip(&answers) {
        // The right answer, and the answer with one token changed: the first, one in the middle, the last.
        for changed in [None, Some(0), Some(answer.len() / 2), Some(answer.len() - 1)] {
            let mut answer = answer.clone();
            changed.into_iter().for_each(|place| answer[place] = (answer[place] + 1) % 256);
            let labels = [vec![IGNORE_INDEX; prompt.len()], answer.clone()].concat();
            let tokens = [prompt.clone(), answer.clone()].concat();
            let options = GenerateOptions { max_new_tokens: answer.len(), ..options.clone() };
            let written = generate(&fixture.model, fixture.plain(), std::slice::from_ref(prompt), &options).unwrap();
            expected.push(Some(written[0] == answer));
            batch.push(&tokens, &labels, tokens.len());
        }
    }
    // A sequence without a label does not count; nor does padding.
    batch.push(&[5, 6, 7], &[IGNORE_INDEX; 3], 3);
    expected.push(None);
    let padded = [prompts[0].clone(), answers[0].clone(), vec![0; 4]].concat();
    let mut labels = padded.clone();
    labels[..prompts[0].len()].fill(IGNORE_INDEX);
    batch.push(&padded, &labels, padded.len() - 4);
    expected.push(Some(true));
    let mut evaluator = Evaluator::new(Arc::clone(&fixture.model), batch.len(), &[]).unwrap();
    let found = exact_match(&mut evaluator, fixture.plain(), [batch]).unwrap();
    assert_eq!(found.matches, expected);
    assert_eq!(found.rows, 21);
    assert_eq!(found.accuracy, 6.0 / 21.0);
}

/// `eos_token_id` of `generation_config.json`, one or several, before `config.json`'s.
#[test]
fn stop_tokens_are_those_of_the_generation_config() {
    let fixture = Adapted::open(&Cpu, "llama3", 256, None);
    let config = &fixture.model.config;
    assert_eq!(config.stop_tokens(&fixture.path).unwrap(), [2]);
    let directory = tempfile::tempdir().unwrap();
    for (text, expected) in [
        (r#"{"eos_token_id": [7, 9]}"#, Some(vec![7, 9])),
        (r#"{"eos_token_id": 4}"#, Some(vec![4])),
        (r#"{"eos_token_id": null}"#, Some(vec![2])),
        (r#"{"eos_token_id": "end"}"#, None),
        ("[]", None),
    ] {
        std::fs::write(directory.path().join("generation_config.json"), text).unwrap();
        assert_eq!(config.stop_tokens(directory.path()).ok(), expected, "{text}");
    }
    assert_eq!(config.stop_tokens(Path::new("nowhere")).unwrap(), [2]);
}
