//! Coding a tensor as it is: every tile lossless, tables and spreads chosen by what they cost.

use std::ops::Range;

use crate::TILE;
use crate::bits::BitWriter;
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::lanes::{BAND, LaneEncoder, lane_of};
use crate::plan::{TensorPlan, entry};
use crate::sample::{HeadModel, SampleEncoder};
use crate::side::Books;
use crate::spread::{ENTRY_BITS, quarter_octaves, spread_vector};
use crate::symbol::RateCounter;
use crate::table::{ESCAPE, PROB_BITS};
use crate::tensor::{TensorWriter, join_streams, own_table};
use crate::tile::TilePlan;

/// What the bytes of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements {
    /// Type of an element; cells of numbers that no other type fits are bytes.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Elements of a row; an even number of nibbles.
    pub cols: usize,
    /// For bytes and nibbles: after how many columns statistics repeat, 1 to 8.
    pub period: usize,
}

/// Codes `bytes` (row-major, little-endian) so that they are decoded bit for bit, whatever they are.
///
/// # Errors
/// Another number of bytes than the shape has, and shapes beyond the format's limits.
pub fn encode_lossless(elements: &Elements, bytes: &[u8]) -> Result<Vec<u8>> {
    let Elements { dtype, rows, cols, .. } = *elements;
    let expected = rows * cols * dtype.bits() / 8;
    if bytes.len() != expected || (dtype == Dtype::Nibble && !cols.is_multiple_of(2)) {
        return Err(CodecError::Shape { what: "bytes", found: bytes.len(), expected });
    }
    let tile = TilePlan { format: Format::Lossless, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(dtype, rows, cols, tile);
    if !bytes.is_empty() {
        if dtype.layout().is_some() {
            fit_floats(&mut plan, bytes);
        } else {
            plan.parameters.codebook = symbol_tables(elements, bytes);
        }
    }
    plan.check()?;
    let mut writer = TensorWriter::new(&plan)?;
    for n in 0..plan.slices() {
        let range = plan.slice_range(n);
        let slice = encode_slice(&plan, writer.books(), bytes, range.clone());
        let span = |row: usize| row * cols * dtype.bits() / 8;
        writer.add(slice, &bytes[span(range.start)..span(range.end)]);
    }
    Ok(writer.finish())
}

/// Pattern `i` of row-major bytes.
#[inline(always)]
fn pattern(dtype: Dtype, bytes: &[u8], i: usize) -> u32 {
    match dtype.bits() {
        4 => u32::from(bytes[i / 2] >> (i % 2 * 4) & 15),
        8 => bytes[i].into(),
        16 => u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).into(),
        _ => u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
    }
}

/// One table for each column modulo the period, or one for all where that is no longer.
fn symbol_tables(elements: &Elements, bytes: &[u8]) -> Vec<[u16; 256]> {
    let period = elements.period.clamp(1, crate::side::MAX_HEAD_TABLES);
    let mut counts = vec![[0u64; 256]; period];
    for row in 0..elements.rows {
        for col in 0..elements.cols {
            let symbol = pattern(elements.dtype, bytes, row * elements.cols + col);
            counts[col % period][symbol as usize] += 1;
        }
    }
    let mut all = [0u64; 256];
    counts.iter().for_each(|c| all.iter_mut().zip(c).for_each(|(a, c)| *a += c));
    let (one, one_rate) = own_table(&all).expect("some bytes");
    // A tensor narrower than the period leaves columns without counts.
    let own: Option<Vec<_>> = counts.iter().map(own_table).collect();
    match own {
        Some(own) if own.iter().map(|o| o.1.0).sum::<f64>() < one_rate.0 => own.into_iter().map(|o| o.0).collect(),
        _ => vec![one],
    }
}

/// Chooses spreads and tables of a floating-point tensor.
fn fit_floats(plan: &mut TensorPlan, bytes: &[u8]) {
    let (row_rms, col_rms) = energies(plan, bytes);
    let all = crate::spread::rms(row_rms.iter().copied());
    plan.spread_base = (4.0 * all.max(1e-30).log2()).round().clamp(-600.0, 600.0) as i32;
    let flat = with_tables(plan, bytes);
    let mut best = flat;
    // Columns relative to the whole, so that row and column spreads add up.
    let scaled = plan.clone();
    let vectors = [relative(&row_rms, all, plan.cols), relative(&col_rms, all, plan.rows)];
    if vectors.iter().any(|v| !v.is_empty()) {
        let [rows, cols] = vectors;
        let candidate = with_tables(&TensorPlan { row_spread: rows, col_spread: cols, ..scaled }, bytes);
        if candidate.1 < best.1 {
            best = candidate;
        }
    }
    *plan = best.0;
}

/// A vector where it pays, in quarter octaves over the whole tensor's spread.
fn relative(rms: &[f64], all: f64, others: usize) -> Vec<i8> {
    if spread_vector(rms, others).is_empty() {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / all.max(1e-30), 100.0) as i8).collect()
}

/// Root mean squares of rows and columns, numbers that are not finite left out.
fn energies(plan: &TensorPlan, bytes: &[u8]) -> (Vec<f64>, Vec<f64>) {
    let (rows, cols) = (plan.rows, plan.cols);
    let mut row_rms = Vec::with_capacity(rows);
    let mut sums = vec![0.0f32; cols];
    let mut line = vec![0.0f32; cols];
    for row in 0..rows {
        for (col, value) in line.iter_mut().enumerate() {
            let v = plan.dtype.value_of(pattern(plan.dtype, bytes, row * cols + col));
            // Squares of the largest numbers would not be finite either.
            *value = if v.abs() < 1e15 { v * v } else { 0.0 };
        }
        let mut parts = [0.0f32; 16];
        line.chunks(16).for_each(|c| parts.iter_mut().zip(c).for_each(|(p, v)| *p += v));
        sums.iter_mut().zip(&line).for_each(|(s, v)| *s += v);
        row_rms.push((f64::from(parts.iter().sum::<f32>()) / cols as f64).sqrt());
    }
    let cols = sums.iter().map(|&s| (f64::from(s) / rows as f64).sqrt()).collect();
    (row_rms, cols)
}

/// A plan with the tables that code it shortest, and its bits but for those stored raw: the fixed
/// ones, one of its own, or four.
fn with_tables(plan: &TensorPlan, bytes: &[u8]) -> (TensorPlan, f64) {
    let model = HeadModel::fixed(plan.dtype);
    let vectors = !(plan.row_spread.is_empty() && plan.col_spread.is_empty());
    let mut counts = [[0u64; 256]; 4];
    for row in 0..plan.rows {
        let base = plan.spread_base + entry(&plan.row_spread, row);
        if vectors {
            for col in 0..plan.cols {
                let spread = base + entry(&plan.col_spread, col);
                let (_, origin) = model.context(spread, 0);
                let (head, _) = plan.dtype.split(pattern(plan.dtype, bytes, row * plan.cols + col));
                counts[(spread & 3) as usize][usize::from(model.symbol_of_any(origin, head))] += 1;
            }
        } else {
            let (_, origin) = model.context(base, 0);
            for col in 0..plan.cols {
                let (head, _) = plan.dtype.split(pattern(plan.dtype, bytes, row * plan.cols + col));
                // Two histograms, so that equal symbols in a row do not wait for each other.
                counts[col & 1][usize::from(model.symbol_of_any(origin, head))] += 1;
            }
        }
    }
    let sides = RateCounter::default().rate().0 + (plan.row_spread.len() + plan.col_spread.len()) as f64 * ENTRY_BITS;
    let all: [u64; 256] = std::array::from_fn(|i| counts.iter().map(|c| c[i]).sum());
    let cost = |counts: &[u64; 256], table: usize| -> f64 {
        let bits = |(symbol, &count): (usize, &u64)| match count {
            0 => 0.0,
            _ => match f64::from(crate::table::Tables::fixed().cost(table, symbol as u8)) {
                bits if bits.is_finite() => count as f64 * bits,
                _ => count as f64 * 25.0,
            },
        };
        counts.iter().enumerate().map(bits).sum()
    };
    let leading = plan.dtype.layout().map_or(3, |l| l.leading);
    let fixed: f64 = if vectors {
        (0..4).map(|q| cost(&counts[q], crate::table::head_table(leading, q))).sum()
    } else {
        cost(&all, crate::table::head_table(leading, (plan.spread_base & 3) as usize))
    };
    let mut best = (Vec::new(), fixed);
    if let Some((table, rate)) = own_table(&all)
        && rate.0 < best.1
    {
        best = (vec![table], rate.0);
    }
    if vectors {
        // A quarter that no weight falls into takes the table of all.
        let own: Option<Vec<_>> =
            counts.iter().map(|c| own_table(c).or_else(|| own_table(&all).map(|t| (t.0, crate::Rate(0.0))))).collect();
        if let Some(own) = own {
            let rate = own.iter().map(|o| o.1.0).sum();
            if rate < best.1 {
                best = (own.into_iter().map(|o| o.0).collect(), rate);
            }
        }
    }
    let mut plan = plan.clone();
    plan.parameters.codebook = best.0;
    (plan, best.1 + sides)
}

fn encode_slice(plan: &TensorPlan, books: &Books, bytes: &[u8], rows: Range<usize>) -> Vec<u8> {
    let count = rows.len() * plan.cols;
    let mut encoder = SampleEncoder { lanes: LaneEncoder::with_capacity(count), ..SampleEncoder::default() };
    let model = books.patterns().expect("bytes and nibbles have tables");
    // One copy for each type, so that its shifts are constants.
    match plan.dtype {
        Dtype::Bf16 => encode_patterns(&mut encoder, plan, &model, Dtype::Bf16, bytes, rows),
        Dtype::F32 => encode_patterns(&mut encoder, plan, &model, Dtype::F32, bytes, rows),
        dtype => encode_patterns(&mut encoder, plan, &model, dtype, bytes, rows),
    }
    join_streams(&[], encoder, plan.lanes())
}

#[inline(always)]
fn encode_patterns(
    encoder: &mut SampleEncoder,
    plan: &TensorPlan,
    model: &HeadModel,
    dtype: Dtype,
    bytes: &[u8],
    rows: Range<usize>,
) {
    let (raw, cols) = (dtype.raw_bits(), plan.cols);
    let packed = model.packed_intervals();
    let flat = plan.row_spread.is_empty() && plan.col_spread.is_empty() && dtype.layout().is_some();
    for top in rows.clone().step_by(BAND) {
        let height = BAND.min(rows.end - top);
        for left in (0..cols).step_by(TILE) {
            let width = TILE.min(cols - left);
            let mut block = [[0u32; BAND]; TILE];
            for i in 0..height {
                let start = (top + i) * cols + left;
                for (j, column) in block[..width].iter_mut().enumerate() {
                    column[i] = pattern(dtype, bytes, start + j);
                }
            }
            for (j, column) in block[..width].iter().enumerate() {
                let col = left + j;
                let mut contexts = [(0, 0); BAND];
                if flat {
                    contexts.fill(model.context(plan.spread_base, col));
                } else {
                    let base = plan.spread_base + entry(&plan.col_spread, col);
                    for (i, context) in contexts[..height].iter_mut().enumerate() {
                        *context = model.context(base + entry(&plan.row_spread, top + i), col);
                    }
                }
                let mut symbols = [0u8; BAND];
                let mut rests = [0u32; BAND];
                for i in 0..BAND {
                    let (head, rest) = dtype.split(column[i]);
                    symbols[i] = model.symbol_of_any(contexts[i].1, head);
                    rests[i] = rest;
                }
                let mut known = true;
                let mut intervals = [0; BAND];
                for i in 0..height {
                    let interval = packed[(contexts[i].0 - model.base()) << 8 | usize::from(symbols[i])];
                    known &= interval != 0 && (raw == 0 || symbols[i] != ESCAPE);
                    intervals[i] = (lane_of(i, col) as u32) << 24 | interval & 0xff_ffff;
                }
                if known {
                    encoder.lanes.extend(&intervals[..height]);
                    write_fields(&mut encoder.bits, raw, &rests[..height]);
                } else {
                    for (i, &pattern) in column[..height].iter().enumerate() {
                        let spread = plan.spread_base + entry(&plan.row_spread, top + i) + entry(&plan.col_spread, col);
                        model.code_pattern(encoder, lane_of(top + i, col), col, spread, pattern);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn write_fields(writer: &mut BitWriter, bits: u32, fields: &[u32]) {
    if bits == 0 {
        return;
    }
    let together = (32 / bits) as usize;
    for group in fields.chunks(together.max(1)) {
        let mut word = 0u64;
        for (k, &field) in group.iter().enumerate() {
            word |= u64::from(field) << (k as u32 * bits);
        }
        writer.write(bits * group.len() as u32, word as u32);
    }
}

const _: () = assert!(PROB_BITS == 12);
