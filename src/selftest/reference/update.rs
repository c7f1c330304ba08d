//! The optimizers' rules, as `UpdateRule` documents them.

use crate::ops::{COEFFICIENTS, UpdateRule};
use crate::random::{Stream, philox};

/// The 16 random bits that round state `index` (0 or 1) of the element with this place in the flat buffer; `key` is seed
/// (low, high), step, draw.
pub fn rounding_bits([low, high, step, draw]: [u32; 4], place: u64, index: usize) -> u16 {
    let group = place / 4;
    let tag = (Stream::StateRounding as u32) << 24 | (group >> 32) as u32;
    let word = philox([group as u32, step, draw, tag], [low, high])[(place % 4) as usize];
    (word >> (16 * index)) as u16
}

/// The bf16 next to `value` on the side of 0, or the one beyond it where `bits` and its distance make up a whole spacing.
pub fn rounded_at_random(value: f64, bits: u16) -> f64 {
    let inner = f32::from_bits((value as f32).to_bits() & 0xffff_0000);
    let outer = f32::from_bits(inner.to_bits() + 0x1_0000);
    let inner = f64::from(inner);
    let outer = f64::from(outer);
    if (value - inner) / (outer - inner) + f64::from(bits) / 65536.0 >= 1.0 { outer } else { inner }
}

/// (w, s0, s1) after a step of `rule` with gradient g and coefficients c.
pub fn update(rule: UpdateRule, c: [f64; COEFFICIENTS], g: f64, [w, s0, s1]: [f64; 3]) -> [f64; 3] {
    match rule {
        UpdateRule::Adam => {
            let w = w - c[4] * w;
            let g = g + c[5] * w;
            let m = s0 + c[0] * (g - s0);
            let v = c[1] * s1 + c[2] * g * g;
            [w - c[6] * m / (v.sqrt() * c[7] + c[3]), m, v]
        }
        UpdateRule::Sgd => {
            let g = g + c[2] * w;
            let m = if c[4] != 0.0 { g } else { c[1] * s0 + g };
            [w - c[0] * if c[3] != 0.0 { g + c[1] * m } else { m }, m, s1]
        }
        UpdateRule::Adagrad => {
            let g = g + c[2] * w;
            let sum = s0 + g * g;
            [w - c[0] * g / (sum.sqrt() + c[1]), sum, s1]
        }
        UpdateRule::Adadelta => {
            let g = g + c[4] * w;
            let square = c[1] * s0 + c[2] * g * g;
            let u = (s1 + c[3]).sqrt() / (square + c[3]).sqrt() * g;
            [w - c[0] * u, square, c[1] * s1 + c[2] * u * u]
        }
        UpdateRule::NAdam => {
            let g = g + c[4] * w;
            let m = s0 + c[0] * (g - s0);
            let v = c[1] * s1 + c[2] * g * g;
            [w - (c[6] * g + c[7] * m) / ((v * c[5]).sqrt() + c[3]), m, v]
        }
        UpdateRule::RAdam => {
            let g = g + c[4] * w;
            let m = s0 + c[0] * (g - s0);
            let v = c[1] * s1 + c[2] * g * g;
            [w - if c[6] == 0.0 { c[5] * m / (v.sqrt() + c[3]) } else { c[6] * m }, m, v]
        }
        UpdateRule::ScheduleFreeAdamW => {
            let z = if c[8] != 0.0 { w } else { s0 };
            let v = c[0] * s1 + c[1] * g * g;
            let n = g / ((v * c[7]).sqrt() + c[2]) + c[3] * w;
            [w + c[4] * (z - w) + c[6] * n, z - c[5] * n, v]
        }
    }
}
