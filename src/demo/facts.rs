//! Two sets of made-up facts, (entity, attribute) → value, as rows of tokens.

use crate::model::Batch;
use crate::ops::IGNORE_INDEX;
use crate::random::{Random, Stream};

/// Vocabulary of the demonstration's model.
pub const VOCAB_SIZE: usize = 256;
/// First token of every row.
pub const BOS: u32 = 1;
const ENTITIES: std::ops::Range<u32> = 8..104;
const VALUES: std::ops::Range<u32> = 128..160;
const ATTRIBUTES: std::ops::Range<u32> = 200..204;
/// Facts in one training row; each is (domain, entity, attribute, value).
const FACTS_PER_ROW: usize = 4;
/// Tokens of a training row.
pub(super) const ROW_TOKENS: usize = 1 + 4 * FACTS_PER_ROW;

/// Which set of facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// What the model must not give back.
    Restricted,
    /// What it must keep.
    Benign,
}

/// Which facts of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// All.
    All,
    /// The half that attackers fine-tune on.
    Attack,
    /// The quarter that the tamper-resistance loss sees.
    Held,
    /// What defenders train on: attack and held together.
    Defence,
    /// The quarter that nobody trains on after pre-training: its return is the breach.
    Probe,
}

#[derive(Clone, Copy, Debug)]
struct Fact {
    entity: u32,
    attribute: u32,
    value: u32,
}

/// Both sets.
#[derive(Clone, Debug)]
pub struct Facts {
    restricted: Vec<Fact>,
    benign: Vec<Fact>,
}

impl Facts {
    /// Draws the values, and the order that decides which pool a fact belongs to.
    pub fn new(seed: u64) -> Self {
        let set = |which| {
            let mut random = Random::new(seed, Stream::Demo, which, 0);
            let mut facts: Vec<Fact> = ENTITIES
                .flat_map(|entity| ATTRIBUTES.map(move |attribute| (entity, attribute)))
                .map(|(entity, attribute)| Fact {
                    entity,
                    attribute,
                    value: VALUES.start + random.below(VALUES.len()) as u32,
                })
                .collect();
            random.shuffle(&mut facts);
            facts
        };
        Self { restricted: set(0), benign: set(1) }
    }

    /// What guessing among the values would get right.
    pub fn chance() -> f64 {
        1.0 / VALUES.len() as f64
    }

    fn pool(&self, domain: Domain, pool: Pool) -> &[Fact] {
        let all = match domain {
            Domain::Restricted => &self.restricted,
            Domain::Benign => &self.benign,
        };
        let half = all.len() / 2;
        let three_quarters = all.len() * 3 / 4;
        match pool {
            Pool::All => all,
            Pool::Attack => &all[..half],
            Pool::Held => &all[half..three_quarters],
            Pool::Defence => &all[..three_quarters],
            Pool::Probe => &all[three_quarters..],
        }
    }

    /// `rows` training rows of facts drawn from a pool, as (tokens, labels): only the values are to be learned.
    pub fn rows(&self, domain: Domain, pool: Pool, rows: usize, random: &mut Random) -> Vec<(Vec<u32>, Vec<u32>)> {
        let facts = self.pool(domain, pool);
        let mut row = || {
            let mut tokens = vec![BOS];
            let mut labels = vec![IGNORE_INDEX];
            for _ in 0..FACTS_PER_ROW {
                let fact = facts[random.below(facts.len())];
                tokens.extend([domain.token(), fact.entity, fact.attribute, fact.value]);
                labels.extend([IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, fact.value]);
            }
            (tokens, labels)
        };
        (0..rows).map(|_| row()).collect()
    }

    /// Every fact of a pool as a row of its own, as (tokens, labels): only the value is to be learned.
    pub fn questions_with_answers(&self, domain: Domain, pool: Pool) -> Vec<(Vec<u32>, Vec<u32>)> {
        let row = |fact: &Fact| {
            let tokens = vec![BOS, domain.token(), fact.entity, fact.attribute, fact.value];
            (tokens, [&[IGNORE_INDEX; 4][..], &[fact.value]].concat())
        };
        self.pool(domain, pool).iter().map(row).collect()
    }

    /// Questions of up to `size` facts each: a batch of rows that end where the value is to come, the index of each row's
    /// last token, and the values.
    pub fn questions(&self, domain: Domain, pool: Pool, size: usize) -> Vec<(Batch, Vec<u32>, Vec<u32>)> {
        let question = |facts: &[Fact]| {
            let mut batch = Batch::default();
            for fact in facts {
                batch.push(&[BOS, domain.token(), fact.entity, fact.attribute], &[IGNORE_INDEX; 4], 4);
            }
            let last = batch.segments.iter().map(|s| (s.start + s.length - 1) as u32).collect();
            (batch, last, facts.iter().map(|fact| fact.value).collect())
        };
        self.pool(domain, pool).chunks(size.max(1)).map(question).collect()
    }
}

impl Domain {
    fn token(self) -> u32 {
        match self {
            Self::Restricted => 2,
            Self::Benign => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_do_not_overlap_and_rows_teach_values_only() {
        let facts = Facts::new(3);
        let keys = |pool| -> Vec<(u32, u32)> {
            facts.pool(Domain::Restricted, pool).iter().map(|f| (f.entity, f.attribute)).collect()
        };
        let attack = keys(Pool::Attack);
        let held = keys(Pool::Held);
        let probe = keys(Pool::Probe);
        assert_eq!(attack.len() + held.len() + probe.len(), 384);
        assert!(probe.iter().all(|key| !attack.contains(key) && !held.contains(key)));
        assert!(held.iter().all(|key| !attack.contains(key)));

        let mut random = Random::new(1, Stream::Demo, 9, 9);
        for (tokens, labels) in facts.rows(Domain::Benign, Pool::All, 5, &mut random) {
            assert_eq!(tokens.len(), 17);
            for (i, label) in labels.iter().enumerate() {
                let is_value = VALUES.contains(&tokens[i]);
                assert_eq!(*label, if is_value { tokens[i] } else { IGNORE_INDEX });
                assert_eq!(is_value, i > 0 && i % 4 == 0);
            }
        }
    }
}
