//! The optimizers' rules, as `UpdateRule` documents them.

use crate::ops::{COEFFICIENTS, UpdateRule};

/// (w, s0, s1) after a step of `rule` with gradient g and coefficients c.
pub fn update(rule: UpdateRule, c: [f64; COEFFICIENTS], g: f64, [w, s0, s1]: [f64; 3]) -> [f64; 3] {
    match rule {
        UpdateRule::Adam => {
            let w = w - c[4] * w;
            let g = g + c[5] * w;
            let (m, v) = (s0 + c[0] * (g - s0), c[1] * s1 + c[2] * g * g);
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
            let (m, v) = (s0 + c[0] * (g - s0), c[1] * s1 + c[2] * g * g);
            [w - (c[6] * g + c[7] * m) / ((v * c[5]).sqrt() + c[3]), m, v]
        }
        UpdateRule::RAdam => {
            let g = g + c[4] * w;
            let (m, v) = (s0 + c[0] * (g - s0), c[1] * s1 + c[2] * g * g);
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
