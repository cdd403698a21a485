//! The best quality that curves and single points reach at every size (Pareto front).

/// A straight piece of a curve, from the smaller to the larger size.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: (f64, f64),
    to: (f64, f64),
}

impl Piece {
    fn covers(&self, left: f64, right: f64) -> bool {
        self.from.0 <= left && right <= self.to.0
    }

    fn at(&self, size: f64) -> f64 {
        if size == self.to.0 {
            return self.to.1;
        }
        let share = (size - self.from.0) / (self.to.0 - self.from.0);
        self.from.1 + share * (self.to.1 - self.from.1)
    }

    /// The size at which two pieces meet inside both.
    fn meets(&self, other: &Piece) -> Option<f64> {
        let (left, right) = (self.from.0.max(other.from.0), self.to.0.min(other.to.0));
        if left >= right {
            return None;
        }
        let (before, after) = (self.at(left) - other.at(left), self.at(right) - other.at(right));
        (before * after < 0.0).then(|| left + (right - left) * before / (before - after))
    }
}

/// The front of `curves`, whose points are joined by straight lines, and of `single` points, as the vertices of a line by
/// size. All points are (size, cost) in the units of the axes; a lower cost is better.
///
/// At every size the front is the least cost of a curve there, or of a curve's or single point's smaller size if that is
/// lower. So no curve and no point lies below it, and it never rises.
pub(crate) fn front(curves: &[Vec<(f64, f64)>], single: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut pieces: Vec<Piece> = Vec::new();
    for pair in curves.iter().flat_map(|curve| curve.windows(2)) {
        let (a, b) = (pair[0], pair[1]);
        if a.0 != b.0 {
            pieces.push(if a.0 < b.0 { Piece { from: a, to: b } } else { Piece { from: b, to: a } });
        }
    }
    let points: Vec<(f64, f64)> = curves.iter().flatten().chain(single).copied().collect();
    let mut sizes: Vec<f64> = points.iter().map(|p| p.0).collect();
    for (n, piece) in pieces.iter().enumerate() {
        sizes.extend(pieces[n + 1..].iter().filter_map(|other| piece.meets(other)));
    }
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();

    let mut line: Vec<(f64, f64)> = Vec::new();
    let mut best = f64::INFINITY;
    // The piece that the line's last stretch lies on.
    let mut along = None;
    for (n, &left) in sizes.iter().enumerate() {
        let here = points.iter().filter(|p| p.0 == left).map(|p| p.1).fold(f64::INFINITY, f64::min);
        if here < best {
            if best.is_finite() {
                line.push((left, best));
            }
            line.push((left, here));
            (best, along) = (here, None);
        }
        let Some(&right) = sizes.get(n + 1) else { break };
        let middle = left + (right - left) / 2.0;
        let covering = pieces.iter().enumerate().filter(|(_, p)| p.covers(left, right));
        let Some((n, piece)) = covering.min_by(|a, b| a.1.at(middle).total_cmp(&b.1.at(middle))) else { continue };
        let (from, to) = (piece.at(left), piece.at(right));
        if to < best {
            if from > best {
                line.push((left + (right - left) * (from - best) / (from - to), best));
            } else if along == Some(n) {
                line.pop();
            }
            line.push((right, to));
            (best, along) = (to, Some(n));
        } else {
            along = None;
        }
    }
    line.dedup();
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The front's cost at a size, by its vertices.
    fn at(line: &[(f64, f64)], size: f64) -> f64 {
        let after = line.partition_point(|p| p.0 <= size);
        match (line[..after].last(), line.get(after)) {
            (Some(a), Some(b)) => Piece { from: *a, to: *b }.at(size),
            (Some(a), None) => a.1,
            (None, _) => f64::INFINITY,
        }
    }

    #[test]
    fn one_curve_is_its_own_front() {
        let curve = vec![(1.0, 3.0), (2.0, 1.0), (4.0, 0.5)];
        assert_eq!(front(std::slice::from_ref(&curve), &[]), curve);
    }

    #[test]
    fn single_points_make_a_staircase() {
        let points = [(2.0, 0.5), (4.0, 0.1), (3.0, 0.6), (5.0, 0.02), (6.0, 0.05)];
        let steps = [(2.0, 0.5), (4.0, 0.5), (4.0, 0.1), (5.0, 0.1), (5.0, 0.02)];
        assert_eq!(front(&[], &points), steps);
    }

    #[test]
    fn a_point_above_another_curve_is_not_on_the_front() {
        let better = vec![(1.0, 4.0), (5.0, 0.0)];
        let worse = vec![(3.0, 3.0), (4.0, 2.0)];
        assert_eq!(front(&[better.clone(), worse], &[(2.0, 3.5)]), better);
    }

    #[test]
    fn the_front_changes_curves_where_they_cross_and_stays_level_where_one_ends() {
        let steep = vec![(0.0, 4.0), (4.0, -4.0)];
        let flat = vec![(0.0, 3.0), (2.0, 1.0), (4.0, 0.0)];
        assert_eq!(front(&[steep, flat], &[]), [(0.0, 3.0), (1.0, 2.0), (4.0, -4.0)]);
        let ends = vec![(0.0, 2.0), (1.0, 1.0)];
        let later = vec![(0.0, 3.0), (3.0, 0.0)];
        assert_eq!(front(&[ends, later], &[]), [(0.0, 2.0), (1.0, 1.0), (2.0, 1.0), (3.0, 0.0)]);
    }

    #[test]
    fn nothing_lies_below_the_front_and_it_never_rises() {
        // Points of a fixed generator; curves in any order of sizes, some of them rising.
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        for _ in 0..50 {
            let curves: Vec<Vec<(f64, f64)>> =
                (0..4).map(|_| (0..6).map(|_| (draw() * 8.0, draw() * 5.0)).collect()).collect();
            let single: Vec<(f64, f64)> = (0..6).map(|_| (draw() * 8.0, draw() * 5.0)).collect();
            let line = front(&curves, &single);
            assert!(line.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 >= w[1].1), "{line:?}");
            for p in curves.iter().flatten().chain(&single) {
                assert!(at(&line, p.0) <= p.1 + 1e-9, "{p:?} is below {line:?}");
            }
            for pair in curves.iter().flat_map(|c| c.windows(2)) {
                for share in [0.1, 0.37, 0.5, 0.81] {
                    let along = |a: f64, b: f64| a + share * (b - a);
                    let p = (along(pair[0].0, pair[1].0), along(pair[0].1, pair[1].1));
                    assert!(at(&line, p.0) <= p.1 + 1e-9, "{p:?} is below {line:?}");
                }
            }
            // Every vertex is a point, or lies on a curve, or is level with the vertex before.
            for (n, v) in line.iter().enumerate() {
                let on_curve = curves.iter().flat_map(|c| c.windows(2)).any(|w| {
                    let (a, b) = if w[0].0 < w[1].0 { (w[0], w[1]) } else { (w[1], w[0]) };
                    a.0 <= v.0 && v.0 <= b.0 && (Piece { from: a, to: b }.at(v.0) - v.1).abs() < 1e-9
                });
                assert!(on_curve || single.contains(v) || n > 0 && line[n - 1].1 == v.1, "{v:?}");
            }
        }
    }
}
