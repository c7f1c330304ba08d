//! Arithmetic and bytes that each operation cannot avoid, as closed forms.
//!
//! FLOP are counted for matrix products, a multiply and an add as two; causal attention counts the visible pairs,
//! and its backward pass 2.5 times its forward pass. Bytes count each input read once and each output written once; what
//! accumulates is read too. `element` is the size of a weight or activation. What a kernel does beyond that (products
//! that it repeats, scratch) is its own business, and shows in its ratio.

use super::Work;
use crate::ops::AttentionShape;

const F32: f64 = 4.0;

/// y = x wᵀ, or dx = dy w: [tokens, output] and [tokens, input], weights [output, input].
pub fn product(tokens: usize, output: usize, input: usize, element: f64) -> Work {
    let t = tokens as f64;
    let o = output as f64;
    let i = input as f64;
    Work { flop: 2.0 * t * o * i, bytes: element * (t * o + t * i + o * i) }
}

/// dw += dyᵀ x, dw in f32.
pub fn weight_gradient(tokens: usize, output: usize, input: usize, element: f64) -> Work {
    let t = tokens as f64;
    let o = output as f64;
    let i = input as f64;
    Work { flop: 2.0 * t * o * i, bytes: element * (t * o + t * i) + 2.0 * F32 * o * i }
}

/// s = x aᵀ; y += s bᵀ. `outputs`: the columns of y that each slice writes.
pub fn lora_forward(tokens: usize, input: usize, outputs: &[usize], rank: usize, element: f64) -> Work {
    let t = tokens as f64;
    let i = input as f64;
    let r = rank as f64;
    let slices = outputs.len() as f64;
    let o = outputs.iter().sum::<usize>() as f64;
    let factors = slices * r * i + o * r;
    Work { flop: 2.0 * t * r * (slices * i + o), bytes: element * (t * i + factors + t * slices * r + 2.0 * t * o) }
}

/// ds = dy b; db += dyᵀ s; da += dsᵀ x; dx += ds a.
pub fn lora_backward(tokens: usize, input: usize, outputs: &[usize], rank: usize, element: f64) -> Work {
    let t = tokens as f64;
    let i = input as f64;
    let r = rank as f64;
    let slices = outputs.len() as f64;
    let o = outputs.iter().sum::<usize>() as f64;
    let factors = slices * r * i + o * r;
    Work {
        flop: 4.0 * t * r * (slices * i + o),
        bytes: element * (t * o + 3.0 * t * i + 2.0 * t * slices * r + factors) + 2.0 * F32 * factors,
    }
}

/// Pairs of a query and a key that it sees, in one head of one sequence.
fn visible_pairs(length: usize) -> f64 {
    let length = length as f64;
    length * (length + 1.0) / 2.0
}

/// Scores and their product with the values.
pub fn attention_forward(sequences: usize, length: usize, shape: AttentionShape, element: f64) -> Work {
    let t = (sequences * length) as f64;
    let columns = (shape.qkv_cols() + shape.query_cols()) as f64;
    Work {
        flop: 4.0 * sequences as f64 * visible_pairs(length) * shape.query_cols() as f64,
        bytes: element * t * columns + F32 * t * shape.num_attention_heads as f64,
    }
}

/// Five products of that size where forward has two.
pub fn attention_backward(sequences: usize, length: usize, shape: AttentionShape, element: f64) -> Work {
    let t = (sequences * length) as f64;
    let columns = (2 * shape.qkv_cols() + 2 * shape.query_cols()) as f64;
    Work {
        flop: 2.5 * attention_forward(sequences, length, shape, element).flop,
        bytes: element * t * columns + F32 * t * shape.num_attention_heads as f64,
    }
}

/// One new token of each sequence, the last of `length`: every key and value of its sequence once.
pub fn attention_cached(sequences: usize, length: usize, shape: AttentionShape, element: f64) -> Work {
    let rows = sequences as f64;
    let keys = (sequences * length) as f64;
    let columns = (shape.qkv_cols() + shape.query_cols()) as f64;
    let slot = 2.0 * shape.key_value_cols() as f64;
    Work {
        flop: 4.0 * keys * shape.query_cols() as f64,
        // The new slots are written once, then read like all others; of slots and rows the tables are read.
        bytes: element * (rows * (columns + slot) + keys * slot) + 4.0 * (keys + 3.0 * rows),
    }
}

/// Logits, and the gradient of the hidden states; with `d_head` the head's gradient too. Logits themselves need not move.
pub fn loss_head(tokens: usize, vocab_size: usize, hidden_size: usize, d_head: bool, element: f64) -> Work {
    let t = tokens as f64;
    let v = vocab_size as f64;
    let d = hidden_size as f64;
    let products = if d_head { 3.0 } else { 2.0 };
    let head = if d_head { 2.0 * F32 * v * d } else { 0.0 };
    Work { flop: products * 2.0 * t * v * d, bytes: element * (2.0 * t * d + v * d) + head + 3.0 * F32 * t }
}

/// As [`loss_head`], with the logits of a teacher of the same size beside the student's.
pub fn loss_head_with_teacher(
    tokens: usize,
    vocab_size: usize,
    hidden_size: usize,
    d_head: bool,
    element: f64,
) -> Work {
    let student = loss_head(tokens, vocab_size, hidden_size, d_head, element);
    let t = tokens as f64;
    let v = vocab_size as f64;
    let d = hidden_size as f64;
    Work { flop: student.flop + 2.0 * t * v * d, bytes: student.bytes + element * (t * d + v * d) }
}

/// A pass over [tokens, columns]: `stored` matrices in the compute dtype and `wide` columns of f32.
pub fn pass(tokens: usize, columns: usize, stored: f64, wide: f64, element: f64) -> Work {
    Work { flop: 0.0, bytes: tokens as f64 * (stored * element * columns as f64 + wide * F32) }
}

/// `bytes` for each of `len` elements.
pub fn flat(len: usize, bytes: f64) -> Work {
    Work { flop: 0.0, bytes: len as f64 * bytes }
}

/// The operations of one pass of a model over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Weights of the linear layers and of the head.
    pub matmul_weights: f64,
    /// Factors of an adapter.
    pub adapter_weights: f64,
    /// Operations of attention's forward pass, all layers.
    pub attention_forward: f64,
    /// Tokens.
    pub tokens: f64,
}

impl Pass {
    /// Forward and backward, with gradients of the weights or of the adapter alone.
    pub fn step(&self, weight_gradients: bool) -> f64 {
        let products = if weight_gradients { 6.0 } else { 4.0 };
        self.tokens * (products * self.matmul_weights + 6.0 * self.adapter_weights) + 3.5 * self.attention_forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of the design's roofline (Llama 3 8B, 16,384 tokens), which was made without this code.
    #[test]
    fn counts_agree_with_the_published_roofline() {
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 5e-3;
        let shape =
            AttentionShape { num_attention_heads: 32, num_key_value_heads: 8, head_dim: 128, sliding_window: None };
        let layer = 4096.0 * (6144.0 + 4096.0 + 3.0 * 14_336.0);
        let pass = Pass {
            matmul_weights: 32.0 * layer + 128_256.0 * 4096.0,
            adapter_weights: 41.9e6,
            attention_forward: 32.0 * attention_forward(8, 2048, shape, 2.0).flop,
            tokens: 16_384.0,
        };
        assert!(near(pass.attention_forward, 8.8e12), "{}", pass.attention_forward);
        assert!(near(pass.step(false), 526.7e12), "{}", pass.step(false));
        let full = Pass { adapter_weights: 0.0, ..pass };
        assert!(near(full.step(true), 768.5e12), "{}", full.step(true));
        assert!(near(loss_head(16_384, 128_256, 4096, true, 2.0).flop, 51.6e12));
    }

    /// One token, one output, one input: counted by hand.
    #[test]
    fn the_smallest_shapes_by_hand() {
        assert_eq!(product(1, 1, 1, 2.0), Work { flop: 2.0, bytes: 6.0 });
        assert_eq!(weight_gradient(1, 1, 1, 2.0), Work { flop: 2.0, bytes: 12.0 });
        // x, a, b, s once, y read and written.
        assert_eq!(lora_forward(1, 1, &[1], 1, 2.0), Work { flop: 4.0, bytes: 12.0 });
        // dy, x, s, ds, a, b once, dx twice in bf16; da and db twice in f32.
        assert_eq!(lora_backward(1, 1, &[1], 1, 2.0), Work { flop: 8.0, bytes: 32.0 });
        assert_eq!(visible_pairs(3), 6.0);
        assert_eq!(pass(2, 3, 4.0, 1.0, 2.0).bytes, 56.0);
    }
}
