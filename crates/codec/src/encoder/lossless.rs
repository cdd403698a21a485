//! Lossless coding: every tile keeps its bit patterns; tables and sigma indices are those that cost least.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use std::ops::Range;

use crate::constants::{BAND, TILE};
use crate::encoder::frequency_tables::own_table;
use crate::encoder::lattice::{Fitted, find_lattice};
use crate::encoder::rests::rests_of;
use crate::encoder::sigma_fit::{ENTRY_BITS, quarter_octaves, sigma_vector};
use crate::encoder::statistics::{measure, pattern, sample_stride, sampled_first};
use crate::encoder::writer::TensorWriter;
use crate::entropy::adaptive_rans::Encoder;
use crate::entropy::bits::BitWriter;
use crate::entropy::interleaved_rans::{LaneEncoder, lane_of};
use crate::entropy::tables::{ESCAPE, PREFIX_ZERO, Tables};
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::simd::{dispatched, gather_bits, transpose};
use crate::syntax::float_prefix::{EntropyTables, FloatPrefixModel};
use crate::syntax::lattice::Groups;
use crate::syntax::sample::SampleEncoder;
use crate::syntax::streams::join_streams;
use crate::syntax::tensor_plan::{TensorPlan, entry};
use crate::syntax::tile_plan::TilePlan;
use crate::units::Rate;

/// Element type and shape of the bytes that [`encode_lossless`] codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements {
    /// Type of an element; cells of numbers that no other type fits are bytes.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Elements of a row; an even number of nibbles.
    pub cols: usize,
    /// Columns after which the statistics of bytes and nibbles repeat, 1 to 8.
    pub period: usize,
}

/// Codes `bytes`, row-major little-endian elements, so that they decode to the same bytes, whatever their values.
///
/// # Errors
/// Another number of bytes than the shape has, and shapes beyond the format's limits.
pub fn encode_lossless(elements: &Elements, bytes: &[u8]) -> Result<Vec<u8>> {
    let Elements { dtype, rows, cols, .. } = *elements;
    let expected = rows * cols * dtype.bits() / 8;
    if bytes.len() != expected || (dtype == Dtype::Nibble && !cols.is_multiple_of(2)) {
        return Err(CodecError::Shape { what: "bytes", found: bytes.len(), expected });
    }
    let lattice = if dtype.is_weight() { find_lattice(dtype, cols, bytes) } else { None };
    let plain = encode_plain(elements, bytes)?;
    Ok(match lattice.map(|found| encode_lattice(elements, bytes, &found)).transpose()? {
        Some(coded) if coded.len() < plain.len() => coded,
        _ => plain,
    })
}

/// Codes `bytes` as symbols of a lattice.
fn encode_lattice(elements: &Elements, bytes: &[u8], found: &Fitted) -> Result<Vec<u8>> {
    let Elements { dtype, rows, cols, .. } = *elements;
    let tile = TilePlan { format: Format::Lossless, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(dtype, rows, cols, tile);
    plan.parameters.lattice = Some(found.lattice.clone());
    let symbols = Elements { dtype: Dtype::Byte, period: 1, ..*elements };
    plan.parameters.frequency_tables = symbol_tables(&symbols, &found.symbols);
    plan.check()?;
    let mut writer = TensorWriter::new(&plan)?;
    let row_bytes = cols * dtype.bytes();
    let mut exceptions = found.exceptions.as_slice();
    for n in 0..plan.slices() {
        let range = plan.slice_range(n);
        let (first, end) = ((range.start * cols) as u64, (range.end * cols) as u64);
        let (own, later) = exceptions.split_at(exceptions.partition_point(|&(place, _)| place < end));
        exceptions = later;
        let across = found.lattice.across(cols);
        let down = found.lattice.down(&range);
        let mut groups = Groups {
            scales: found.scales[down.start * across..down.end * across].to_vec(),
            exceptions: own.iter().map(|&(place, pattern)| ((place - first) as u32, pattern)).collect(),
        };
        let mut headers = Encoder::default();
        found.lattice.code_groups(&mut headers, &mut groups, (dtype, range.clone(), cols))?;
        let slice = encode_slice(&plan, writer.entropy_tables(), &headers.finish(), &found.symbols, range.clone());
        writer.add(slice, &bytes[range.start * row_bytes..range.end * row_bytes]);
    }
    Ok(writer.finish())
}

/// Codes `bytes` element by element.
fn encode_plain(elements: &Elements, bytes: &[u8]) -> Result<Vec<u8>> {
    let Elements { dtype, rows, cols, .. } = *elements;
    let tile = TilePlan { format: Format::Lossless, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(dtype, rows, cols, tile);
    if !bytes.is_empty() {
        if dtype.layout().is_some() {
            fit_floats(&mut plan, bytes);
        } else {
            plan.parameters.frequency_tables = symbol_tables(elements, bytes);
        }
    }
    plan.check()?;
    let mut writer = TensorWriter::new(&plan)?;
    for n in 0..plan.slices() {
        let range = plan.slice_range(n);
        let slice = encode_slice(&plan, writer.entropy_tables(), &[], bytes, range.clone());
        let span = |row: usize| row * cols * dtype.bits() / 8;
        writer.add(slice, &bytes[span(range.start)..span(range.end)]);
    }
    Ok(writer.finish())
}

/// One table for each column modulo the period, or one for all where that is no longer.
fn symbol_tables(elements: &Elements, bytes: &[u8]) -> Vec<[u16; 256]> {
    let period = elements.period.clamp(1, crate::syntax::tensor_plan::MAX_FREQUENCY_TABLES);
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

/// Chooses sigmas, tables and raw bits of a floating-point tensor.
fn fit_floats(plan: &mut TensorPlan, bytes: &[u8]) {
    plan.parameters.rests = if plan.dtype.is_weight() { rests_of(plan, bytes) } else { None };
    let statistics = measure(plan.dtype, plan.cols, bytes);
    let all = crate::encoder::sigma_fit::rms(statistics.rows.iter().copied());
    plan.sigma_base = (4.0 * all.max(1e-30).log2()).round().clamp(-600.0, 600.0) as i32;
    let model = FloatPrefixModel::fixed(plan.dtype);
    let (_, origin) = model.context(plan.sigma_base, 0);
    let mut counts = [[0; 256]; 4];
    for (prefix, count) in statistics.prefixes.iter().enumerate() {
        counts[(plan.sigma_base & 3) as usize][usize::from(model.symbol_of_any(origin, prefix as u32))] += count;
    }
    if plan.parameters.rests.is_some() {
        // A prefix does not tell zeros from other small elements.
        counts = count_symbols(plan, bytes);
    }
    let mut best = with_tables(plan, &counts);
    let row_sigma = relative(&statistics.rows, all, plan.cols);
    let col_sigma = relative(&statistics.cols, all, plan.rows);
    if !(row_sigma.is_empty() && col_sigma.is_empty()) {
        let scaled = TensorPlan { row_sigma, col_sigma, ..plan.clone() };
        let candidate = with_tables(&scaled, &count_symbols(&scaled, bytes));
        if candidate.1 < best.1 {
            best = candidate;
        }
    }
    *plan = best.0;
}

/// Sigma indices relative to the whole tensor, in quarter octaves; empty where they cost more than they save.
fn relative(rms: &[f64], all: f64, others: usize) -> Vec<i8> {
    if sigma_vector(rms, others).is_empty() {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / all.max(1e-30), 100.0) as i8).collect()
}

/// Counts of symbols by quarter octave, with the sigma vectors of a plan.
fn count_symbols(plan: &TensorPlan, bytes: &[u8]) -> [[u64; 256]; 4] {
    let model = FloatPrefixModel::fixed(plan.dtype);
    let mut counts = [[0u64; 256]; 4];
    let stride = sample_stride(plan.rows, plan.cols);
    let rests = plan.parameters.rests.as_ref();
    for row in 0..plan.rows {
        let base = plan.sigma_base + entry(&plan.row_sigma, row);
        let runs = (sampled_first(row, stride) * TILE..plan.cols).step_by(TILE * stride);
        for col in runs.flat_map(|first| first..plan.cols.min(first + TILE)) {
            let sigma = base + entry(&plan.col_sigma, col);
            let (_, origin) = model.context(sigma, 0);
            let pattern = pattern(plan.dtype, bytes, row * plan.cols + col);
            let (prefix, _) = plan.dtype.split(pattern);
            let other = rests.is_some_and(|rests| prefix == 0 && !rests.is_zero(plan.dtype, pattern));
            let symbol = if other { ESCAPE } else { model.symbol_of_any(origin, prefix) };
            counts[(sigma & 3) as usize][usize::from(symbol)] += 1;
        }
    }
    counts
}

/// The plan with the tables that code the counted symbols in the fewest bits (the fixed ones, one of its own, or
/// four), and those bits without raw ones.
fn with_tables(plan: &TensorPlan, counts: &[[u64; 256]; 4]) -> (TensorPlan, f64) {
    let sides = (plan.row_sigma.len() + plan.col_sigma.len()) as f64 * ENTRY_BITS;
    // A weight that was not sampled may need an escape.
    let mut counts = *counts;
    if sample_stride(plan.rows, plan.cols) > 1 {
        counts.iter_mut().for_each(|c| c[usize::from(ESCAPE)] += 1);
    }
    let all: [u64; 256] = std::array::from_fn(|i| counts.iter().map(|c| c[i]).sum());
    let leading = plan.dtype.layout().map_or(3, |l| l.leading);
    let fixed = |quarter: usize| -> f64 {
        let table = crate::entropy::tables::prefix_table(leading, quarter);
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
    plan.parameters.frequency_tables = best.0;
    (plan, best.1 + sides)
}

fn encode_slice(
    plan: &TensorPlan,
    entropy_tables: &EntropyTables,
    headers: &[u8],
    bytes: &[u8],
    rows: Range<usize>,
) -> Vec<u8> {
    let count = rows.len() * plan.cols;
    let mut encoder = SampleEncoder { lanes: LaneEncoder::with_capacity(count), ..SampleEncoder::default() };
    let model = entropy_tables.lossless().expect("bytes and nibbles have tables");
    encode_rows(&mut encoder, plan, &model, bytes, rows);
    join_streams(headers, encoder, plan.lanes())
}

dispatched! {
    /// Codes the bit patterns of the rows of a slice.
    fn encode_rows(
        encoder: &mut SampleEncoder, plan: &TensorPlan, model: &FloatPrefixModel, bytes: &[u8], rows: Range<usize>
    ) -> () = encode_rows_inline
}

#[inline(always)]
fn encode_rows_inline(
    encoder: &mut SampleEncoder,
    plan: &TensorPlan,
    model: &FloatPrefixModel,
    bytes: &[u8],
    rows: Range<usize>,
) {
    // One copy for each type, so that its shifts are constants.
    match plan.sample_dtype() {
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
    model: &FloatPrefixModel,
    bytes: &[u8],
    rows: Range<usize>,
) {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let (raw, cols) = (dtype.raw_bits(), plan.cols);
    let packed = model.packed_intervals();
    let flat = plan.row_sigma.is_empty() && plan.col_sigma.is_empty() && dtype.layout().is_some();
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
                    let (table, origin) = model.context(plan.sigma_base, col);
                    (tables, origins) = ([((table - model.base()) << 8) as u32; BAND], [origin; BAND]);
                } else {
                    let base = plan.sigma_base + entry(&plan.col_sigma, col);
                    for i in 0..height {
                        let (table, origin) = model.context(base + entry(&plan.row_sigma, top + i), col);
                        (tables[i], origins[i]) = (((table - model.base()) << 8) as u32, origin);
                    }
                }
                let mut symbols = [0u8; BAND];
                let mut rests = [0u32; BAND];
                for i in 0..BAND {
                    let (prefix, rest) = dtype.split(column[i]);
                    symbols[i] = model.symbol_of_any(origins[i], prefix);
                    rests[i] = rest;
                }
                if let Some(own) = &plan.parameters.rests {
                    for i in 0..BAND {
                        if symbols[i] == PREFIX_ZERO && !own.is_zero(dtype, column[i]) {
                            symbols[i] = ESCAPE;
                        }
                    }
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
                match &plan.parameters.rests {
                    None => write_fields(&mut encoder.bits, raw, &rests, height),
                    Some(own) => {
                        for i in 0..height {
                            let zero = symbols[i] == PREFIX_ZERO && escapes >> i & 1 == 0;
                            let width = if zero { own.signed_zeros.into() } else { own.width(dtype, top + i) };
                            encoder.bits.write(width, rests[i] >> (raw - width));
                        }
                    }
                }
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
    // Stores of 32 bytes forward to loads of eight, but not the other way round.
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
