//! Abliteration against the hidden states that Transformers computed.

use crate::reference::{Bounds, Reference, load, padded_batch, within};
use crate::support::models::FOLDERS;
use crate::support::numbers::relative;
use temper::edits::Removal;
use temper::model::Batch;
use temper::objective::{LossBatch, Subject};
use temper::ops::Backend;
use temper::redteam::{Abliteration, AbliterationData, abliterate};
use temper::training::add_attack_noise;

/// Rows of the reference's padded batch, without their padding, each in a batch of its own and to be learned whole.
fn rows<B: Backend>(reference: &Reference<B>) -> Vec<Batch> {
    let all = padded_batch(reference);
    let row = |s: &temper::ops::Segment| {
        let tokens = &all.tokens[s.start..s.start + s.valid];
        let mut batch = Batch::default();
        batch.push(tokens, tokens, tokens.len());
        batch
    };
    all.segments.iter().map(row).collect()
}

/// Runs it at the output of the first layer: the first two rows are restricted, the last two harmless.
fn first_layer<B: Backend>(reference: &mut Reference<B>) -> Abliteration {
    let rows = rows(reference);
    let data = AbliterationData { restricted: rows[..2].to_vec(), harmless: rows[2..].to_vec() };
    let depth = 1.0 / reference.model.config.num_hidden_layers as f64;
    abliterate(&mut reference.evaluator(), &mut reference.weights, &data, Some(depth)).unwrap()
}

pub fn the_direction_is_the_difference_of_the_means_of_transformers<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let mut reference = Reference::open(backend, folder);
        let found = first_layer(&mut reference);
        let width = reference.model.config.hidden_size;
        let states = reference.f32("hidden.1");
        let mut difference = vec![0.0f64; width];
        for (index, s) in padded_batch(&reference).segments.iter().enumerate() {
            let sign = if index < 2 { 0.5 } else { -0.5 };
            let last = &states[(s.start + s.valid - 1) * width..][..width];
            difference.iter_mut().zip(last).for_each(|(sum, h)| *sum += sign * f64::from(*h));
        }
        let norm = difference.iter().map(|d| d * d).sum::<f64>().sqrt();
        let theirs: Vec<f32> = difference.iter().map(|d| (d / norm) as f32).collect();
        assert_eq!(found.level, 1);
        // Errors of the four states add up in a difference that is about as long as they are.
        within(&format!("{folder} direction"), relative(&found.direction, &theirs), 2.0 * bounds.forward);
    }
}

pub fn an_abliterated_model_writes_nothing_along_the_direction<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let mut reference = Reference::open(backend, folder);
        let mut along = vec![];
        let mut direction = None;
        for _ in 0..2 {
            let mut evaluator = reference.evaluator();
            let batch = LossBatch::new(&reference.model, padded_batch(&reference)).unwrap();
            evaluator.forward(Subject::plain(&reference.weights), &batch).unwrap();
            let states: Vec<Vec<f32>> = (0..=reference.model.config.num_hidden_layers)
                .map(|level| {
                    let hidden = evaluator.workspace().residual(level, batch.host().len());
                    backend.download_f32(hidden.buffer, hidden.offset, hidden.len()).unwrap()
                })
                .collect();
            let direction = direction.get_or_insert_with(|| first_layer(&mut reference).direction);
            along.push(states.iter().map(|states| component(states, direction)).collect::<Vec<f64>>());
        }
        for (level, (before, after)) in along[0].iter().zip(&along[1]).enumerate() {
            assert!(*before > 0.05, "{folder}: there was little to remove at level {level}: {before}");
            within(&format!("{folder} component at level {level}"), *after, bounds.forward);
        }
    }
}

pub fn without_a_depth_the_attacker_takes_the_one_that_serves_him_best<B: Backend>(backend: &B, _: &Bounds) {
    let reference = Reference::open(backend, "llama3");
    let rows = rows(&reference);
    let data = AbliterationData { restricted: rows[..2].to_vec(), harmless: rows[2..].to_vec() };
    let run = |depth| {
        let mut reference = Reference::open(backend, "llama3");
        abliterate(&mut reference.evaluator(), &mut reference.weights, &data, depth).map(|found| {
            let weights = reference.weights.download(backend).unwrap();
            (found, weights)
        })
    };
    let layers = reference.model.config.num_hidden_layers;
    let each: Vec<_> = (1..=layers).map(|level| run(Some(level as f64 / layers as f64)).unwrap()).collect();
    let (best, weights) = run(None).unwrap();
    let least = each.iter().map(|(found, _)| found.loss).fold(f64::INFINITY, f64::min);
    assert!(each.iter().any(|(found, _)| found.loss > least), "all depths are as good: this proves nothing");
    let (same, their_weights) = each.iter().find(|(found, _)| found.loss == least).unwrap();
    assert_eq!((best.level, &best.direction, best.loss), (same.level, &same.direction, least));
    assert_eq!(&weights, their_weights);

    let nothing = AbliterationData { harmless: data.restricted.clone(), ..data };
    assert!(matches!(
        abliterate(&mut reference.evaluator(), &mut load(&reference.model, &reference.path), &nothing, None),
        Err(temper::Error::Config { .. })
    ));
}

pub fn an_edited_matrix_replaces_its_own_and_no_other_weight<B: Backend>(backend: &B, _: &Bounds) {
    let mut reference = Reference::open(backend, "llama3");
    let before = reference.weights.download(backend).unwrap();
    let block = reference.model.layout().layer(1).o_proj;
    let mut direction = vec![0.0; block.rows];
    direction[2] = 0.6;
    direction[block.rows - 1] = -0.8;
    let directions = [direction];
    let mut edited = before[block.range()].to_vec();
    Removal { directions: &directions, weight: 0.7, preserve_norms: true }.apply(&mut edited, block.cols);
    reference.weights.upload_block(backend, block, &edited).unwrap();
    let after = reference.weights.download(backend).unwrap();
    assert!(edited != before[block.range()]);
    assert!(after[block.range()] == edited);
    assert!(after[..block.offset] == before[..block.offset]);
    assert!(after[block.range().end..] == before[block.range().end..]);
    assert!(reference.weights.upload_block(backend, block, &edited[1..]).is_err());
}

/// The norm of the states' components along `direction`, as a fraction of the states' norm.
fn component(states: &[f32], direction: &[f32]) -> f64 {
    let dot = |row: &[f32]| row.iter().zip(direction).map(|(h, r)| f64::from(*h) * f64::from(*r)).sum::<f64>();
    let along: f64 = states.chunks_exact(direction.len()).map(|row| dot(row).powi(2)).sum();
    let all: f64 = states.iter().map(|h| f64::from(*h).powi(2)).sum();
    (along / all).sqrt()
}

pub fn noise_has_the_asked_size_in_every_tensor_and_follows_its_seed<B: Backend>(backend: &B, _: &Bounds) {
    let mut reference = Reference::open(backend, "llama3");
    let before = reference.weights.download(backend).unwrap();
    let noisy = |reference: &mut Reference<B>, seed| {
        reference.weights.upload(backend, &before).unwrap();
        add_attack_noise(&reference.model, &mut reference.weights, 0.03, seed).unwrap();
        reference.weights.download(backend).unwrap()
    };
    let first = noisy(&mut reference, 5);
    let again = noisy(&mut reference, 5);
    let other = noisy(&mut reference, 6);
    assert_eq!(first, again);
    for entry in reference.model.layout().entries() {
        let part = entry.block.range();
        let (relative, apart) =
            (relative(&first[part.clone()], &before[part.clone()]), relative(&first[part.clone()], &other[part]));
        // The standard deviation of n draws is known to 1/√(2n); five of those.
        let slack = 5.0 / (2.0 * entry.block.len() as f64).sqrt();
        assert!((relative / 0.03 - 1.0).abs() < slack, "{}: {relative}", entry.name);
        assert!((apart / (0.03 * 2f64.sqrt()) - 1.0).abs() < slack + 0.01, "{}: {apart}", entry.name);
    }
}
