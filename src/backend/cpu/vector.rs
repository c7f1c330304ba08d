//! Loops over rows of numbers that the compiler vectorises, compiled for several instruction sets and chosen at run time.
//!
//! Rust never fuses a multiplication with an addition on its own, so every version gives the same bits.

/// Declares a function whose body is also compiled for AVX2 and AVX-512, and picks the widest that the processor has.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        #[inline]
        $visibility fn $name($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($argument: $type),*) $(-> $output)? {
                    plain($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $output)? {
                    plain($($argument),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: the processor has these features; AVX-512 implies AVX2 and FMA.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has these features.
                    return unsafe { avx2($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}
pub(super) use vectorised;

/// Lanes of the partial sums: wide enough for AVX-512, and fixed, so that every processor adds in the same order.
const LANES: usize = 16;

/// eˣ for x ≤ 88, within 2 units in the last place; 0 below −87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, and 2ⁿ put into the exponent bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that old processors lack.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first short enough that n times it is exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = (p * r * r + r) + 1.0;
    // The low bits of the rounded sum are n in two's complement: moved into the exponent, they make 2ⁿ.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { e * power }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    // The limits keep e⁻ˣ finite; beyond them the result is 0 or 1 to the last bit that matters.
    1.0 / (1.0 + exp((-x).clamp(-87.0, 87.0)))
}

#[inline(always)]
fn lanes_sum(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Σ f(a, b) with sixteen partial sums.
#[inline(always)]
pub(super) fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole_a = a.chunks_exact(LANES);
    let whole_b = b.chunks_exact(LANES);
    let rest_a = whole_a.remainder();
    let rest_b = whole_b.remainder();
    for (a, b) in whole_a.zip(whole_b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane += f(*a, *b);
    }
    lanes_sum(lanes)
}

vectorised! {
    /// Σ a·b.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        sum_of(a, b, |a, b| a * b)
    }
}

vectorised! {
    /// The largest element; −∞ of none.
    pub(super) fn maximum(row: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let whole = row.chunks_exact(LANES);
        let rest = whole.remainder();
        for chunk in whole {
            for i in 0..LANES {
                lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane = if *x > *lane { *x } else { *lane };
        }
        lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

vectorised! {
    /// row = e^(scale·row − shift), and the sum of the result.
    pub(super) fn exp_in_place(row: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        let mut whole = row.chunks_exact_mut(LANES);
        for chunk in &mut whole {
            for i in 0..LANES {
                chunk[i] = exp(chunk[i] * scale - shift);
                lanes[i] += chunk[i];
            }
        }
        for (lane, x) in lanes.iter_mut().zip(whole.into_remainder()) {
            *x = exp(*x * scale - shift);
            *lane += *x;
        }
        lanes_sum(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
