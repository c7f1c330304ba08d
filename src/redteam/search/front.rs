//! Trials of two objectives, both of them to be as low as possible and neither below 0: which are better than which.

/// The indices of the points that no other is better than: as low in one objective and lower in the other. Of equal
/// points the first stands for all.
pub(in crate::redteam) fn front(points: &[[f64; 2]]) -> Vec<usize> {
    let worse = |index: usize| {
        points
            .iter()
            .enumerate()
            .any(|(other, point)| dominates(point, &points[index]) || (other < index && *point == points[index]))
    };
    (0..points.len()).filter(|&index| !worse(index)).collect()
}

/// The best `count` of `points`, best first. Those below `corner` in both objectives come before the others. Both are
/// ordered by the fronts that are left as better ones are taken away, and within a front by how much each adds to the
/// area that dominates the corner (Ozaki et al. 2022, "Multiobjective tree-structured Parzen estimator", section 4.1).
pub(super) fn best(points: &[[f64; 2]], corner: [f64; 2], count: usize) -> Vec<usize> {
    let inside = |index: &usize| points[*index][0] < corner[0] && points[*index][1] < corner[1];
    let (good, other): (Vec<usize>, Vec<usize>) = (0..points.len()).partition(inside);
    let mut chosen = Vec::new();
    for (mut left, corner) in [(good, Some(corner)), (other, None)] {
        while !left.is_empty() && chosen.len() < count {
            let is_first = |index: &usize| !left.iter().any(|&by| dominates(&points[by], &points[*index]));
            let (first, rest): (Vec<usize>, Vec<usize>) = left.iter().partition(|index| is_first(index));
            let corner = corner.unwrap_or_else(|| beyond(points, &first));
            chosen.extend(by_area(points, &first, corner, count - chosen.len()));
            left = rest;
        }
    }
    chosen
}

fn dominates(a: &[f64; 2], b: &[f64; 2]) -> bool {
    a[0] <= b[0] && a[1] <= b[1] && a != b
}

/// A corner a tenth beyond the worst of `members` in each objective.
fn beyond(points: &[[f64; 2]], members: &[usize]) -> [f64; 2] {
    [0, 1].map(|objective| 1.1 * members.iter().map(|&index| points[index][objective]).fold(0.0, f64::max))
}

/// Up to `count` of `members`, each the one that adds most to the area of those before it; of equal ones the first.
fn by_area(points: &[[f64; 2]], members: &[usize], corner: [f64; 2], count: usize) -> Vec<usize> {
    let mut left = members.to_vec();
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        let with = |index: usize| area(chosen.iter().chain([&index]).map(|&member| points[member]).collect(), corner);
        let areas: Vec<f64> = left.iter().map(|&index| with(index)).collect();
        let best = (0..left.len()).reduce(|best, next| if areas[next] > areas[best] { next } else { best });
        chosen.push(left.remove(best.unwrap_or(0)));
    }
    chosen
}

/// The area between `corner` and the points that lie below it.
pub(super) fn area(mut points: Vec<[f64; 2]>, corner: [f64; 2]) -> f64 {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let mut area = 0.0;
    let mut height = corner[1];
    for [x, y] in points {
        if x < corner[0] && y < height {
            area += (corner[0] - x) * (height - y);
            height = y;
        }
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_has_what_nothing_beats() {
        let points = [[1.0, 5.0], [2.0, 2.0], [2.0, 2.0], [3.0, 3.0], [5.0, 1.0], [2.0, 4.0], [6.0, 1.0]];
        assert_eq!(front(&points), [0, 1, 4]);
        assert_eq!(front(&[]), Vec::<usize>::new());
        assert_eq!(front(&[[0.0, 0.0], [0.0, 1.0]]), [0]);
    }

    /// Rectangles by hand: 4·1 of (1, 5), then 3·3 more of (2, 2) and 1·1 more of (4, 1).
    #[test]
    fn an_area_is_the_union_of_the_points_rectangles() {
        let corner = [5.0, 6.0];
        assert_eq!(area(vec![[1.0, 5.0]], corner), 4.0);
        assert_eq!(area(vec![[4.0, 1.0], [1.0, 5.0], [2.0, 2.0], [3.0, 3.0]], corner), 4.0 + 9.0 + 1.0);
        assert_eq!(area(vec![[5.0, 0.0], [0.0, 6.0], [9.0, 9.0]], corner), 0.0);
    }

    #[test]
    fn what_serves_nothing_comes_last_and_better_fronts_come_first() {
        // The first changes nothing, the last does not matter: both lie on the front and outside the corner.
        let points = [[10.0, 0.0], [4.0, 3.0], [3.0, 4.0], [5.0, 5.0], [8.0, 1.0], [1.0, 99.0]];
        assert_eq!(best(&points, [10.0, 10.0], 6), [1, 2, 4, 3, 0, 5]);
        // Areas: 6·7 = 42 and 7·6 = 42, the earlier first; then (3, 4) adds 1·6 and (8, 1) adds 2·2.
        assert_eq!(best(&points, [10.0, 10.0], 2), [1, 2]);
        assert_eq!(best(&[[2.0, 2.0], [1.0, 3.0]], [1.0, 1.0], 9).len(), 2);
        assert_eq!(best(&[[0.0, 0.0]; 3], [1.0, 1.0], 2), [0, 1]);
    }
}
