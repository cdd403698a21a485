//! Sections 5 and 7.

use super::entropy::{Fields, Lanes};
use super::tables::{HEADS, LEVELS, ODD_LEVELS};
use super::{Tensor, Tile};

struct Streams<'a> {
    escapes: Fields<'a>,
    bits: Fields<'a>,
    symbols: Lanes<'a>,
    /// Trellis state of every column.
    states: Vec<i32>,
    /// State of the bit-shift trellis of every column.
    shifted: Vec<u32>,
}

/// Samples of the rows `top..bottom` from the streams escapes, bits and symbols.
pub fn read(t: &Tensor, tiles: &[Tile], (top, bottom): (usize, usize), streams: [&[u8]; 3]) -> Vec<Vec<i32>> {
    let mut s = Streams {
        escapes: Fields::new(streams[0]),
        bits: Fields::new(streams[1]),
        symbols: Lanes::new(streams[2], t.lanes),
        states: vec![0; t.cols],
        shifted: vec![0; t.cols],
    };
    let mut samples = vec![vec![0i32; t.cols]; bottom - top];
    let band = t.side().max(32);
    for first in (top..bottom).step_by(band) {
        for left in (0..t.cols).step_by(t.side()) {
            for col in left..t.cols.min(left + t.side()) {
                for row in first..bottom.min(first + band) {
                    let tile_of = |row: usize, col: usize| &tiles[(row - top) / t.side() * t.across() + col / t.side()];
                    let tile = tile_of(row, col);
                    if tile.bits == 0 {
                        s.shifted[col] = 0;
                    }
                    if tile.mode == 1 || tile.mode == 3 {
                        continue;
                    }
                    // Magnitude of the sample `n` columns before.
                    let before = |n: usize| {
                        let earlier = col.checked_sub(n).map(|c| (tile_of(row, c), samples[row - top][c]));
                        match earlier {
                            Some((tile, sample)) if tile.is_integer() && tile.mode == 0 => sample.abs().min(65535),
                            _ => 0,
                        }
                    };
                    let neighbours = (i64::from(before(1)), i64::from(before(2)));
                    samples[row - top][col] = sample(t, tile, row, col, (top, bottom), neighbours, &mut s);
                }
            }
        }
    }
    s.escapes.end();
    s.bits.end();
    s.symbols.end();
    samples
}

fn sample(
    t: &Tensor,
    tile: &Tile,
    row: usize,
    col: usize,
    (top, bottom): (usize, usize),
    (p, q): (i64, i64),
    s: &mut Streams,
) -> i32 {
    let sigma = t.sigma_base + tile.sigma + t.row_sigma[row] + t.col_sigma[col];
    let scale = tile.step + t.row_scale[row] + t.col_scale[col];
    match tile.format {
        3 => {
            if t.lattice.is_some() {
                return head(5, &t.frequency_tables, 0, row, col, s).0 as i32;
            }
            let (head, symbol) = head(t.dtype, &t.frequency_tables, sigma + (t.step_base >> 1), row, col, s);
            let raw = [5, 8, 21, 1, 1, 0, 0][usize::from(t.dtype)];
            if raw == 0 {
                return head as i32;
            }
            let rest = match &t.rests {
                None => s.bits.read(raw),
                Some((_, true)) if symbol == 1 => s.bits.read(1) << (raw - 1),
                Some((_, false)) if symbol == 1 => 0,
                Some((cut, _)) => {
                    let c = cut[row].min(raw - 1);
                    s.bits.read(raw - c) << c
                }
            };
            (rest >> (raw - 1) << (t.bits() - 1) as u32 | head << (raw - 1) | rest % (1 << (raw - 1))) as i32
        }
        2 | 4 => {
            let (dtype, shift) = if tile.format == 2 { (3, 16) } else { (4, 44) };
            let magnitude = head(dtype, &[], sigma - scale + shift, row, col, s).0 % 128;
            (s.bits.read(1) << 7 | magnitude) as i32
        }
        7 => {
            let magnitude = s.symbols.symbol(&[512; 8], row, col) as u32;
            (s.bits.read(1) << 3 | magnitude) as i32
        }
        _ if tile.bits > 0 => {
            let state = (s.shifted[col] << tile.bits | s.bits.read(tile.bits)) % (1 << t.state_bits);
            s.shifted[col] = state;
            let x = (u64::from(state) * 2239133029 + 3118044064) % (1 << 32);
            let bytes: i32 = (0..4).map(|n| (x >> (8 * n) & 255) as i32).sum();
            let half = (bytes - 510) >> 1;
            half + ((5 * half * half * half) >> 19)
        }
        _ if tile.mode == 2 => {
            let count = tile.palette.len().max(2) as u32;
            s.bits.read(32 - (count - 1).leading_zeros()) as i32
        }
        _ => {
            let cut = (row - top) / t.side() * t.side() + t.side() > bottom - top
                || col / t.side() * t.side() + t.side() > t.cols;
            let mut sigma = sigma - scale - tile.coarse;
            let transformed = !cut && (tile.down, tile.along) != (0, 0);
            if transformed {
                let part = |kernel: usize, n: usize| match kernel {
                    0 => 0,
                    _ => 1 + (32 - ((n % tile.side) as u32).leading_zeros()) as usize,
                };
                let band = 6 * part(tile.down, (row - top) % 16) + part(tile.along, col % 16);
                sigma = t.sigma_base + tile.sigma + t.bands[band] - tile.step - tile.coarse;
            }
            if !t.neighbours.is_empty() {
                let clamped = i64::from(sigma.clamp(-40, 60));
                let scaled = i128::from((2 * p + q) * [1707, 1435, 1207, 1015][clamped.rem_euclid(4) as usize]);
                let octaves = 10 + clamped.div_euclid(4);
                let bin = if octaves < 0 { scaled << -octaves } else { scaled >> octaves };
                sigma += t.neighbours[bin.min(7) as usize];
            }
            if t.trellis == 0 || transformed {
                return level((sigma + 12).clamp(0, 40) as usize, row, col, s);
            }
            let state = s.states[col];
            let (class, parity) = ((sigma + 8).clamp(0, 40) as usize, state & 1);
            let index = if parity == 0 { level(class, row, col, s) } else { odd_index(class, row, col, s) };
            let level = (2 * index + parity).clamp(-(1 << 14), 1 << 14);
            let h0 = [2, 5, 9, 18, 33, 78, 166][t.trellis - 2];
            let h1 = [1, 2, 2, 4, 10, 43, 121][t.trellis - 2];
            s.states[col] = state >> 1 ^ parity * h0 ^ (level >> 1 & 1) * h1;
            level
        }
    }
}

/// Section 7.3.
fn level(class: usize, row: usize, col: usize, s: &mut Streams) -> i32 {
    let (table, shift) = if class < 25 { (class, 0) } else { (21 + (class - 25) % 4, (class - 25) / 4 + 1) };
    let half = LEVELS[table];
    let most = half.len() as i32 - 2;
    let mut frequencies = [0u16; 256];
    frequencies[0] = half[most as usize + 1];
    for magnitude in 0..=most {
        frequencies[(128 + magnitude) as usize] = half[magnitude as usize];
        frequencies[(128 - magnitude) as usize] = half[magnitude as usize];
    }
    let mut quotient = s.symbols.symbol(&frequencies, row, col) as i32 - 128;
    if quotient == -128 {
        quotient = escaped(most, s);
    }
    if shift == 0 {
        return quotient;
    }
    (quotient * (1 << shift) + s.bits.read(shift as u32) as i32 - (1 << (shift - 1))).clamp(-(1 << 14), 1 << 14)
}

/// A quotient beyond `most`.
fn escaped(most: i32, s: &mut Streams) -> i32 {
    let negative = s.escapes.read(1) == 1;
    let mut n = 0;
    while n < 15 && s.escapes.read(1) == 1 {
        n += 1;
    }
    let magnitude = (most + (1 << n | s.escapes.read(n) as i32)).min(1 << 14);
    if negative { -magnitude } else { magnitude }
}

/// Section 7.3, odd levels.
fn odd_index(class: usize, row: usize, col: usize, s: &mut Streams) -> i32 {
    let (table, shift) = if class < 25 { (class, 0) } else { (21 + (class - 25) % 4, (class - 25) / 4 + 1) };
    let half = ODD_LEVELS[table];
    let most = half.len() as i32 - 2;
    let mut frequencies = [0u16; 256];
    frequencies[0] = half[most as usize + 1];
    for index in 0..=most {
        frequencies[(128 + index) as usize] = half[index as usize];
        frequencies[(127 - index) as usize] = half[index as usize];
    }
    let mut quotient = s.symbols.symbol(&frequencies, row, col) as i32 - 128;
    if quotient == -128 {
        quotient = escaped(most + 1, s);
        quotient -= i32::from(quotient > 0);
    }
    quotient * (1 << shift) + s.bits.read(shift as u32) as i32
}

/// Section 7.4: a prefix and its symbol.
fn head(dtype: u8, frequency_tables: &[Vec<u16>], sigma: i32, row: usize, col: usize, s: &mut Streams) -> (u32, usize) {
    if dtype >= 5 {
        let symbol = s.symbols.symbol(&frequency_tables[col % frequency_tables.len()], row, col);
        return (symbol as u32, symbol);
    }
    let (leading, bias, bits) = [(3, 127, 11), (3, 15, 8), (3, 127, 11), (3, 7, 7), (2, 15, 7)][usize::from(dtype)];
    let octave = sigma.div_euclid(4) + bias - 8;
    let fixed: Vec<Vec<u16>> = HEADS
        .iter()
        .map(|h| match leading {
            3 => h.to_vec(),
            _ => [h[..2].to_vec(), h[2..].chunks(2).map(|p| p.iter().sum()).collect()].concat(),
        })
        .collect();
    let tables = if frequency_tables.is_empty() { &fixed } else { frequency_tables };
    let table = &tables[(sigma & (tables.len() as i32 - 1)) as usize];
    let symbol = s.symbols.symbol(table, row, col);
    let prefix = match symbol {
        0 => {
            let mut n = 0;
            while n < 20 && s.escapes.read(1) == 1 {
                n += 1;
            }
            if n == 20 {
                return (s.escapes.read(bits), symbol);
            }
            ((octave - 1 - n) * (1 << leading) + s.escapes.read(leading) as i32).rem_euclid(1 << bits) as u32
        }
        1 => 0,
        symbol => (symbol as i32 - 2 + octave * (1 << leading)).rem_euclid(1 << bits) as u32,
    };
    (prefix, symbol)
}
