//! Parameters of tools that all tiles of a tensor share, fitted to its weights before the search and to its samples after.

use waterfill_codec::recon::reconstruct::{TileScales, filter_plane};
use waterfill_codec::recon::transform::TilePass;
use waterfill_codec::syntax::slice::{SlicePlan, neighbour_bin};
use waterfill_codec::syntax::tile_plan::{BANDS, band};
use waterfill_codec::{Kernel, Result, TILE, TensorPlan, TileMode, TilePlan, Transform};
use waterfill_quadratic::LossWeights;

use super::input::RdoInput;
use super::tools::Tool;

/// Tiles that parameters are estimated from, at most.
const SAMPLE: usize = 512;

/// Regroups the plan's tiles to another side where a tool asks for it; loss weights then follow.
pub(super) fn resize_tiles(plan: &mut TensorPlan, input: &RdoInput) -> Option<LossWeights> {
    let sides = [(Tool::Tile8, 8), (Tool::Tile32, 32), (Tool::Tile64, 64)];
    let (_, side) = sides.into_iter().find(|(t, _)| input.tools.contains(t))?;
    let mut resized = TensorPlan { tile: side, tiles: Vec::new(), ..plan.clone() };
    let mut tiles = Vec::new();
    for n in 0..resized.tiles_down() * resized.tiles_across() {
        let (rows, cols) = resized.tile_range(n);
        let mut sum = (0i32, 0i32, 0.0f32, 0);
        let mut widest = TilePlan::default();
        for row in rows.step_by(TILE.min(side)) {
            for col in cols.clone().step_by(TILE.min(side)) {
                let old = plan.tile_index(row, col);
                let tile = plan.tiles[old];
                sum = (
                    sum.0 + i32::from(tile.step),
                    sum.1 + i32::from(tile.sigma),
                    sum.2 + input.loss_weights.tiles[old],
                    sum.3 + 1,
                );
                widest.format = widest_of(widest.format, tile.format, sum.3 == 1);
            }
        }
        let mean = |total: i32| total.div_euclid(sum.3) as i16;
        resized.tiles.push(TilePlan {
            format: widest.format,
            step: mean(sum.0),
            sigma: mean(sum.1),
            ..TilePlan::default()
        });
        tiles.push(sum.2 / sum.3 as f32);
    }
    *plan = resized;
    Some(LossWeights { tiles, ..input.loss_weights.clone() })
}

fn widest_of(a: waterfill_codec::Format, b: waterfill_codec::Format, first: bool) -> waterfill_codec::Format {
    let bits = |f: waterfill_codec::Format| f.resident_bits(waterfill_codec::Dtype::F32);
    if first || bits(b) > bits(a) { b } else { a }
}

/// Tiles of integer formats, evenly over the tensor, in units of their step.
fn sampled(plan: &TensorPlan, input: &RdoInput) -> Result<Vec<(usize, [f32; 256])>> {
    let full = |n: &usize| {
        let (rows, cols) = plan.tile_range(*n);
        rows.len() == TILE && cols.len() == TILE && plan.tiles[*n].format.level_range().is_some()
    };
    let candidates: Vec<usize> = (0..plan.tiles.len()).filter(full).collect();
    let chosen = candidates.iter().copied().step_by(candidates.len().div_ceil(SAMPLE).max(1));
    chosen.map(|n| Ok((n, values(plan, input, n)?))).collect()
}

fn values(plan: &TensorPlan, input: &RdoInput, n: usize) -> Result<[f32; 256]> {
    let (rows, cols) = plan.tile_range(n);
    let slice = SlicePlan::of(plan, rows.clone());
    let scales = TileScales::new(&slice, n % plan.tiles_across())?;
    Ok(std::array::from_fn(|k| {
        let weight = input.weights[(rows.start + k / TILE) * plan.cols + cols.start + k % TILE];
        weight / scales.at(k / TILE, k % TILE)
    }))
}

/// Everything that is settled before the search.
pub(super) fn fit(plan: &mut TensorPlan, input: &RdoInput) -> Result<()> {
    let uses = |tool| input.tools.contains(&tool);
    if uses(Tool::Dictionary) {
        fit_dictionary(plan, input);
    }
    if plan.tile != TILE {
        return Ok(());
    }
    let tiles = sampled(plan, input)?;
    if tiles.is_empty() {
        return Ok(());
    }
    if uses(Tool::Learned) {
        plan.parameters.learned = Some(Box::new(learn_transform(&tiles)));
    }
    if [Tool::Dct, Tool::Dst, Tool::Hadamard, Tool::Learned].into_iter().any(uses) {
        fit_bands(plan, &tiles);
    }
    if uses(Tool::Linear) {
        fit_linear(plan, input, &tiles)?;
    }
    Ok(())
}

/// Mean logarithms of the coefficients' energy by band, over the tile's.
fn fit_bands(plan: &mut TensorPlan, tiles: &[(usize, [f32; 256])]) {
    let kernels = [(Kernel::Dct, Kernel::Dct), (Kernel::Dct, Kernel::Identity), (Kernel::Identity, Kernel::Dct)];
    let mut sums = [(0.0f32, 0.0f32); BANDS];
    for (down, along) in kernels {
        let transform = Transform { down, along, side: 16 };
        let pass = TilePass::new(transform, None);
        for (_, values) in tiles {
            let mut block = *values;
            pass.forward(&mut block);
            let mean = (block.iter().map(|c| c * c).sum::<f32>() / 256.0).max(1e-12);
            for (k, c) in block.iter().enumerate() {
                let sum = &mut sums[band(transform, k / TILE, k % TILE)];
                *sum = (sum.0 + c * c / mean, sum.1 + 1.0);
            }
        }
    }
    for (offset, (sum, count)) in plan.parameters.bands.iter_mut().zip(sums) {
        let ratio = if count > 0.0 { sum / count } else { 1.0 };
        *offset = (2.0 * ratio.max(1e-6).log2()).round().clamp(-40.0, 40.0) as i8;
    }
}

/// Least squares of a tile's values on the column to its left and the row above.
fn fit_linear(plan: &mut TensorPlan, input: &RdoInput, tiles: &[(usize, [f32; 256])]) -> Result<()> {
    let across = plan.tiles_across();
    let (mut ll, mut lt, mut tt, mut lx, mut tx) = (1e-9f64, 0.0, 1e-9f64, 0.0, 0.0);
    for (n, values) in tiles.iter().filter(|(n, _)| n % across > 0 && *n >= across) {
        let (left, top) = (self::values(plan, input, n - 1)?, self::values(plan, input, n - across)?);
        for (k, &x) in values.iter().enumerate() {
            let (l, t) = (f64::from(left[k / TILE * TILE + TILE - 1]), f64::from(top[15 * TILE + k % TILE]));
            let x = f64::from(x);
            (ll, lt, tt, lx, tx) = (ll + l * l, lt + l * t, tt + t * t, lx + l * x, tx + t * x);
        }
    }
    let determinant = (ll * tt - lt * lt).max(1e-12);
    let (a, b) = ((lx * tt - tx * lt) / determinant, (tx * ll - lx * lt) / determinant);
    let quantize = |v: f64| (v * 64.0).round().clamp(-127.0, 127.0) as i8;
    plan.parameters.linear = [quantize(a), quantize(b), 0];
    Ok(())
}

/// A row that many others are close to, if there is one: embeddings of tokens that never occurred.
fn fit_dictionary(plan: &mut TensorPlan, input: &RdoInput) {
    let (rows, cols) = (plan.rows, plan.cols);
    if rows < 128 {
        return;
    }
    let row = |i: usize| &input.weights[i * cols..(i + 1) * cols];
    let sample: Vec<usize> = (0..rows).step_by(rows.div_ceil(64)).collect();
    let energy = |r: &[f32]| r.iter().map(|v| v * v).sum::<f32>();
    let near = |a: usize, b: usize| {
        let distance: f32 = row(a).iter().zip(row(b)).map(|(x, y)| (x - y).powi(2)).sum();
        distance < 0.3 * energy(row(a)).min(energy(row(b)))
    };
    let counted = sample.iter().map(|&a| (sample.iter().filter(|&&b| near(a, b)).count(), a));
    let Some((count, centre)) = counted.max() else { return };
    if count < 4 {
        return;
    }
    // The mean of those near it, in units of the steps that their tiles have.
    let close: Vec<usize> = sample.into_iter().filter(|&b| near(centre, b)).collect();
    let step = plan.tile_at(centre, 0).step;
    let tile = TilePlan { step, ..TilePlan::default() };
    let entry = |col: usize| {
        let mean = close.iter().map(|&i| input.weights[i * cols + col]).sum::<f32>() / close.len() as f32;
        // Rows share the column's scale; their own is left to the tile's step.
        let scale = waterfill_codec::scale::scale(plan.scale_index(&tile, centre, col));
        (mean / scale).round().clamp(-127.0, 127.0) as i8
    };
    plan.parameters.dictionary = vec![(0..cols).map(entry).collect()];
    plan.parameters.dictionary_step = step;
}

/// Eigenvectors of the covariance of tile rows (Jacobi's method), largest eigenvalue first, scaled by
/// 2^12.
fn learn_transform(tiles: &[(usize, [f32; 256])]) -> [i16; 256] {
    let mut a = [[0.0f64; TILE]; TILE];
    for (_, values) in tiles {
        for j in 0..TILE {
            for (p, row) in a.iter_mut().enumerate() {
                for (q, sum) in row.iter_mut().enumerate() {
                    *sum += f64::from(values[p * TILE + j]) * f64::from(values[q * TILE + j]);
                }
            }
        }
    }
    let mut vectors = [[0.0f64; TILE]; TILE];
    (0..TILE).for_each(|i| vectors[i][i] = 1.0);
    for _ in 0..12 {
        for p in 0..TILE {
            for q in p + 1..TILE {
                if a[p][q].abs() < 1e-12 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let (c, s) = (1.0 / (t * t + 1.0).sqrt(), t / (t * t + 1.0).sqrt());
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                for k in 0..TILE {
                    (a[p][k], a[q][k]) = (c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]);
                    (vectors[p][k], vectors[q][k]) =
                        (c * vectors[p][k] - s * vectors[q][k], s * vectors[p][k] + c * vectors[q][k]);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..TILE).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    std::array::from_fn(|k| (vectors[order[k / TILE]][k % TILE] * 4096.0).round() as i16)
}

/// Mean distances of values from their levels, for tiles on a finer plane.
pub(super) fn fit_centroids(plan: &mut TensorPlan, input: &RdoInput, samples: &[i16]) {
    let mut sums = [(0.0f64, 0.0f64); 3];
    for (n, tile) in plan.tiles.iter().enumerate() {
        let coded = tile.mode == TileMode::Coded && tile.transform.is_identity() && tile.format.level_range().is_some();
        if !coded || tile.predictor != Default::default() {
            continue;
        }
        let quantizer = TilePlan { step: tile.step + i16::from(tile.coarse), ..*tile };
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let level = samples[row * plan.cols + col];
                if level != 0 {
                    let scale = waterfill_codec::scale::scale(plan.scale_index(&quantizer, row, col));
                    let value = f64::from(input.weights[row * plan.cols + col] / scale);
                    let sum = &mut sums[level.unsigned_abs().min(3) as usize - 1];
                    *sum = (sum.0 + value.abs() - f64::from(level.abs()), sum.1 + 1.0);
                }
            }
        }
    }
    plan.parameters.centroids =
        sums.map(|(sum, count)| (16.0 * sum / f64::max(count, 1.0)).round().clamp(-8.0, 8.0) as i8);
}

/// Spreads of levels by bin of their neighbours to the left, relative to what their class says.
pub(super) fn fit_neighbours(plan: &mut TensorPlan, samples: &[i16]) {
    let mut sums = [(0.0f32, 0.0f32); 8];
    for (n, tile) in plan.tiles.iter().enumerate() {
        if tile.mode != TileMode::Coded || !tile.transform.is_identity() || tile.format.level_range().is_none() {
            continue;
        }
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone().skip(2) {
                let level = |c: usize| samples[row * plan.cols + c];
                let sigma = plan.sigma(tile, row, col)
                    - plan.row_col_scale(row, col)
                    - i32::from(tile.step)
                    - i32::from(tile.coarse);
                let bin = neighbour_bin(level(col - 1).unsigned_abs(), level(col - 2).unsigned_abs(), sigma);
                let relative = f32::from(level(col)).powi(2) * (-sigma as f32 / 2.0).exp2();
                sums[bin] = (sums[bin].0 + relative, sums[bin].1 + 1.0);
            }
        }
    }
    let total = sums.iter().fold((0.0, 1e-6), |a, s| (a.0 + s.0, a.1 + s.1));
    let mean = (total.0 / total.1).max(1e-6);
    plan.parameters.neighbours = Some(sums.map(|(sum, count)| {
        let ratio = if count > 64.0 { sum / count / mean } else { 1.0 };
        (2.0 * ratio.max(1e-3).log2()).round().clamp(-20.0, 20.0) as i8
    }));
}

/// Weights of the filter after decoding: of a few, the pair that lowers the error most.
pub(super) fn fit_filter(plan: &mut TensorPlan, input: &RdoInput, samples: &[i16]) {
    let Ok(tiles) = sampled(plan, input) else { return };
    let error = |weights: [i8; 2]| -> f32 {
        let plain = tiles.iter().filter(|(n, _)| {
            plan.tiles[*n]
                == TilePlan {
                    format: plan.tiles[*n].format,
                    step: plan.tiles[*n].step,
                    sigma: plan.tiles[*n].sigma,
                    ..TilePlan::default()
                }
        });
        plain
            .map(|(n, values)| {
                let (rows, cols) = plan.tile_range(*n);
                let mut plane: Vec<i32> = (0..256)
                    .map(|k| samples[(rows.start + k / TILE) * plan.cols + cols.start + k % TILE].into())
                    .collect();
                filter_plane(&mut plane, TILE, weights, plan.tiles[*n].format);
                plane.iter().zip(values).map(|(&p, v)| (p as f32 - v).powi(2)).sum::<f32>()
            })
            .sum()
    };
    let candidates = [[0, 0], [4, 0], [-4, 0], [0, 4], [0, -4], [12, 0], [-12, 0], [0, 12], [0, -12], [8, 8], [-8, -8]];
    let best = candidates.into_iter().map(|w| (error(w), w)).min_by(|a, b| a.0.total_cmp(&b.0));
    plan.parameters.filter = best.map(|b| b.1).filter(|w| *w != [0, 0]);
}
