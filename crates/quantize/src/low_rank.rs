//! Changes of low rank between two checkpoints, such as merged LoRAs: the difference of two weights is a product of thin
//! matrices, but for rounding.

use faer::{Mat, Side};
use waterfill_checkpoint::delta::Factors;
use waterfill_codec::Dtype;

/// Largest rank that is searched, and directions beyond it that make the first ones exact.
const RANK: usize = 64;
const BEYOND: usize = 8;
/// Passes over the matrix (Halko, Martinsson & Tropp 2011, algorithm 4.4).
const PASSES: usize = 2;
/// Energy that rounding may leave, over its expected value.
const ROUNDING: f64 = 1.5;
/// By how much a component's energy exceeds the most that one of noise has.
const OUTSTANDING: f64 = 1.3;
/// Share of the change that factors may leave besides rounding.
const LEFT: f64 = 0.02;

/// Factors of the change from `base` to `fine_tune` (both row-major `[rows, cols]`, exact values of `dtype`), coarser and finer
/// ones; empty where the change is not of low rank. Singular vectors come from a randomised range finder (Halko, Martinsson &
/// Tropp 2011), the rank from the edge of the Marchenko-Pastur distribution (1967).
pub fn find_factors([rows, cols]: [usize; 2], dtype: Dtype, base: &[f32], fine_tune: &[f32]) -> Vec<Factors> {
    let most = RANK.min(rows.min(cols) / 8);
    if most == 0 {
        return vec![];
    }
    let (mut energy, mut rounding) = (0.0f64, 0.0f64);
    let change = Mat::<f32>::from_fn(rows, cols, |i, j| {
        let (before, after) = (base[i * cols + j], fine_tune[i * cols + j]);
        if !(before.is_finite() && after.is_finite()) {
            return 0.0;
        }
        let change = after - before;
        energy += f64::from(change).powi(2);
        // The next value of the type is as far as the last bit says.
        let next = dtype.value_of(dtype.pattern_of(after) ^ 1);
        rounding += f64::from(next - after).powi(2) / 12.0;
        change
    });
    if energy <= rounding {
        return vec![];
    }
    let components = components(&change, most);
    // Those that stand out of what noise of the energy that is left would have (Marchenko & Pastur 1967).
    let edge = ((rows as f64).sqrt() + (cols as f64).sqrt()).powi(2) / (rows * cols) as f64;
    let (mut left, mut rank) = (energy, 0);
    for (_, _, size) in &components {
        let after = (left - size * size).max(0.0);
        if size * size <= OUTSTANDING * after * edge {
            break;
        }
        left = after;
        rank += 1;
    }
    if rank == 0 || rank > most || left > ROUNDING * rounding + LEFT * (energy - rounding) {
        return vec![];
    }
    let halves = |(left, right, size): &(Vec<f64>, Vec<f64>, f64)| {
        let share = |values: &[f64]| values.iter().map(|v| v * size.sqrt()).collect::<Vec<f64>>();
        (share(left), share(right))
    };
    let components: Vec<_> = components[..rank].iter().map(halves).collect();
    [1, 2].into_iter().filter_map(|width| Factors::new(&components, width)).collect()
}

/// A left and a right singular vector with their value.
type Component = (Vec<f64>, Vec<f64>, f64);

/// The largest singular values of a matrix with their vectors, some more than `most`.
fn components(change: &Mat<f32>, most: usize) -> Vec<Component> {
    let (rows, cols) = (change.nrows(), change.ncols());
    let width = (most + BEYOND).min(rows.min(cols));
    // Any directions do; these are the same on every machine.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut basis = Mat::<f32>::from_fn(cols, width, |_, _| random());
    for pass in 0..=PASSES {
        let image = (change * &basis).qr().compute_thin_Q();
        if pass == PASSES {
            basis = image;
            break;
        }
        basis = (change.transpose() * &image).qr().compute_thin_Q();
    }
    // change is about basis * small; its left singular vectors are those of small, turned.
    let small = basis.transpose() * change;
    let gram = Mat::<f64>::from_fn(width, width, |i, j| {
        (0..cols).map(|c| f64::from(small[(i, c)]) * f64::from(small[(j, c)])).sum()
    });
    let Ok(eigen) = gram.self_adjoint_eigen(Side::Lower) else { return vec![] };
    let (vectors, values) = (eigen.U(), eigen.S());
    let component = |k: usize| {
        let size = values[k].max(0.0).sqrt();
        let turned = |at: &dyn Fn(usize) -> f32| (0..width).map(|i| f64::from(at(i)) * vectors[(i, k)]).sum::<f64>();
        let left = (0..rows).map(|row| turned(&|i| basis[(row, i)])).collect();
        let scale = if size > 0.0 { size } else { 1.0 };
        let right = (0..cols).map(|col| turned(&|i| small[(i, col)]) / scale).collect();
        (left, right, size)
    };
    (0..width).rev().map(component).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(state: &mut u64) -> f32 {
        let mut random = || {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 40) as f32 / (1 << 24) as f32
        };
        (0..12).map(|_| random()).sum::<f32>() - 6.0
    }

    #[test]
    fn a_merged_product_is_found_and_other_changes_are_not() {
        let (rows, cols, rank) = (320, 256, 6);
        let state = &mut 3u64;
        let base: Vec<f32> = (0..rows * cols).map(|_| gaussian(state) * 0.02).collect();
        let left: Vec<f32> = (0..rows * rank).map(|_| gaussian(state) * 0.01).collect();
        let right: Vec<f32> = (0..rank * cols).map(|_| gaussian(state) * 0.05).collect();
        let product = |n: usize| (0..rank).map(|k| left[n / cols * rank + k] * right[k * cols + n % cols]).sum::<f32>();
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let bytes = |value: &dyn Fn(usize) -> f32| -> Vec<u8> {
                (0..rows * cols)
                    .flat_map(|n| dtype.pattern_of(value(n)).to_le_bytes()[..dtype.bytes()].to_vec())
                    .collect()
            };
            let rounded = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
                (0..rows * cols).map(|n| dtype.value_of(dtype.pattern_of(value(n)))).collect()
            };
            // The base as it is stored is what a fine-tune starts from.
            let stored = rounded(&|n| base[n]);
            let merged = rounded(&|n| stored[n] + product(n));
            let (before, after) = (bytes(&|n| stored[n]), bytes(&|n| merged[n]));
            let found = find_factors([rows, cols], dtype, &stored, &merged);
            assert_eq!(found.len(), 2, "{dtype:?}");
            assert_eq!(found[1].bytes().len(), (rows + cols) * rank * 2, "the rank");
            let near = found[1].add_to(dtype, &before);
            let width = dtype.bytes();
            let differ = near.chunks(width).zip(after.chunks(width)).filter(|(a, b)| a != b).count();
            if dtype != Dtype::F32 {
                // By what rounding leaves in doubt of factors.
                assert!(differ < rows * cols / 5, "{dtype:?}: {differ} of {} differ", rows * cols);
            }
            let noise: Vec<f32> = (0..rows * cols).map(|_| gaussian(state) * 1e-3).collect();
            let other = rounded(&|n| stored[n] + noise[n]);
            assert!(find_factors([rows, cols], dtype, &stored, &other).is_empty(), "{dtype:?}");
            assert!(find_factors([rows, cols], dtype, &stored, &stored).is_empty());
        }
    }
}
