//! The directions of the residual stream that tell restricted prompts from harmless ones, at each depth and between depths.

use rayon::prelude::*;

use super::states::States;

/// Rounds of the power iteration: enough for directions that carry twice what the next one does, and an end for others.
const ROUNDS: usize = 300;
/// What counts as no change of a direction between rounds, and as nothing left of a vector, relative to what it was.
const NEGLIGIBLE: f64 = 1e-9;

/// How directions are found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectionOptions {
    /// How many at most.
    pub count: usize,
    /// Whether they are orthogonal to the mean state of harmless prompts.
    pub orthogonalise: bool,
}

/// For each level from 1 to L the directions, orthonormal and most important first; none where the means are the same.
pub(crate) struct Directions(Vec<Vec<Vec<f32>>>);

impl Directions {
    /// The first direction of a level is the difference of the means (Arditi et al. 2024, section 2.3). The others are the
    /// right singular vectors, by falling singular values, of what it leaves of each restricted prompt's difference from
    /// the mean of the harmless ones.
    ///
    /// `restricted` has each prompt's states where more than one direction is asked for.
    pub(crate) fn find(restricted: &States, harmless: &States, options: DirectionOptions) -> Self {
        let level = |index: usize| {
            let side = Level {
                restricted: &restricted.means[index],
                harmless: &harmless.means[index],
                rows: &restricted.rows[index],
            };
            side.directions(options)
        };
        Self((0..restricted.means.len()).into_par_iter().map(level).collect())
    }

    /// Whether no level has any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Those of a level, from 1.
    pub(crate) fn at(&self, level: usize) -> &[Vec<f32>] {
        level.checked_sub(1).and_then(|index| self.0.get(index)).map_or(&[], Vec::as_slice)
    }

    /// Those at `level`, which may lie between two levels: each is interpolated between its neighbours, and all are made
    /// orthonormal again.
    pub(crate) fn between(&self, level: f64) -> Vec<Vec<f32>> {
        let below = level.floor();
        let share = level - below;
        let lower = self.at(below as usize);
        let upper = self.at(below as usize + 1);
        if share == 0.0 || upper.is_empty() {
            return lower.to_vec();
        }
        if lower.is_empty() {
            return upper.to_vec();
        }
        let mut found: Vec<Vec<f64>> = Vec::new();
        for (index, (lower, upper)) in lower.iter().zip(upper).enumerate() {
            let lower = widened(lower);
            let upper = widened(upper);
            // The difference of means has a sign of its own; that of a singular vector is arbitrary.
            let sign = if index > 0 && dot(&lower, &upper) < 0.0 { -1.0 } else { 1.0 };
            let mixed = lower.iter().zip(&upper).map(|(a, b)| (1.0 - share) * a + share * sign * b).collect();
            found.extend(unit_apart(mixed, &found));
        }
        found.iter().map(|direction| narrowed(direction)).collect()
    }
}

/// What is known of one level.
struct Level<'a> {
    restricted: &'a [f64],
    harmless: &'a [f64],
    /// States of the restricted prompts.
    rows: &'a [f32],
}

impl Level<'_> {
    fn directions(&self, options: DirectionOptions) -> Vec<Vec<f32>> {
        let fixed = if options.orthogonalise { unit_apart(self.harmless.to_vec(), &[]) } else { None };
        let fixed = Vec::from_iter(fixed);
        let difference = self.restricted.iter().zip(self.harmless).map(|(a, b)| a - b).collect();
        let Some(first) = unit_apart(difference, &fixed) else { return Vec::new() };
        let mut known = fixed;
        let start = known.len();
        known.push(first);
        let differences = self.rows.chunks_exact(self.harmless.len());
        let difference = |row: &[f32]| row.iter().zip(self.harmless).map(|(a, b)| f64::from(*a) - b).collect();
        let mut rows: Vec<Vec<f64>> = differences.map(difference).collect();
        let scale = rows.iter().map(|row| dot(row, row)).sum::<f64>();
        known.iter().for_each(|direction| remove(&mut rows, direction));
        while known.len() - start < options.count {
            let left = rows.iter().map(|row| dot(row, row)).sum::<f64>();
            if left.is_nan() || left <= NEGLIGIBLE * scale {
                break;
            }
            let Some(next) = principal(&rows).and_then(|next| unit_apart(next, &known)) else { break };
            remove(&mut rows, &next);
            known.push(next);
        }
        known[start..].iter().map(|direction| narrowed(direction)).collect()
    }
}

/// The right singular vector of the largest singular value of a matrix of `rows`, by power iteration from its longest row.
fn principal(rows: &[Vec<f64>]) -> Option<Vec<f64>> {
    let longest =
        rows.iter().reduce(|longest, row| if dot(row, row) > dot(longest, longest) { row } else { longest })?;
    let mut direction = unit_apart(longest.clone(), &[])?;
    for _ in 0..ROUNDS {
        let mut next = vec![0.0; direction.len()];
        for row in rows {
            let along = dot(row, &direction);
            next.iter_mut().zip(row).for_each(|(sum, value)| *sum += along * value);
        }
        let next = unit_apart(next, &[])?;
        let moved: f64 = next.iter().zip(&direction).map(|(a, b)| (a - b) * (a - b)).sum();
        direction = next;
        if moved < NEGLIGIBLE * NEGLIGIBLE {
            break;
        }
    }
    Some(direction)
}

/// Takes the component along `direction` out of every row.
fn remove(rows: &mut [Vec<f64>], direction: &[f64]) {
    for row in rows {
        let along = dot(row, direction);
        row.iter_mut().zip(direction).for_each(|(value, r)| *value -= along * r);
    }
}

/// What is left of `vector` apart from orthonormal `others`, of length 1; none where that is nothing, or not finite.
fn unit_apart(vector: Vec<f64>, others: &[Vec<f64>]) -> Option<Vec<f64>> {
    let before = dot(&vector, &vector).sqrt();
    let mut left = [vector];
    others.iter().for_each(|other| remove(&mut left, other));
    let [mut left] = left;
    let norm = dot(&left, &left).sqrt();
    let usable = norm.is_finite() && norm > 0.0 && (others.is_empty() || norm > NEGLIGIBLE * before);
    left.iter_mut().for_each(|value| *value /= norm);
    usable.then_some(left)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn widened(direction: &[f32]) -> Vec<f64> {
    direction.iter().map(|value| f64::from(*value)).collect()
}

fn narrowed(direction: &[f64]) -> Vec<f32> {
    direction.iter().map(|value| *value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two levels of states in three dimensions.
    fn states(rows: [&[[f32; 3]]; 2]) -> States {
        let mean = |rows: &&[[f32; 3]]| {
            let of = |at: usize| rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / rows.len() as f64;
            (0..3).map(of).collect()
        };
        States {
            means: rows.iter().map(mean).collect(),
            rows: rows.iter().map(|rows| rows.concat()).collect(),
            tokens: 0,
        }
    }

    fn find(restricted: [&[[f32; 3]]; 2], harmless: [&[[f32; 3]]; 2], count: usize, orthogonalise: bool) -> Directions {
        Directions::find(&states(restricted), &states(harmless), DirectionOptions { count, orthogonalise })
    }

    fn same(found: &[f32], expected: [f32; 3]) {
        let apart: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum();
        assert!(apart < 1e-5, "{found:?}, not {expected:?}");
    }

    /// Differences (3, 2, 0), (3, −2, 1), (3, 2, 0), (3, −2, −1) from the harmless mean: the mean is along the first axis; of
    /// the rest the second axis has 16 and the third 2.
    const SPREAD: [[f32; 3]; 4] = [[4.0, 2.0, 0.0], [4.0, -2.0, 1.0], [4.0, 2.0, 0.0], [4.0, -2.0, -1.0]];
    const HARMLESS: [[f32; 3]; 2] = [[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]];

    #[test]
    fn the_first_direction_is_the_difference_of_means_and_others_follow_by_what_they_carry() {
        let found = find([&SPREAD, &SPREAD], [&HARMLESS, &HARMLESS], 3, false);
        let three = found.at(1);
        assert_eq!(three.len(), 3);
        same(&three[0], [1.0, 0.0, 0.0]);
        let upright = |direction: &[f32], at: usize| direction.iter().map(|v| v * direction[at].signum()).collect();
        let second: Vec<f32> = upright(&three[1], 1);
        same(&second, [0.0, 1.0, 0.0]);
        let third: Vec<f32> = upright(&three[2], 2);
        same(&third, [0.0, 0.0, 1.0]);
        assert_eq!(find([&SPREAD, &SPREAD], [&HARMLESS, &HARMLESS], 1, false).at(1), &three[..1]);
        // Three dimensions have no fourth direction.
        assert_eq!(find([&SPREAD, &SPREAD], [&HARMLESS, &HARMLESS], 9, false).at(2).len(), 3);
    }

    #[test]
    fn orthogonal_directions_leave_the_harmless_mean_alone() {
        let restricted = [[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]];
        let harmless = [[2.0, 0.0, 0.0]];
        same(&find([&restricted, &restricted], [&harmless, &harmless], 1, true).at(1)[0], [0.0, 1.0, 0.0]);
        let skew = (1.0f32 + 16.0).sqrt();
        let plain = find([&restricted, &restricted], [&harmless, &harmless], 1, false);
        same(&plain.at(1)[0], [1.0 / skew, 4.0 / skew, 0.0]);
        // A difference along the harmless mean leaves nothing.
        assert!(find([&[[5.0, 0.0, 0.0]], &[[5.0, 0.0, 0.0]]], [&harmless, &harmless], 1, true).is_empty());
    }

    #[test]
    fn between_two_levels_a_direction_is_interpolated() {
        let zero = [[0.0, 0.0, 0.0]];
        let found = find([&[[2.0, 0.0, 0.0]], &[[0.0, 7.0, 0.0]]], [&zero, &zero], 1, false);
        same(&found.between(1.0)[0], [1.0, 0.0, 0.0]);
        same(&found.between(2.0)[0], [0.0, 1.0, 0.0]);
        let norm = (0.75f32 * 0.75 + 0.25 * 0.25).sqrt();
        same(&found.between(1.25)[0], [0.75 / norm, 0.25 / norm, 0.0]);
        // A level without a direction takes its neighbour's.
        let half = find([&zero, &[[0.0, 7.0, 0.0]]], [&zero, &zero], 1, false);
        same(&half.between(1.5)[0], [0.0, 1.0, 0.0]);
        assert!(half.between(1.0).is_empty() && !half.is_empty());
    }

    /// Singular vectors may come with either sign: opposite ones are the same line and do not cancel.
    #[test]
    fn interpolated_directions_are_orthonormal_and_do_not_cancel() {
        let mirrored = SPREAD.map(|[x, y, z]| [x, -1.1 * y, z]);
        let found = find([&SPREAD, &mirrored], [&HARMLESS, &HARMLESS], 3, false).between(1.5);
        assert_eq!(found.len(), 3);
        for (i, a) in found.iter().enumerate() {
            for (j, b) in found.iter().enumerate() {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((product - f32::from(u8::from(i == j))).abs() < 1e-5, "{i} {j}: {product}");
            }
        }
    }
}
