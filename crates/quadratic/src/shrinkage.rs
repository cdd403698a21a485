//! How far correlations are drawn towards zero: chosen on parts of the text that they were not taken from.
//!
//! A Hessian of `p` columns from `n` tokens has correlations that are chance, and feedback that believes them moves errors
//! to where they do harm. With the damping `d`, `H_d = H + d diag(H)`, feedback leaves errors `N (I+U)^-1` of rounding noise
//! `N`, whose variance in column `j` is in proportion to `1 / D_j` where steps fill water. By the Hessian `H'` of other
//! tokens they lose, at the same rate,
//!
//! ```text
//! Σ_j (1/D_j) [(I+U)^-1 H' (I+U)^-T]_jj · (Π_j D_j)^(1/p) = tr(H' H_d^-1) · det(H_d)^(1/p)
//! ```
//!
//! since `H_d = (I+U) D (I+U)^T`: a score that needs no quantizer and no order of columns, and that scaled columns do not
//! change. Its logarithm is Stein's loss (James & Stein 1961) but for the scale of `H_d`.

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, Par, dyn_stack::MemBuffer, dyn_stack::MemStack};
use ndarray::Array2;
use rayon::prelude::*;

/// Dampings tried, each the next one's tenth; between them the best is interpolated.
const TRIED: [f64; 6] = [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2];
/// Rounds of fitting on some parts and scoring on the others, at most.
const ROUNDS: usize = 4;

/// Second moments of one part of the text, of some of a matrix' columns.
#[derive(Debug, Clone)]
pub struct Part {
    /// `Σ_t w_t x_t x_tᵀ`, symmetric.
    pub sum: Array2<f32>,
    /// `Σ_t w_t`.
    pub weight: f64,
}

/// The damping, in units of each column's own diagonal, of a Hessian of `width` columns from all parts together, chosen
/// from moments of a sample of its columns. `None` of fewer than two parts that have tokens.
///
/// A sample of `p` of the columns is fitted to as many parts as keep columns per token; for what cannot be kept, the damping
/// is taken as proportional to columns per token.
pub fn choose_damping(parts: &[Part], width: usize) -> Option<f64> {
    let parts: Vec<&Part> = parts.iter().filter(|p| p.weight > 0.0).collect();
    let (count, sampled) = (parts.len(), parts.first()?.sum.nrows());
    if count < 2 || sampled < 2 {
        return None;
    }
    let share = sampled as f64 / width.max(sampled) as f64;
    let fitted = ((share * count as f64).round() as usize).clamp(1, count - 1);
    let rounds = count.min(ROUNDS);
    let scores: Vec<[f64; TRIED.len()]> = (0..rounds)
        .into_par_iter()
        .filter_map(|round| {
            let first = round * count / rounds;
            let is_fitted = |n: usize| (n + count - first) % count < fitted;
            let sum = |of: bool| {
                let own = parts.iter().enumerate().filter(|(n, _)| is_fitted(*n) == of).map(|(_, p)| p);
                own.fold((Array2::zeros((sampled, sampled)), 0.0), |(sum, weight), p| (sum + &p.sum, weight + p.weight))
            };
            scores(sum(true), sum(false))
        })
        .collect();
    let mean = |n: usize| scores.iter().map(|s| s[n]).sum::<f64>() / scores.len() as f64;
    let means: Vec<f64> = (0..TRIED.len()).map(mean).collect();
    let chosen = lowest(&means)?;
    // As many columns per token as the whole has, by proportion.
    Some(chosen * (fitted as f64 / count as f64) / share)
}

/// Damping of the lowest score, by a parabola through it and its neighbours over the logarithm.
fn lowest(scores: &[f64]) -> Option<f64> {
    let finite = scores.iter().enumerate().filter(|(_, s)| s.is_finite());
    let (n, _) = finite.min_by(|a, b| a.1.total_cmp(b.1))?;
    let at = |n: usize| scores.get(n).copied().filter(|s| s.is_finite());
    let shift = match (n.checked_sub(1).and_then(at), at(n + 1)) {
        (Some(left), Some(right)) => {
            let bend = left - 2.0 * scores[n] + right;
            if bend > 0.0 { (left - right) / (2.0 * bend) } else { 0.0 }
        }
        _ => 0.0,
    };
    Some(TRIED[n] * 10f64.powf(shift.clamp(-0.5, 0.5)))
}

/// `ln(tr(H' H_d^-1) / p) + ln(det H_d) / p` for every damping tried.
fn scores(
    (fit, fit_weight): (Array2<f32>, f64),
    (other, other_weight): (Array2<f32>, f64),
) -> Option<[f64; TRIED.len()]> {
    // Columns that one of both has not seen say nothing.
    let seen: Vec<usize> = (0..fit.nrows()).filter(|&j| fit[[j, j]] > 0.0 && other[[j, j]] > 0.0).collect();
    let p = seen.len();
    if p < 2 {
        return None;
    }
    // In units of the fitted diagonal.
    let unit: Vec<f64> = seen.iter().map(|&j| (fit_weight / f64::from(fit[[j, j]])).sqrt()).collect();
    let entry = |h: &Array2<f32>, weight: f64, i: usize, j: usize| {
        (f64::from(h[[seen[i], seen[j]]]) / weight * unit[i] * unit[j]) as f32
    };
    // H' = B Bᵀ, so that the trace is the squared norm of L^-1 B.
    let ridge = 1e-4 * (0..p).map(|i| f64::from(entry(&other, other_weight, i, i))).sum::<f64>() / p as f64;
    let factor = |matrix: Mat<f32>| -> Option<Mat<f32>> {
        let mut matrix = matrix;
        let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f32>(p, Par::Seq, Default::default()));
        let stack = MemStack::new(&mut buffer);
        let none = LltRegularization::default();
        cholesky_in_place(matrix.as_mut(), none, Par::Seq, stack, Default::default()).ok()?;
        for j in 0..p {
            (0..j).for_each(|i| matrix[(i, j)] = 0.0);
        }
        Some(matrix)
    };
    let held =
        factor(Mat::from_fn(p, p, |i, j| entry(&other, other_weight, i, j) + if i == j { ridge as f32 } else { 0.0 }))?;
    Some(TRIED.map(|damping| {
        let damped =
            Mat::from_fn(p, p, |i, j| entry(&fit, fit_weight, i, j) + if i == j { damping as f32 } else { 0.0 });
        let Some(lower) = factor(damped) else { return f64::INFINITY };
        let mut solved = held.clone();
        solve_lower_triangular_in_place(lower.as_ref(), solved.as_mut(), Par::Seq);
        let trace: f64 = (0..p).map(|j| solved.col(j).iter().map(|v| f64::from(v * v)).sum::<f64>()).sum();
        let log_det: f64 = (0..p).map(|j| 2.0 * f64::from(lower[(j, j)]).ln()).sum();
        (trace / p as f64).ln() + log_det / p as f64
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Damping, LdlFactor, SymmetricBlocks};

    const P: usize = 96;

    /// Numbers that look independent and Gaussian, from a counter.
    fn noise(n: usize) -> f64 {
        let mut state = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678);
        let mut next = || {
            state ^= state >> 30;
            state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            state ^= state >> 27;
            state = state.wrapping_mul(0x94d0_49bb_1331_11eb);
            state ^= state >> 31;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(|_| next()).sum::<f64>() - 6.0
    }

    /// Inputs `x = A z` of a few shared and many own causes, columns scaled.
    fn input(t: usize, scale: impl Fn(usize) -> f64) -> Vec<f64> {
        let shared: Vec<f64> = (0..6).map(|k| noise(t * 1009 + k)).collect();
        let value = |j: usize| {
            let common: f64 = (0..6).map(|k| shared[k] * noise(7_000_000 + k * P + j)).sum();
            (common + noise(t * 1009 + 10 + j)) * scale(j)
        };
        (0..P).map(value).collect()
    }

    fn part(tokens: std::ops::Range<usize>, scale: impl Fn(usize) -> f64 + Copy) -> Part {
        let mut sum = Array2::<f64>::zeros((P, P));
        let weight = tokens.len() as f64;
        for x in tokens.map(|t| input(t, scale)) {
            for i in 0..P {
                (0..P).for_each(|j| sum[[i, j]] += x[i] * x[j]);
            }
        }
        Part { sum: sum.mapv(|v| v as f32), weight }
    }

    fn parts(tokens: usize, scale: impl Fn(usize) -> f64 + Copy) -> Vec<Part> {
        (0..8).map(|n| part(n * tokens / 8..(n + 1) * tokens / 8, scale)).collect()
    }

    fn total(parts: &[Part]) -> Array2<f32> {
        let weight: f64 = parts.iter().map(|p| p.weight).sum();
        parts.iter().fold(Array2::zeros((P, P)), |sum, p| sum + &p.sum) / weight as f32
    }

    /// What feedback by `fit` under a damping loses by `truth`, at a fixed rate, by the factor itself.
    fn loss_of_feedback(fit: &Array2<f32>, truth: &Array2<f32>, damping: f64) -> f64 {
        let factor = LdlFactor::new(&SymmetricBlocks::from_dense(fit).shrunk(damping), &Damping::uniform(0.0));
        let (_, upper) = factor.block(0).unwrap();
        // Rows of (I+U)^-1 one by one: noise in column j alone moves the columns after it.
        let (mut sum, mut log_steps) = (0.0, 0.0);
        for j in 0..P {
            let mut error = [0.0f64; P];
            error[j] = 1.0;
            for k in j + 1..P {
                error[k] = -(j..k).map(|i| error[i] * f64::from(upper[i * P + k])).sum::<f64>();
            }
            let quadratic = |i: usize| (0..P).map(|k| error[i] * error[k] * f64::from(truth[[i, k]])).sum::<f64>();
            let d = f64::from(factor.diagonal[j]);
            sum += (j..P).map(quadratic).sum::<f64>() / d;
            log_steps += d.ln();
        }
        (sum / P as f64).ln() + log_steps / P as f64
    }

    /// Differences of the score are those of what feedback loses on the other tokens, computed from its factor.
    #[test]
    fn the_score_is_the_loss_of_feedback() {
        let (fit, other) = (part(0..200, |_| 1.0), part(200..500, |j| [1.0, 3.0][j % 2]));
        let mean = |p: &Part| p.sum.clone() / p.weight as f32;
        let scores = scores((fit.sum.clone(), fit.weight), (other.sum.clone(), other.weight)).unwrap();
        let losses = TRIED.map(|damping| loss_of_feedback(&mean(&fit), &mean(&other), damping));
        for n in 1..TRIED.len() {
            let (score, loss) = (scores[n] - scores[0], losses[n] - losses[0]);
            assert!((score - loss).abs() < 0.01, "damping {}: {score}, by the factor {loss}", TRIED[n]);
        }
    }

    /// Fewer tokens want more damping, and what is chosen loses little over the best on the true matrix.
    #[test]
    fn the_chosen_damping_suits_the_truth() {
        let truth = total(&parts(40_000, |_| 1.0));
        let mut last = f64::INFINITY;
        for tokens in [64, 192, 1024, 8192] {
            let parts = parts(tokens, |_| 1.0);
            let (fit, chosen) = (total(&parts), choose_damping(&parts, P).unwrap());
            let best = (0..26).map(|n| loss_of_feedback(&fit, &truth, 10f64.powf(f64::from(n) / 5.0 - 3.5)));
            let over = loss_of_feedback(&fit, &truth, chosen) - best.fold(f64::INFINITY, f64::min);
            assert!(over < 0.03, "{tokens} tokens: {over} nats over the best, damping {chosen}");
            assert!(chosen < last, "{tokens} tokens: {chosen} after {last}");
            last = chosen;
        }
    }

    #[test]
    fn scaled_columns_change_nothing() {
        let plain = choose_damping(&parts(256, |_| 1.0), P);
        let scaled = choose_damping(&parts(256, |j| if j % 40 == 3 { 64.0 } else { 1.0 }), P);
        assert!(plain.is_some() && plain == scaled, "{plain:?} {scaled:?}");
    }

    #[test]
    fn one_part_decides_nothing() {
        assert_eq!(choose_damping(&parts(64, |_| 1.0)[..1], P), None);
        assert_eq!(choose_damping(&[], P), None);
        let dead = Part { sum: Array2::zeros((P, P)), weight: 1.0 };
        assert_eq!(choose_damping(&[dead.clone(), dead], P), None);
    }
}
