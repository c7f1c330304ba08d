//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011).
//!
//! A generator is a pure function of (seed, stream, outer step, inner step) and a draw counter, so a resumed run needs
//! no generator state, and a kernel can compute any draw on its own.

use std::convert::Infallible;

/// What a sequence of random numbers is for; each purpose has a sequence of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Initial weights of a model made from nothing.
    Weights = 1,
    /// Initial LoRA factors.
    Adapter = 2,
    /// LoRA dropout masks.
    Dropout = 3,
    /// Which adversary, learning rate and switch point a trajectory gets.
    Adversary = 4,
    /// The order of a data stream.
    Data = 5,
    /// The random-mapping table.
    RandomMapping = 6,
    /// The made-up facts of the demonstration, and its batches.
    Demo = 7,
    /// Hyperparameter search and other draws of the red team.
    RedTeam = 8,
    /// Rounding of an attack's bf16 moments. `kernels/optimizer.cu` has this number too.
    StateRounding = 9,
    /// Tokens of sampled texts.
    Generation = 10,
    /// The direction that RMU steers hidden states to.
    ControlVector = 11,
    /// The vectors that a search for singular vectors starts from.
    LowRank = 12,
    /// Noise on the weights at a point of a defence.
    Displacement = 13,
    /// The noise on a model that is to be taught again.
    Disturbance = 14,
}

/// A Philox 4x32-10 sequence. Implements [`rand_core::Rng`] so that `rand_distr` can sample from it.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Random {
    /// The sequence for (`seed`, `stream`, `outer`, `inner`). `inner` uses its low 24 bits, `stream` has 8.
    pub fn new(seed: u64, stream: Stream, outer: u64, inner: u64) -> Self {
        let tag = ((stream as u32) << 24) | (inner as u32 & 0x00ff_ffff);
        // counter[0] counts blocks; counter[1] and [2] carry the outer step; counter[3] the stream and inner step.
        let counter = [0, outer as u32, (outer >> 32) as u32, tag];
        Self { key: [seed as u32, (seed >> 32) as u32], counter, block: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn bits32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// The next 64 random bits.
    pub fn bits64(&mut self) -> u64 {
        u64::from(self.bits32()) | (u64::from(self.bits32()) << 32)
    }

    /// A uniform number in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform index below `n` (Lemire's multiplication method, rejecting the biased part). `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.bits64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// A standard normal number.
    pub fn normal(&mut self) -> f64 {
        use rand_distr::Distribution;
        rand_distr::StandardNormal.sample(self)
    }

    /// Shuffles `items` (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

impl rand_core::TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.bits32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.bits64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.bits32().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// An index drawn with probabilities proportional to `weights`; none if no weight is positive.
pub fn weighted(random: &mut Random, weights: impl Iterator<Item = f64> + Clone) -> Option<usize> {
    let total: f64 = weights.clone().filter(|w| *w > 0.0).sum();
    let mut rest = random.uniform() * total;
    let mut last = None;
    for (index, weight) in weights.enumerate().filter(|(_, w)| *w > 0.0) {
        last = Some(index);
        if rest < weight {
            break;
        }
        rest -= weight;
    }
    last
}

/// One Philox 4x32-10 block.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of the Random123 distribution (kat_vectors, philox4x32-10).
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn sequences_of_different_purpose_or_step_differ() {
        let first = |stream, outer, inner| Random::new(7, stream, outer, inner).bits64();
        let all = [
            first(Stream::Data, 0, 0),
            first(Stream::Data, 1, 0),
            first(Stream::Data, 0, 1),
            first(Stream::Data, 1 << 32, 0),
            first(Stream::Dropout, 0, 0),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }
}
