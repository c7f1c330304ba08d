//! The next token of a text, from the logits after it.

use std::cmp::Ordering;

use crate::random::Random;

/// How the next token is drawn. The filters are Transformers', in its order: temperature, top-k, top-p.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// What logits are divided by; above 0.
    pub temperature: f64,
    /// Only the `k` most probable tokens; all where it is `None`.
    pub top_k: Option<usize>,
    /// Only the most probable tokens, as few as have this probability together; 1 means all.
    pub top_p: f64,
}

/// The index of the largest logit, the first of equal ones; `None` if one is NaN or there is none.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if logit > *logits.get(best)? {
            best = index;
        }
    }
    (!logits.is_empty()).then_some(best as u32)
}

impl Sampling {
    /// A token drawn from `logits` with one number of `random`; `None` if a logit is NaN or all are −∞.
    pub(super) fn draw(&self, logits: &[f32], random: &mut Random) -> Option<u32> {
        let kept = self.distribution(logits)?;
        let mut left = random.uniform() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for &(token, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Some(token);
            }
        }
        // Rounding can leave a trace of the last one's share.
        kept.last().map(|&(token, _)| token)
    }

    /// The tokens that the filters keep, with weights that are in proportion to their probabilities, in an order that depends
    /// on nothing else. Sorts few of them: vocabularies have a hundred thousand.
    fn distribution(&self, logits: &[f32]) -> Option<Vec<(u32, f64)>> {
        let largest = f64::from(*logits.get(argmax(logits)? as usize)?);
        if !largest.is_finite() {
            return None;
        }
        let weight = |logit: f32| ((f64::from(logit) - largest) / self.temperature).exp();
        let mut kept: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| weight(logit))).collect();
        if let Some(k) = self.top_k.filter(|&k| k > 0 && k < kept.len()) {
            kept.select_nth_unstable_by(k, most_probable_first);
            kept.truncate(k);
            kept.sort_unstable_by(most_probable_first);
        }
        if self.top_p < 1.0 {
            self.keep_top_p(&mut kept);
        }
        Some(kept)
    }

    fn keep_top_p(&self, kept: &mut Vec<(u32, f64)>) {
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        // All tokens below this weight together have less than what may be left out.
        let negligible = 0.5 * (1.0 - self.top_p) * total / kept.len() as f64;
        kept.retain(|(_, weight)| *weight >= negligible);
        kept.sort_unstable_by(most_probable_first);
        let mut before = 0.0;
        let enough = kept.iter().position(|(_, weight)| {
            before += weight / total;
            before >= self.top_p
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
}

/// Of equally probable tokens the first one.
fn most_probable_first(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: None, top_p: 1.0 };

    fn kept(sampling: Sampling, probabilities: &[f64]) -> Vec<u32> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
        sampling.distribution(&logits).unwrap().iter().map(|(token, _)| *token).collect()
    }

    #[test]
    fn the_first_of_the_largest_logits_wins_and_nan_is_no_answer() {
        assert_eq!(argmax(&[0.5, 2.0, -1.0, 2.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), Some(0));
        assert_eq!(argmax(&[0.5, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NAN, 0.5]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn filters_keep_the_most_probable_tokens() {
        let p = [0.1, 0.4, 0.15, 0.35];
        assert_eq!(kept(PLAIN, &p), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_k: Some(2), ..PLAIN }, &p), [1, 3]);
        assert_eq!(kept(Sampling { top_p: 0.3, ..PLAIN }, &p), [1]);
        assert_eq!(kept(Sampling { top_p: 0.7, ..PLAIN }, &p), [1, 3]);
        assert_eq!(kept(Sampling { top_p: 0.8, ..PLAIN }, &p), [1, 3, 2]);
        assert_eq!(kept(Sampling { top_p: 0.9999, ..PLAIN }, &p), [1, 3, 2, 0]);
        assert_eq!(kept(Sampling { top_k: Some(9), ..PLAIN }, &p), [0, 1, 2, 3]);
        // The share is of what top-k left: 0.4 of 0.75 is more than a half.
        assert_eq!(kept(Sampling { top_k: Some(2), top_p: 0.52, ..PLAIN }, &p), [1]);
        // A high temperature makes the first token's share small: of 0.4, 0.35, 0.15, 0.1 to the tenth it is below 0.3.
        assert_eq!(kept(Sampling { temperature: 10.0, top_p: 0.3, ..PLAIN }, &p), [1, 3]);
    }

    /// 20,000 draws: every frequency within four standard deviations of its probability.
    #[test]
    fn draws_have_the_frequencies_of_the_tempered_distribution() {
        let p: [f64; 4] = [0.1, 0.4, 0.2, 0.3];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        for temperature in [1.0, 0.5, 2.0] {
            let sampling = Sampling { temperature, ..PLAIN };
            let total: f64 = p.iter().map(|p| p.powf(1.0 / temperature)).sum();
            let mut counts = [0.0; 4];
            let draws = 20_000;
            for draw in 0..draws {
                let mut random = Random::new(1, Stream::Generation, draw, 0);
                counts[sampling.draw(&logits, &mut random).unwrap() as usize] += 1.0;
            }
            for (count, p) in counts.iter().zip(p) {
                let expected = p.powf(1.0 / temperature) / total;
                let deviation = (expected * (1.0 - expected) / draws as f64).sqrt();
                assert!((count / draws as f64 - expected).abs() < 4.0 * deviation, "{count} of {draws}, {expected}");
            }
        }
    }

    /// `filters` of a fixture holds the logits that the warpers of Transformers leave.
    #[test]
    fn filters_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama3/generation.json");
        let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = fixture["filters"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
            let logits: Vec<f32> = numbers("logits").map(|x| x as f32).collect();
            let sampling = Sampling {
                temperature: case["temperature"].as_f64().unwrap(),
                top_k: case["top_k"].as_u64().map(|k| k as usize),
                top_p: case["top_p"].as_f64().unwrap(),
            };
            let kept = sampling.distribution(&logits).unwrap();
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            for (token, expected) in (0..).zip(numbers("probabilities")) {
                let found = kept.iter().find(|(kept, _)| *kept == token).map_or(0.0, |(_, weight)| weight / total);
                assert!((found - expected).abs() < 1e-6, "{sampling:?}, token {token}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn logits_without_a_finite_maximum_give_no_token() {
        let mut random = Random::new(1, Stream::Generation, 0, 0);
        for logits in [[f32::NAN, 0.0], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
            assert_eq!(PLAIN.draw(&logits, &mut random), None);
        }
    }
}
