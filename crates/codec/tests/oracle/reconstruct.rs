//! Sections 8 and 9.

use super::transforms::{DCT4, DCT8, DCT16, DST4, DST8, DST16};
use super::{Tensor, Tile};

const G: [i64; 8] = [32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097];

fn range(format: usize) -> (i64, i64) {
    [(-8, 7), (-127, 127), (0, 0), (0, 0), (0, 0), (-2, 1), (-4, 3), (0, 0)][format]
}

/// Bit patterns of a slice's elements.
pub fn patterns(t: &Tensor, tiles: &[Tile], top: usize, samples: &[Vec<i32>]) -> Vec<Vec<u32>> {
    let rows = samples.len();
    let mut planes = vec![vec![0i64; t.cols]; rows];
    let mut out = vec![vec![0u32; t.cols]; rows];
    for (n, tile) in tiles.iter().enumerate() {
        let (y, x) = (n / t.across() * t.side(), n % t.across() * t.side());
        let (height, width) = (t.side().min(rows - y), t.side().min(t.cols - x));
        let sample = |i: usize, j: usize| i64::from(samples[y + i][x + j]);
        let mut values = vec![vec![0.0f32; width]; height];
        if tile.format == 3 {
            (0..height).for_each(|i| (0..width).for_each(|j| out[y + i][x + j] = sample(i, j) as u32));
            continue;
        }
        if tile.is_integer() {
            let mut plane = predict(t, tiles, tile, &planes, (y, x), (height, width));
            let residual = residual(t, tile, height, width, &sample);
            for i in 0..height {
                for j in 0..width {
                    match tile.mode {
                        1 => {}
                        2 => plane[i][j] = i64::from(*tile.palette.get(sample(i, j) as usize).unwrap_or(&0)),
                        _ => plane[i][j] += residual[i][j],
                    }
                    if tile.bits > 0 {
                        plane[i][j] = sample(i, j);
                        continue;
                    }
                    plane[i][j] = plane[i][j].clamp(range(tile.format).0, range(tile.format).1);
                    planes[y + i][x + j] = plane[i][j];
                }
            }
            if !t.filter.is_empty() {
                plane = filtered(t, tile, &plane);
            }
            (0..height).for_each(|i| (0..width).for_each(|j| values[i][j] = plane[i][j] as f32));
        } else {
            let (exponent, fraction, bias) =
                [(4, 3, 7), (0, 0, 0), (5, 2, 15), (0, 0, 0), (0, 0, 0), (2, 1, 1)][tile.format - 2];
            (0..height).for_each(|i| {
                (0..width).for_each(|j| values[i][j] = code_value(sample(i, j) as u32, exponent, fraction, bias))
            });
        }
        let shift = [0, 0, 32, 0, 88, 0, 0, 0][tile.format];
        let row = |i: usize| t.step_base - shift + 2 * (tile.step + t.row_scale[top + y + i]);
        let col = |j: usize| 2 * t.col_scale[x + j];
        let sums = |pick: fn(i32, i32) -> i32| {
            (0..height).map(row).reduce(pick).unwrap() + (0..width).map(col).reduce(pick).unwrap()
        };
        assert!(sums(i32::max).abs() <= 640 && sums(i32::min).abs() <= 640, "scale");
        for i in 0..height {
            for j in 0..width {
                let k = row(i) + col(j);
                let scale = G[k.rem_euclid(8) as usize] as f64 * f64::from(k.div_euclid(8) - 15).exp2();
                let mut value = (f64::from(values[i][j]) * scale) as f32;
                if let Some(&before) = t.before.get((top + y + i) * t.cols + x + j) {
                    let known = match t.dtype {
                        0 => half::bf16::from_bits(before as u16).to_f32(),
                        1 => half::f16::from_bits(before as u16).to_f32(),
                        _ => f32::from_bits(before),
                    };
                    if !known.is_finite() {
                        out[y + i][x + j] = before;
                        continue;
                    }
                    value += known;
                }
                out[y + i][x + j] = match t.dtype {
                    0 => half::bf16::from_f32(value).to_bits().into(),
                    1 => half::f16::from_f32(value).to_bits().into(),
                    _ => value.to_bits(),
                };
            }
        }
    }
    out
}

/// Section 9.2.
pub fn code_value(code: u32, exponent: u32, fraction: u32, bias: i32) -> f32 {
    let magnitude = code % (1 << (exponent + fraction));
    let infinite = [0x7f, 0x7c, 8][[4, 5, 2].iter().position(|&e| e == exponent).unwrap()];
    let (e, f) = ((magnitude >> fraction) as i32, f64::from(magnitude % (1 << fraction)) / f64::from(1 << fraction));
    let value = match e {
        _ if magnitude >= infinite => 0.0,
        0 => f * f64::from(1 - bias).exp2(),
        _ => (1.0 + f) * f64::from(e - bias).exp2(),
    };
    // A zero of a code that is not finite has no sign.
    let negative = code >> (exponent + fraction) & 1 == 1 && magnitude < infinite;
    if negative { -value as f32 } else { value as f32 }
}

fn rescale(value: i64, units: i32) -> i64 {
    let k = 15 - units.div_euclid(4);
    match k {
        _ if units == 0 || value == 0 => value,
        ..1 => 32767 * value.signum(),
        41.. => 0,
        _ => ((value * G[2 * units.rem_euclid(4) as usize] + (1 << (k - 1))) >> k).clamp(-32767, 32767),
    }
}

/// Section 8.1.
fn predict(
    t: &Tensor,
    tiles: &[Tile],
    tile: &Tile,
    planes: &[Vec<i64>],
    (y, x): (usize, usize),
    (height, width): (usize, usize),
) -> Vec<Vec<i64>> {
    // A value seen from the tile.
    let seen = |row: usize, col: usize| {
        rescale(planes[row][col], tiles[row / t.side() * t.across() + col / t.side()].step - tile.step)
    };
    let left = |i: usize| if x > 0 { seen(y + i, x - 1) } else { 0 };
    let above = |j: usize| if y > 0 { seen(y - 1, x + j) } else { 0 };
    let mean = |values: Vec<i64>| match values.len() as i64 {
        0 => 0,
        n => (2 * values.iter().sum::<i64>() + n).div_euclid(2 * n),
    };
    let value = |i: usize, j: usize| match tile.predictor {
        1 => left(i),
        2 => above(j),
        3 => mean((x - x.min(t.side())..x).map(|c| seen(y + i, c)).collect()),
        4 => mean((y - y.min(t.side())..y).map(|r| seen(r, x + j)).collect()),
        5 => (i64::from(t.linear[0]) * left(i) + i64::from(t.linear[1]) * above(j) + i64::from(t.linear[2]) + 32) >> 6,
        6 => {
            assert!(tile.argument > 0 && tile.argument as usize <= y, "distance");
            seen(y - tile.argument as usize, x + j)
        }
        7 => rescale(t.dictionary[tile.argument as usize][x + j].into(), t.dictionary_step - tile.step),
        8 => tile.argument.into(),
        9 => i64::from((tile.u[i] * tile.v[j] + 32) >> 6),
        _ => 0,
    };
    (0..height).map(|i| (0..width).map(|j| value(i, j)).collect()).collect()
}

/// Section 8.2.
fn residual(
    t: &Tensor,
    tile: &Tile,
    height: usize,
    width: usize,
    sample: &dyn Fn(usize, usize) -> i64,
) -> Vec<Vec<i64>> {
    let dequantized = |level: i64| {
        let g = level.abs().min(1 << 14);
        let offset = if g == 0 || tile.coarse == 0 { 0 } else { i64::from(t.centroids[g.min(3) as usize - 1]) };
        let step = G[2 * (tile.coarse % 4) as usize] << (tile.coarse / 4);
        level.signum() * (((16 * g + offset).max(0) * step + (1 << 16)) >> 17).min(32767)
    };
    let grid = |f: &dyn Fn(usize, usize) -> i64| -> Vec<Vec<i64>> {
        (0..height).map(|i| (0..width).map(|j| f(i, j)).collect()).collect()
    };
    if (tile.down, tile.along) == (0, 0) || height < 16 || width < 16 {
        return grid(&|i, j| match tile.coarse {
            0 => sample(i, j),
            _ => (dequantized(sample(i, j)) + 2) >> 2,
        });
    }
    let mut block = grid(&|i, j| dequantized(sample(i, j)));
    let s = tile.side;
    let rounded = |sum: i64| ((sum + (1 << 11)) >> 12).clamp(-32768, 32767);
    if tile.down != 0 {
        let basis = basis(t, tile.down, s);
        block = grid(&|i, j| rounded((0..s).map(|k| block[i / s * s + k][j] * basis(k, i % s)).sum()));
    }
    if tile.along != 0 {
        let basis = basis(t, tile.along, s);
        block = grid(&|i, j| rounded((0..s).map(|k| block[i][j / s * s + k] * basis(k, j % s)).sum()));
    }
    grid(&|i, j| (block[i][j] + 2) >> 2)
}

fn basis(t: &Tensor, kernel: usize, side: usize) -> impl Fn(usize, usize) -> i64 + '_ {
    let (dct, dst): (&[i16], &[i16]) = match side {
        16 => (&DCT16, &DST16),
        8 => (&DCT8, &DST8),
        _ => (&DCT4, &DST4),
    };
    move |k, n| match kernel {
        1 => dct[k * side + n].into(),
        2 => dst[k * side + n].into(),
        3 => {
            let magnitude = [1024, 1448, 2048][(16 / side).ilog2() as usize];
            if (k & n).count_ones() % 2 == 1 { -magnitude } else { magnitude }
        }
        _ => t.learned[k * side + n].into(),
    }
}

/// Section 8.3.
fn filtered(t: &Tensor, tile: &Tile, plane: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let at = |i: usize, j: usize| plane.get(i).and_then(|r| r.get(j)).copied().unwrap_or(0);
    let (w0, w1) = (i64::from(t.filter[0]), i64::from(t.filter[1]));
    let value = |i: usize, j: usize| {
        let across = at(i, j.wrapping_sub(1)) + at(i, j + 1);
        let down = at(i.wrapping_sub(1), j) + at(i + 1, j);
        (at(i, j) + ((w0 * across + w1 * down + 128) >> 8)).clamp(range(tile.format).0, range(tile.format).1)
    };
    (0..plane.len()).map(|i| (0..plane[i].len()).map(|j| value(i, j)).collect()).collect()
}
