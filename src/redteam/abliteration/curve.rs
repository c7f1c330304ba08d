//! How the weight of a removal falls off over the layers.

/// How the weight of a removal falls off over the layers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WeightCurve {
    /// The highest weight.
    pub most: f64,
    /// Where it is, as an index of a layer, between two where it has a fraction.
    pub position: f64,
    /// The weight at `distance` layers from there.
    pub least: f64,
    /// Layers that are farther away stay as they are.
    pub distance: f64,
}

impl WeightCurve {
    /// The weight in layer `layer`, from 0: straight from `most` to `least`, and then nothing.
    pub fn at(&self, layer: usize) -> f64 {
        let away = (layer as f64 - self.position).abs();
        if away > self.distance {
            return 0.0;
        }
        let fallen = if self.distance > 0.0 { away / self.distance } else { 0.0 };
        self.most + (self.least - self.most) * fallen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_highest_at_its_position_falls_straight_and_ends() {
        let curve = WeightCurve { most: 1.2, position: 5.5, least: 0.3, distance: 3.0 };
        let expected = [0.0, 0.0, 0.0, 0.45, 0.75, 1.05, 1.05, 0.75, 0.45, 0.0];
        for (layer, expected) in expected.into_iter().enumerate() {
            assert!((curve.at(layer) - expected).abs() < 1e-12, "layer {layer}: {}", curve.at(layer));
        }
        let whole = WeightCurve { position: 4.0, ..curve };
        assert_eq!((whole.at(4), whole.at(8)), (1.2, 0.0));
        assert!((whole.at(7) - 0.3).abs() < 1e-12);
        let point = WeightCurve { distance: 0.0, ..whole };
        assert_eq!((point.at(4), point.at(5)), (1.2, 0.0));
    }
}
