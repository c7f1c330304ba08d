//! Losses at the head, on hidden states, and of preferences.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{
    self, Backend, DType, DistanceKind, HeadGradients, HeadLoss, HeadTeacher, IGNORE_INDEX, Segment, Segments,
};
use crate::selftest::compare::{cancelling, rounded_twice, summed};
use crate::selftest::reference::{self, Head, Numbers, Taught};
use crate::selftest::trial::{Operand, Trial};

/// A loss head: one token in `every` has a weight.
#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    vocabulary: usize,
    cols: usize,
    every: usize,
}

const fn shape(tokens: usize, vocabulary: usize, cols: usize, every: usize) -> Shape {
    Shape { tokens, vocabulary, cols, every }
}

const SMALL: [Shape; 4] = [shape(1, 37, 5, 1), shape(5, 37, 24, 1), shape(70, 259, 40, 2), shape(9, 1031, 17, 3)];
/// The head of Llama-3-8B for some live tokens among many; the whole vocabulary for so many that they are taken in several
/// chunks.
const REAL: [Shape; 2] = [shape(2048, 128_256, 4096, 256), shape(2500, 128_256, 64, 1)];
/// (tokens, columns).
const HIDDEN: [(usize, usize); 3] = [(1, 13), (11, 40), (6, 1033)];
const REAL_HIDDEN: [(usize, usize); 1] = [(4095, 4096)];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes(full, &SMALL, &REAL) {
        let text = format!("{} x {} x {}, 1/{} live", shape.tokens, shape.vocabulary, shape.cols, shape.every);
        for (name, loss) in [
            ("cross-entropy head", HeadLoss::CrossEntropy),
            ("entropy head", HeadLoss::NegativeEntropy),
            ("teacher head", HeadLoss::TeacherDivergence),
        ] {
            let case = Case::new(name, text.clone(), move |trial| head(trial, shape, loss));
            // Half a billion numbers are made anew for each product: once is enough, the other shapes have both ways.
            cases.push(if shape.cols < 1000 { case.of_products() } else { case });
        }
    }
    for (tokens, cols) in shapes(full, &HIDDEN, &REAL_HIDDEN) {
        let text = format!("{tokens} x {cols}");
        for (name, kind) in
            [("representation_distance", DistanceKind::Euclidean), ("squared distance", DistanceKind::Squared)]
        {
            cases.push(Case::new(name, text.clone(), move |trial| distance(trial, kind, tokens, cols)));
        }
        for (name, two) in [("cosine_margin", false), ("cosine_margin, two", true)] {
            cases.push(Case::new(name, text.clone(), move |trial| cosines(trial, two, tokens, cols)));
        }
        cases.push(Case::new("random_mapping", text, move |trial| mapping(trial, tokens, cols)));
    }
    for lengths in shapes::<&[usize]>(full, &[&[1, 1], &[7, 12, 40, 3]], &[&[700, 1100, 1000, 1296]]) {
        let text = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        cases.push(Case::new("preference", text.clone(), move |trial| preference(trial, lengths)));
        cases.push(Case::new("negative preference", text, move |trial| negative_preference(trial, lengths)));
    }
    cases
}

/// Weights of tokens: positive for one in `every`, else 0.
fn token_weights(trial: &mut Trial, tokens: usize, every: usize) -> Result<Operand> {
    trial.changed(DType::F32, (tokens, 1), move |t, x| if t % every == 0 { 0.5 + x.abs() } else { 0.0 })
}

fn head(trial: &mut Trial, shape: Shape, loss: HeadLoss) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let Shape { tokens, vocabulary, cols, every } = shape;
    // Logits of standard deviation 2: neither uniform nor one-hot.
    let hidden = trial.normal(tokens, cols, 1.0)?;
    let head = trial.normal(vocabulary, cols, 2.0 / (cols as f64).sqrt())?;
    let teacher = match loss {
        HeadLoss::TeacherDivergence => {
            let hidden = trial.normal(tokens, cols, 1.0)?;
            Some([hidden, trial.normal(vocabulary, cols, 2.0 / (cols as f64).sqrt())?])
        }
        _ => None,
    };
    let mut targets = trial.indices(tokens, vocabulary)?.values;
    if tokens > 4 {
        targets[every] = IGNORE_INDEX;
    }
    let targets = trial.integers(targets)?;
    let weights = token_weights(trial, tokens, every)?;
    let values = trial.poisoned(DType::F32, tokens, 1);
    let d_hidden = trial.poisoned(dtype, tokens, cols);
    let d_head = trial.starting(DType::F32, vocabulary, cols, 0.01);
    let [found_values, found_hidden, found_head] =
        trial.launch([&values, &d_hidden, &d_head], |[values, d_hidden, d_head]| {
            let gradients = HeadGradients { d_hidden: d_hidden.view_mut(), d_head: Some(d_head.view_mut()) };
            cuda.run(ops::LossHead {
                loss,
                hidden: hidden.tensor.view(),
                head: head.tensor.view(),
                targets: targets.tensor.view(),
                teacher: teacher
                    .as_ref()
                    .map(|[hidden, head]| HeadTeacher { hidden: hidden.tensor.view(), head: head.tensor.view() }),
                weights: weights.tensor.view(),
                values: values.view_mut(),
                gradients: Some(gradients),
            })
        })?;
    let call = Head {
        loss,
        hidden: &hidden,
        head: &head,
        targets: &targets.values,
        teacher: teacher.as_ref().map(|[hidden, head]| Taught { hidden, head }),
        weights: &weights,
    };
    let expected = call.run(&found_hidden.rows, &found_head.rows);
    // Logits are f32 sums of exact products in both modes.
    trial.check("values", &found_values, summed(DType::F32, cols), |t, _| vec![expected.values[t]]);
    let row = |rows: &[usize], row| rows.binary_search(&row).unwrap_or(0);
    // The logits' gradient is rounded before it is multiplied on.
    trial.check("d_hidden", &found_hidden, cancelling(dtype, vocabulary), |t, cols| {
        cols.iter().map(|&col| expected.d_hidden[row(&found_hidden.rows, t)][col]).collect()
    });
    trial.check("d_head", &found_head, rounded_twice(dtype, tokens), |v, cols| {
        let sum = |col: usize| expected.d_head[row(&found_head.rows, v)][col];
        cols.iter().map(|&col| d_head.start().at(v, col) + sum(col)).collect()
    });
    Ok(())
}

/// The first token's distance is 0, and its gradient nothing. Squares are those to one state for all tokens.
fn distance(trial: &mut Trial, kind: DistanceKind, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let hidden = trial.normal(tokens, cols, 1.0)?;
    let first: Vec<f32> = (0..cols).map(|col| hidden.at(0, col) as f32).collect();
    let same = tokens > 1;
    let rows = if kind == DistanceKind::Squared { 1 } else { tokens };
    let reference_states =
        trial.changed(dtype, (rows, cols), move |i, x| if same && i < cols { first[i] } else { x })?;
    let weights = token_weights(trial, tokens, 3)?;
    let values = trial.poisoned(DType::F32, tokens, 1);
    let d_hidden = trial.starting(dtype, tokens, cols, 0.1 / (cols as f64).sqrt());
    let [found_values, found] = trial.launch([&values, &d_hidden], |[values, d_hidden]| {
        cuda.run(ops::RepresentationDistance {
            kind,
            hidden: hidden.tensor.view(),
            reference: reference_states.tensor.view(),
            weights: weights.tensor.view(),
            values: values.view_mut(),
            d_hidden: Some(d_hidden.view_mut()),
        })
    })?;
    trial.check("values", &found_values, summed(DType::F32, cols), |t, _| {
        vec![reference::distance(kind, &hidden, &reference_states, t).0]
    });
    let formula = reference::distance_gradient(kind, &hidden, &reference_states, &weights, d_hidden.start());
    trial.check("d_hidden", &found, summed(dtype, cols), formula);
    Ok(())
}

/// The margin leaves values on both sides of 0.
fn cosines(trial: &mut Trial, two: bool, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let hidden = trial.normal(tokens, cols, 1.0)?;
    let away = trial.normal(tokens, cols, 1.0)?;
    let toward = if two { Some(trial.normal(1, cols, 1.0)?) } else { None };
    let margin = 1.0 / (cols as f32).sqrt();
    let weights = token_weights(trial, tokens, 2)?;
    let values = trial.poisoned(DType::F32, tokens, 1);
    let d_hidden = trial.starting(dtype, tokens, cols, 0.1 / cols as f64);
    let [found_values, found] = trial.launch([&values, &d_hidden], |[values, d_hidden]| {
        cuda.run(ops::CosineMargin {
            hidden: hidden.tensor.view(),
            away: away.tensor.view(),
            toward: toward.as_ref().map(|toward| toward.tensor.view()),
            margin,
            weights: weights.tensor.view(),
            values: values.view_mut(),
            d_hidden: Some(d_hidden.view_mut()),
        })
    })?;
    let toward = toward.as_ref().map(|toward| toward as &dyn Numbers);
    let states = reference::CosineStates { hidden: &hidden, away: &away, toward, margin: f64::from(margin) };
    trial.check("values", &found_values, summed(DType::F32, cols), |t, _| vec![states.of(t, &[]).0]);
    trial.check("d_hidden", &found, summed(dtype, cols), |t, cols| {
        let gradient = states.of(t, cols).1;
        let weight = weights.at(t, 0);
        cols.iter().zip(gradient).map(|(&col, g)| d_hidden.start().at(t, col) + weight * g).collect()
    });
    Ok(())
}

fn mapping(trial: &mut Trial, tokens: usize, cols: usize) -> Result<()> {
    const VOCABULARY: usize = 61;
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let hidden = trial.normal(tokens, cols, 1.0)?;
    let table = trial.normal_f32(VOCABULARY, cols, 1.0)?;
    let ids = trial.indices(tokens, VOCABULARY)?;
    let weights = token_weights(trial, tokens, 2)?;
    let values = trial.poisoned(DType::F32, tokens, 1);
    let d_hidden = trial.starting(dtype, tokens, cols, 0.1 / cols as f64);
    let [found_values, found] = trial.launch([&values, &d_hidden], |[values, d_hidden]| {
        cuda.run(ops::RandomMapping {
            hidden: hidden.tensor.view(),
            table: table.tensor.view(),
            ids: ids.tensor.view(),
            weights: weights.tensor.view(),
            values: values.view_mut(),
            d_hidden: Some(d_hidden.view_mut()),
        })
    })?;
    trial.check("values", &found_values, summed(DType::F32, cols), |t, _| {
        vec![reference::mapping_value(&hidden, &table, &ids.values, t)]
    });
    let formula = reference::mapping_gradient(&hidden, &table, &ids.values, &weights, d_hidden.start());
    trial.check("d_hidden", &found, summed(dtype, cols), formula);
    Ok(())
}

/// Chosen and rejected in turn; margins near zero, so that the sigmoid is neither 0 nor 1.
fn preference(trial: &mut Trial, lengths: &[usize]) -> Result<()> {
    const BETA: f32 = 0.1;
    const SCALE: f32 = 3.0;
    let cuda = trial.cuda();
    let mut start = 0;
    let tokens = lengths.iter().sum();
    let segment = |&length: &usize| {
        start += length;
        Segment { start: start - length, length, valid: length }
    };
    let segments = Segments::new(cuda, lengths.iter().map(segment).collect())?;
    let scale = 5.0 / (tokens as f32).sqrt();
    let values = trial.changed(DType::F32, (tokens, 1), move |_, x| scale * x.abs())?;
    let margins = trial.normal_f32(lengths.len() / 2, 1, 3.0)?;
    let weights = trial.starting_with((tokens, 1), |t, _| if t % 4 == 0 { 0.0 } else { 1.0 });
    let weights = trial.output(DType::F32, weights);
    let losses = trial.poisoned(DType::F32, lengths.len() / 2, 1);
    let [found_weights, found_losses] = trial.launch([&weights, &losses], |[weights, losses]| {
        cuda.run(ops::Preference {
            values: values.tensor.view(),
            segments: &segments,
            reference_margins: margins.tensor.view(),
            beta: BETA,
            scale: SCALE,
            weights: weights.view_mut(),
            losses: losses.view_mut(),
        })
    })?;
    let factors = (f64::from(BETA), f64::from(SCALE));
    let (losses, after) = reference::preference(&values, &segments.host, &margins, factors, weights.start());
    trial.check("losses", &found_losses, summed(DType::F32, tokens), |pair, _| vec![losses[pair]]);
    trial.check("weights", &found_weights, summed(DType::F32, tokens), |t, _| vec![after[t]]);
    Ok(())
}

/// Log-probabilities near those of the reference, so that the sigmoid is neither 0 nor 1.
fn negative_preference(trial: &mut Trial, lengths: &[usize]) -> Result<()> {
    const BETA: f32 = 0.1;
    const SCALE: f32 = 3.0;
    let cuda = trial.cuda();
    let mut start = 0;
    let tokens = lengths.iter().sum();
    let segment = |&length: &usize| {
        start += length;
        Segment { start: start - length, length, valid: length }
    };
    let segments = Segments::new(cuda, lengths.iter().map(segment).collect())?;
    let scale = 5.0 / (tokens as f32).sqrt();
    let values = trial.changed(DType::F32, (tokens, 1), move |_, x| scale * x.abs())?;
    let references = trial.normal_f32(lengths.len(), 1, 3.0)?;
    let divisors = trial.changed(DType::F32, (lengths.len(), 1), |_, x| 1.0 + x.abs())?;
    let weights = trial.starting_with((tokens, 1), |t, _| if t % 4 == 0 { 0.0 } else { 1.0 });
    let weights = trial.output(DType::F32, weights);
    let losses = trial.poisoned(DType::F32, lengths.len(), 1);
    let [found_weights, found_losses] = trial.launch([&weights, &losses], |[weights, losses]| {
        cuda.run(ops::NegativePreference {
            values: values.tensor.view(),
            segments: &segments,
            lengths: divisors.tensor.view(),
            references: references.tensor.view(),
            beta: BETA,
            scale: SCALE,
            weights: weights.view_mut(),
            losses: losses.view_mut(),
        })
    })?;
    let factors = (f64::from(BETA), f64::from(SCALE));
    let compared = [&divisors as &dyn Numbers, &references];
    let (expected, after) = reference::negative_preference(&values, &segments.host, compared, factors, weights.start());
    trial.check("losses", &found_losses, summed(DType::F32, tokens), |sequence, _| vec![expected[sequence]]);
    trial.check("weights", &found_weights, summed(DType::F32, tokens), |t, _| vec![after[t]]);
    Ok(())
}
