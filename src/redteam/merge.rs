//! Weights between a model and another of its shape, or beyond them: no training and no data. Whoever has the model that a
//! safeguard was added to has the difference that the safeguard made, and can take it back in part or overshoot
//! (task arithmetic, arXiv 2212.04089).

/// θ + c · (β − θ), where θ are `weights`, β are `base` and c is `coefficient`: 0 is θ, 1 is β, and above 1 the weights lie
/// beyond β. Computed in f64 and rounded once.
pub fn merged(weights: &[f32], base: &[f32], coefficient: f64) -> Vec<f32> {
    let merge = |(own, other): (&f32, &f32)| {
        let own = f64::from(*own);
        (own + coefficient * (f64::from(*other) - own)) as f32
    };
    weights.iter().zip(base).map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn a_merge_is_the_model_the_other_or_on_the_line_through_both() {
        let own = [1.0f32, -2.0, 0.375, 5.0];
        let other = [3.0f32, -2.0, -0.75, 4.0];
        assert_eq!(merged(&own, &other, 0.0), own);
        assert_eq!(merged(&own, &other, 1.0), other);
        assert_eq!(merged(&own, &other, 0.5), [2.0, -2.0, -0.1875, 4.5]);
        assert_eq!(merged(&own, &other, 2.0)[..2], [5.0, -2.0]);
        assert_eq!(merged(&own, &other, -1.0)[3], 6.0);
    }
}
