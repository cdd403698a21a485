//! Coding a tensor as it is: every tile lossless, tables and spreads chosen by what they cost.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use std::ops::Range;

use crate::TILE;
use crate::bits::BitWriter;
use crate::encoder::{TensorWriter, join_streams, own_table};
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::lanes::{BAND, LaneEncoder, lane_of};
use crate::plan::{TensorPlan, entry};
use crate::sample::{HeadModel, SampleEncoder};
use crate::side::Books;
use crate::simd::{gather_bits, transpose};
use crate::spread::{ENTRY_BITS, quarter_octaves, spread_vector};
use crate::table::{ESCAPE, Tables};
use crate::tile::TilePlan;
use crate::units::Rate;

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
    let statistics = crate::simd::measure(plan.dtype, plan.cols, bytes);
    let all = crate::spread::rms(statistics.rows.iter().copied());
    plan.spread_base = (4.0 * all.max(1e-30).log2()).round().clamp(-600.0, 600.0) as i32;
    let model = HeadModel::fixed(plan.dtype);
    let (_, origin) = model.context(plan.spread_base, 0);
    let mut counts = [[0; 256]; 4];
    for (head, count) in statistics.heads.iter().enumerate() {
        counts[(plan.spread_base & 3) as usize][usize::from(model.symbol_of_any(origin, head as u32))] += count;
    }
    let mut best = with_tables(plan, &counts);
    let row_spread = relative(&statistics.rows, all, plan.cols);
    let col_spread = relative(&statistics.cols, all, plan.rows);
    if !(row_spread.is_empty() && col_spread.is_empty()) {
        let scaled = TensorPlan { row_spread, col_spread, ..plan.clone() };
        let candidate = with_tables(&scaled, &count_symbols(&scaled, bytes));
        if candidate.1 < best.1 {
            best = candidate;
        }
    }
    *plan = best.0;
}

/// [`statistics`], one copy for each type, so that its shifts are constants.
#[inline(always)]
pub(crate) fn measure(dtype: Dtype, cols: usize, bytes: &[u8]) -> Statistics {
    match dtype {
        Dtype::Bf16 => statistics::<{ Dtype::Bf16 as u8 }>(cols, bytes),
        Dtype::F16 => statistics::<{ Dtype::F16 as u8 }>(cols, bytes),
        Dtype::F32 => statistics::<{ Dtype::F32 as u8 }>(cols, bytes),
        Dtype::E4M3 => statistics::<{ Dtype::E4M3 as u8 }>(cols, bytes),
        _ => statistics::<{ Dtype::E5M2 as u8 }>(cols, bytes),
    }
}

/// A vector where it pays, in quarter octaves over the whole tensor's spread.
fn relative(rms: &[f64], all: f64, others: usize) -> Vec<i8> {
    if spread_vector(rms, others).is_empty() {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / all.max(1e-30), 100.0) as i8).collect()
}

/// Root mean squares of rows and columns, numbers that are not finite left out, and how often each head
/// occurs.
#[inline(always)]
fn statistics<const DTYPE: u8>(cols: usize, bytes: &[u8]) -> Statistics {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let rows = bytes.len() * 8 / dtype.bits() / cols;
    let mut found =
        Statistics { rows: Vec::with_capacity(rows), cols: Vec::new(), heads: vec![0; 1 << dtype.head_bits()] };
    // Two histograms, so that equal heads in a row do not wait for each other.
    let mut heads = vec![0u32; 2 << dtype.head_bits()];
    let mut sums = vec![0.0f32; cols];
    let (run, stride) = (TILE * dtype.bits() / 8, sample_stride(rows, cols));
    for (row, line) in bytes.chunks_exact(cols * dtype.bits() / 8).enumerate() {
        let mut parts = [0.0f32; TILE];
        let runs = line.chunks(run).zip(sums.chunks_mut(TILE));
        for (part, sums) in runs.skip(sampled_first(row, stride)).step_by(stride) {
            let mut patterns = [0; TILE];
            if part.len() == run {
                for j in 0..TILE {
                    patterns[j] = pattern(dtype, &part[..run], j);
                }
                count_run(dtype, &patterns, &mut sums[..TILE], &mut parts, &mut heads);
            } else {
                (0..sums.len()).for_each(|j| patterns[j] = pattern(dtype, part, j));
                count_run(dtype, &patterns, sums, &mut parts, &mut heads);
            }
        }
        let seen = cols as f64 / stride as f64;
        found.rows.push((f64::from(parts.iter().sum::<f32>()) / seen).sqrt());
    }
    let seen = rows as f64 / stride as f64;
    found.cols = sums.iter().map(|&s| (f64::from(s) / seen).sqrt()).collect();
    let (even, odd) = heads.split_at(found.heads.len());
    found.heads.iter_mut().zip(even.iter().zip(odd)).for_each(|(n, (a, b))| *n = u64::from(*a) + u64::from(*b));
    found
}

/// Of how many runs of 16 weights one is looked at to choose spreads and tables: a megaweight tells them
/// within a few thousandths of a bit. All of a tensor of which a row or column would be seen too little.
fn sample_stride(rows: usize, cols: usize) -> usize {
    let stride = ((rows * cols) >> 20).next_power_of_two().clamp(1, 8);
    if rows < 64 * stride || cols < 64 * stride { 1 } else { stride }
}

/// First run of a row that is looked at; rows begin one run later each, so that every column is seen.
fn sampled_first(row: usize, stride: usize) -> usize {
    row % stride
}

/// Adds the squares and heads of a run of patterns.
#[inline(always)]
fn count_run(dtype: Dtype, patterns: &[u32; TILE], sums: &mut [f32], parts: &mut [f32; TILE], heads: &mut [u32]) {
    for (j, sum) in sums.iter_mut().enumerate() {
        let v = dtype.value_of(patterns[j]);
        // Squares of the largest numbers would not be finite either.
        let square = if v.abs() < 1e15 { v * v } else { 0.0 };
        parts[j] += square;
        *sum += square;
    }
    for j in 0..sums.len() {
        let (head, _) = dtype.split(patterns[j]);
        heads[(j & 1) << dtype.head_bits() | head as usize] += 1;
    }
}

/// What is known of a tensor before its spreads and tables are chosen.
pub(crate) struct Statistics {
    /// Root mean squares of rows.
    rows: Vec<f64>,
    /// Root mean squares of columns.
    cols: Vec<f64>,
    /// Counts by head.
    heads: Vec<u64>,
}

/// Counts of symbols by quarter octave, with the spread vectors of a plan.
fn count_symbols(plan: &TensorPlan, bytes: &[u8]) -> [[u64; 256]; 4] {
    let model = HeadModel::fixed(plan.dtype);
    let mut counts = [[0u64; 256]; 4];
    let stride = sample_stride(plan.rows, plan.cols);
    for row in 0..plan.rows {
        let base = plan.spread_base + entry(&plan.row_spread, row);
        let runs = (sampled_first(row, stride) * TILE..plan.cols).step_by(TILE * stride);
        for col in runs.flat_map(|first| first..plan.cols.min(first + TILE)) {
            let spread = base + entry(&plan.col_spread, col);
            let (_, origin) = model.context(spread, 0);
            let (head, _) = plan.dtype.split(pattern(plan.dtype, bytes, row * plan.cols + col));
            counts[(spread & 3) as usize][usize::from(model.symbol_of_any(origin, head))] += 1;
        }
    }
    counts
}

/// A plan with the tables that code counted symbols shortest, and its bits but for those stored raw:
/// the fixed ones, one of its own, or four.
fn with_tables(plan: &TensorPlan, counts: &[[u64; 256]; 4]) -> (TensorPlan, f64) {
    let sides = (plan.row_spread.len() + plan.col_spread.len()) as f64 * ENTRY_BITS;
    // Where not all weights were looked at, there may be one that needs an escape.
    let mut counts = *counts;
    if sample_stride(plan.rows, plan.cols) > 1 {
        counts.iter_mut().for_each(|c| c[usize::from(ESCAPE)] += 1);
    }
    let all: [u64; 256] = std::array::from_fn(|i| counts.iter().map(|c| c[i]).sum());
    let leading = plan.dtype.layout().map_or(3, |l| l.leading);
    let fixed = |quarter: usize| -> f64 {
        let table = crate::table::head_table(leading, quarter);
        let bits = |(symbol, &count): (usize, &u64)| match f64::from(Tables::fixed().cost(table, symbol as u8)) {
            _ if count == 0 => 0.0,
            bits if bits.is_finite() => count as f64 * bits,
            _ => count as f64 * 25.0,
        };
        counts[quarter].iter().enumerate().map(bits).sum()
    };
    let mut best = (Vec::new(), (0..4).map(fixed).sum::<f64>());
    if let Some((table, rate)) = own_table(&all)
        && rate.0 < best.1
    {
        best = (vec![table], rate.0);
    }
    // A quarter that no weight falls into takes the table of all.
    let own = |c: &[u64; 256]| own_table(c).or_else(|| own_table(&all).map(|t| (t.0, Rate(0.0))));
    if let Some(own) = counts.iter().map(own).collect::<Option<Vec<_>>>() {
        let rate = own.iter().map(|o| o.1.0).sum();
        if rate < best.1 {
            best = (own.into_iter().map(|o| o.0).collect(), rate);
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
    crate::simd::encode_rows(&mut encoder, plan, &model, bytes, rows);
    join_streams(&[], encoder, plan.lanes())
}

/// Patterns of the rows of a slice.
#[inline(always)]
pub(crate) fn encode_rows(
    encoder: &mut SampleEncoder,
    plan: &TensorPlan,
    model: &HeadModel,
    bytes: &[u8],
    rows: Range<usize>,
) {
    // One copy for each type, so that its shifts are constants.
    match plan.dtype {
        Dtype::Bf16 => encode_patterns::<{ Dtype::Bf16 as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::F16 => encode_patterns::<{ Dtype::F16 as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::F32 => encode_patterns::<{ Dtype::F32 as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::E4M3 => encode_patterns::<{ Dtype::E4M3 as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::E5M2 => encode_patterns::<{ Dtype::E5M2 as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::Byte => encode_patterns::<{ Dtype::Byte as u8 }>(encoder, plan, model, bytes, rows),
        Dtype::Nibble => encode_patterns::<{ Dtype::Nibble as u8 }>(encoder, plan, model, bytes, rows),
    }
}

#[inline(always)]
fn encode_patterns<const DTYPE: u8>(
    encoder: &mut SampleEncoder,
    plan: &TensorPlan,
    model: &HeadModel,
    bytes: &[u8],
    rows: Range<usize>,
) {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let (raw, cols) = (dtype.raw_bits(), plan.cols);
    let packed = model.packed_intervals();
    let flat = plan.row_spread.is_empty() && plan.col_spread.is_empty() && dtype.layout().is_some();
    for top in rows.clone().step_by(BAND) {
        let height = BAND.min(rows.end - top);
        for left in (0..cols).step_by(TILE) {
            let width = TILE.min(cols - left);
            let mut block = [[0u32; BAND]; TILE];
            if dtype == Dtype::Bf16 && width == TILE {
                let mut lines = [[0u16; TILE]; BAND];
                for (i, line) in lines[..height].iter_mut().enumerate() {
                    let from = &bytes[((top + i) * cols + left) * 2..][..2 * TILE];
                    for j in 0..TILE {
                        line[j] = u16::from_le_bytes([from[2 * j], from[2 * j + 1]]);
                    }
                }
                let columns = transpose(&lines);
                for j in 0..TILE {
                    for i in 0..BAND {
                        block[j][i] = columns[j][i].into();
                    }
                }
            } else {
                for i in 0..height {
                    let start = (top + i) * cols + left;
                    for (j, column) in block[..width].iter_mut().enumerate() {
                        column[i] = pattern(dtype, bytes, start + j);
                    }
                }
            }
            for (j, column) in block[..width].iter().enumerate() {
                let col = left + j;
                let mut tables = [0; BAND];
                let mut origins = [0; BAND];
                if flat {
                    let (table, origin) = model.context(plan.spread_base, col);
                    (tables, origins) = ([((table - model.base()) << 8) as u32; BAND], [origin; BAND]);
                } else {
                    let base = plan.spread_base + entry(&plan.col_spread, col);
                    for i in 0..height {
                        let (table, origin) = model.context(base + entry(&plan.row_spread, top + i), col);
                        (tables[i], origins[i]) = (((table - model.base()) << 8) as u32, origin);
                    }
                }
                let mut symbols = [0u8; BAND];
                let mut rests = [0u32; BAND];
                for i in 0..BAND {
                    let (head, rest) = dtype.split(column[i]);
                    symbols[i] = model.symbol_of_any(origins[i], head);
                    rests[i] = rest;
                }
                let mut intervals = [0; BAND];
                let mut escapes = 0u32;
                for i in 0..height {
                    let mut interval = packed[tables[i] as usize | usize::from(symbols[i])];
                    // A symbol that cannot occur is escaped.
                    let escaped = interval >> 24 == 0 || raw > 0 && symbols[i] == ESCAPE;
                    escapes |= u32::from(escaped) << i;
                    if interval >> 24 == 0 {
                        interval = packed[tables[i] as usize | usize::from(ESCAPE)];
                    }
                    intervals[i] = (lane_of(i, col) as u32) << 24 | interval & 0xff_ffff;
                }
                encoder.lanes.extend(&intervals[..height]);
                write_fields(&mut encoder.bits, raw, &rests, height);
                while escapes != 0 {
                    let i = escapes.trailing_zeros() as usize;
                    model.code_escape(encoder, origins[i], dtype.split(column[i]).0);
                    escapes &= escapes - 1;
                }
            }
        }
    }
}

#[inline(always)]
fn write_fields(writer: &mut BitWriter, bits: u32, fields: &[u32; BAND], count: usize) {
    if bits == 0 {
        return;
    }
    if bits > 7 {
        fields[..count].iter().for_each(|&field| writer.write(bits, field));
        return;
    }
    // What is written thirty-two wide can be read in eights, but not the other way round.
    let mut bytes = [0u8; BAND];
    for i in 0..BAND {
        bytes[i] = fields[i] as u8;
    }
    let words: [u64; BAND / 8] =
        std::array::from_fn(|n| gather_bits(u64::from_le_bytes(std::array::from_fn(|k| bytes[8 * n + k])), bits));
    if count == BAND {
        return writer.write_words(8 * bits, &words);
    }
    for (n, eight) in bytes[..count].chunks(8).enumerate() {
        let used = bits * eight.len() as u32;
        writer.write_long(used, words[n] & ((1 << used) - 1));
    }
}
