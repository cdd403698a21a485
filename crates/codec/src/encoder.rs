//! A whole coded tensor: from a plan and samples to bytes, and how many bits those are.

use std::ops::Range;

use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::header::{Header, slice_check};
use crate::plan::{Scales, TensorPlan};
use crate::plane::{MAX_TILE, Planes};
use crate::quantize::quantize_slice;
use crate::rans::Encoder;
use crate::sample::{HeadModel, SampleCoder, SampleCounter, SampleEncoder};
use crate::side::{Books, code_frequencies, code_side, frequencies};
use crate::slice::{Carried, MAX_BLOCK, SlicePlan, code_block};
use crate::symbol::RateCounter;
use crate::table::PROB_BITS;
use crate::tensor::{SLICE_PREFIX, check_length, finish_tile, truncate};
use crate::units::Rate;

/// Codes `weights` (row-major, exact values of the plan's dtype) as the plan says, with plain
/// rounding.
///
/// # Errors
/// Plans of another shape than the weights, weights that are not finite, scales out of range.
pub fn encode_tensor(plan: &TensorPlan, weights: &[f32]) -> Result<Vec<u8>> {
    let mut encoder = TensorEncoder::of_weights(plan, weights)?;
    for n in 0..encoder.slices() {
        let slice = encoder.slice(n, |slice| quantize_slice(slice, &weights[span(plan, &slice.rows)]))?;
        encoder.add(slice);
    }
    Ok(encoder.finish())
}

fn span(plan: &TensorPlan, rows: &Range<usize>) -> Range<usize> {
    rows.start * plan.cols..rows.end * plan.cols
}

/// Codes a plan whose samples `samples_of` gives, slice by slice, row-major. Headers are merged where
/// the plan allows it and they get shorter by it.
///
/// # Errors
/// As `samples_of`, and plans of inconsistent shape.
pub fn encode_samples(
    plan: &TensorPlan,
    mut samples_of: impl FnMut(&SlicePlan) -> Result<Vec<i32>>,
) -> Result<Vec<u8>> {
    let mut encoder = TensorEncoder::new(plan)?;
    for n in 0..encoder.slices() {
        let slice = encoder.slice(n, &mut samples_of)?;
        encoder.add(slice);
    }
    Ok(encoder.finish())
}

/// A tensor whose slices are coded in any order, or side by side, and put together in theirs.
pub struct TensorEncoder {
    plan: TensorPlan,
    writer: TensorWriter,
    /// Values of the layer before, of a refinement.
    before: Option<Vec<u8>>,
}

/// A coded slice, and the bytes that it decodes to.
pub struct EncodedSlice {
    coded: Vec<u8>,
    decoded: Vec<u8>,
}

impl TensorEncoder {
    /// Begins a tensor; its headers are merged where the plan allows it and they get shorter by it.
    ///
    /// # Errors
    /// Plans of inconsistent shape.
    pub fn new(plan: &TensorPlan) -> Result<Self> {
        match plan.parameters.refinement.is_some() {
            true => Err(CodecError::Layer { reason: "it is coded with the layer before".into() }),
            false => Self::begin(plan.clone()),
        }
    }

    fn begin(mut plan: TensorPlan) -> Result<Self> {
        plan.check()?;
        plan.parameters.merge = plan.parameters.merge && merging_pays(&mut plan)?;
        Ok(Self { writer: TensorWriter::new(&plan)?, plan, before: None })
    }

    /// Begins a refinement of a tensor with these scales, whose decoded bytes are `values`.
    ///
    /// # Errors
    /// As [`TensorEncoder::new`], and bytes of another number than the plan's.
    pub fn refining(plan: &TensorPlan, before: Scales, values: Vec<u8>) -> Result<Self> {
        check_length("layer before", values.len(), plan.rows * plan.cols * plan.dtype.bytes())?;
        let mut plan = plan.clone();
        plan.parameters.refinement = Some(Box::new(before));
        Ok(Self { before: Some(values), ..Self::begin(plan)? })
    }

    /// Begins a tensor of these weights: with tables of their own for lossless tiles, where those pay.
    ///
    /// # Errors
    /// As [`TensorEncoder::new`].
    pub fn of_weights(plan: &TensorPlan, weights: &[f32]) -> Result<Self> {
        plan.check()?;
        check_length("weights", weights.len(), plan.rows * plan.cols)?;
        Self::new(&with_codebook(plan, |index| plan.dtype.pattern_of(weights[index])))
    }

    /// Number of slices.
    pub fn slices(&self) -> usize {
        self.plan.slices()
    }

    /// Rows of slice `n`.
    pub fn rows(&self, n: usize) -> Range<usize> {
        self.plan.slice_range(n)
    }

    /// Codes slice `n` with the samples, row-major, that `samples_of` gives.
    ///
    /// # Errors
    /// Those of `samples_of`, and samples that no tile has.
    pub fn slice(&self, n: usize, samples_of: impl FnOnce(&SlicePlan) -> Result<Vec<i32>>) -> Result<EncodedSlice> {
        let mut slice = SlicePlan::of(&self.plan, self.rows(n));
        // Headers are gone through first: what a lossless tile hands on is settled by it.
        slice.code_headers(&mut RateCounter::default(), &mut |_, _| [0; 256])?;
        let samples = samples_of(&slice)?;
        let coded = encode_slice(&mut slice, self.writer.books(), &samples)?;
        let bytes = |rows: usize| rows * self.plan.cols * self.plan.dtype.bits() / 8;
        let mut decoded = match &self.before {
            Some(before) => before[bytes(slice.rows.start)..bytes(slice.rows.end)].to_vec(),
            None => vec![0; bytes(slice.rows.len())],
        };
        reconstruct_slice(&slice, &samples, &mut decoded)?;
        Ok(EncodedSlice { coded, decoded })
    }

    /// Adds the next slice.
    pub fn add(&mut self, slice: EncodedSlice) {
        self.writer.add(slice.coded, &slice.decoded);
    }

    /// The tensor's bytes, once all slices are in.
    pub fn finish(self) -> Vec<u8> {
        self.writer.finish()
    }
}

/// Assembles a coded tensor from its slices.
pub(crate) struct TensorWriter {
    header: Header,
    side: Vec<u8>,
    books: Books,
    digest: blake3::Hasher,
    slices: Vec<Vec<u8>>,
}

impl TensorWriter {
    pub fn new(plan: &TensorPlan) -> Result<Self> {
        let tools = plan.tools();
        let mut encoder = Encoder::default();
        let mut first = plan.tiles.first().copied().unwrap_or_default();
        code_side(&mut encoder, &mut plan.side(), tools, &mut first)?;
        let side = encoder.finish();
        let header = Header {
            dtype: plan.dtype,
            lanes: plan.lanes(),
            slice_rows: plan.slice_rows(),
            rows: plan.rows,
            cols: plan.cols,
            step_base: plan.step_base,
            spread_base: plan.spread_base,
            tools,
            side_bytes: side.len(),
            digest: [0; 16],
            slices: Vec::new(),
        };
        Ok(Self { header, side, books: Books::new(plan), digest: blake3::Hasher::new(), slices: Vec::new() })
    }

    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Adds a slice and what it decodes to.
    pub fn add(&mut self, slice: Vec<u8>, decoded: &[u8]) {
        self.digest.update(decoded);
        self.header.slices.push((slice.len() as u32, slice_check(&slice)));
        self.slices.push(slice);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.header.digest = truncate(&self.digest);
        let mut out = self.header.write(&self.side);
        out.extend_from_slice(&self.side);
        self.slices.iter().for_each(|s| out.extend_from_slice(s));
        out
    }
}

/// The four streams of a slice, one after the other: headers, escapes, bits, symbols.
pub(crate) fn join_streams(headers: &[u8], encoder: SampleEncoder, lanes: usize) -> Vec<u8> {
    let (escapes, bits, symbols) = (encoder.escapes.finish(), encoder.bits.finish(), encoder.lanes.finish(lanes));
    let parts = [headers, &escapes, &bits, &symbols];
    let mut out = Vec::with_capacity(SLICE_PREFIX + parts.iter().map(|p| p.len()).sum::<usize>());
    parts[..3].iter().for_each(|part| out.extend_from_slice(&(part.len() as u32).to_le_bytes()));
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn encode_slice(slice: &mut SlicePlan, books: &Books, samples: &[i32]) -> Result<Vec<u8>> {
    let mut headers = Encoder::default();
    let levels = TileSamples::of(slice, samples);
    slice.code_headers(&mut headers, &mut |n, _| levels.get(n))?;
    let mut encoder = SampleEncoder::default();
    code_samples(&mut encoder, slice, books, samples)?;
    Ok(join_streams(&headers.finish(), encoder, slice.plan.lanes()))
}

/// Samples of single tiles of a slice.
struct TileSamples<'a> {
    samples: &'a [i32],
    cols: usize,
    tiles: Vec<(usize, usize)>,
}

impl<'a> TileSamples<'a> {
    fn of(slice: &SlicePlan, samples: &'a [i32]) -> Self {
        let start = |n| (slice.tile_range(n).0.start - slice.rows.start, slice.tile_range(n).1.start);
        Self { samples, cols: slice.plan.cols, tiles: (0..slice.tiles.len()).map(start).collect() }
    }

    fn get(&self, n: usize) -> [i32; 256] {
        let (row, col) = self.tiles[n];
        std::array::from_fn(|i| self.samples[(row + i / 16) * self.cols + col + i % 16])
    }
}

fn code_samples<S: SampleCoder>(coder: &mut S, slice: &SlicePlan, books: &Books, samples: &[i32]) -> Result<()> {
    let (cols_all, first) = (slice.plan.cols, slice.rows.start);
    let mut block = [0; MAX_BLOCK];
    let mut carried = Carried::new(slice.plan);
    for (rows, cols) in slice.blocks() {
        if cols.start == 0 {
            carried.forget_left();
        }
        let height = rows.len();
        for (i, row) in rows.clone().enumerate() {
            let line = &samples[(row - first) * cols_all..][cols.clone()];
            line.iter().enumerate().for_each(|(j, &s)| block[j * height + i] = s);
        }
        let count = height * cols.len();
        let (top, left) = (rows.start, cols.start);
        code_block(coder, slice, books, rows, cols, &mut carried, &mut block[..count])?;
        if slice.plan.parameters.trellis.is_some() {
            let given = |k: usize| samples[(top - first + k % height) * cols_all + left + k / height];
            if let Some(k) = (0..count).find(|&k| block[k] != given(k)) {
                let expected = "of the parity of its trellis state";
                return Err(CodecError::Field { field: "level", found: given(k).into(), expected });
            }
        }
    }
    Ok(())
}

/// Decoded bytes of a slice from its samples.
fn reconstruct_slice(slice: &SlicePlan, samples: &[i32], out: &mut [u8]) -> Result<()> {
    let plan = slice.plan;
    let mut planes = Planes::new(slice);
    let mut plane = [0; MAX_TILE];
    let mut tile_samples = [0; MAX_TILE];
    for n in 0..slice.tiles.len() {
        let (rows, cols) = slice.tile_range(n);
        let width = cols.len();
        for (line, row) in tile_samples.chunks_exact_mut(width).zip(rows.clone()) {
            line.copy_from_slice(&samples[(row - slice.rows.start) * plan.cols + cols.start..][..width]);
        }
        let count = rows.len() * width;
        finish_tile(slice, &mut planes, n, &mut plane[..count], &tile_samples[..count], out)?;
    }
    Ok(())
}

/// A plan with a table for the patterns of its lossless tiles where that pays.
fn with_codebook(plan: &TensorPlan, pattern: impl Fn(usize) -> u32) -> TensorPlan {
    let mut plan = plan.clone();
    if !plan.parameters.codebook.is_empty() || !plan.tiles.iter().any(|t| t.format == Format::Lossless) {
        return plan;
    }
    let mut counts = [0u64; 256];
    let mut fixed = SampleCounter::default();
    let model = HeadModel::fixed(plan.dtype);
    for (n, tile) in plan.tiles.iter().enumerate().filter(|(_, t)| t.format == Format::Lossless) {
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let (head, _) = plan.dtype.split(pattern(row * plan.cols + col));
                let spread = plan.pattern_spread(tile, row, col);
                model.code_head(&mut fixed, row, col, spread, head);
                let (_, origin) = model.context(spread, col);
                counts[usize::from(model.symbol_of_any(origin, head))] += 1;
            }
        }
    }
    if let Some((table, rate)) = own_table(&counts)
        && rate.0 < fixed.rate().0
    {
        plan.parameters.codebook = vec![table];
    }
    plan
}

/// Frequencies for counted symbols, and the bits that table and symbols take together.
pub(crate) fn own_table(counts: &[u64; 256]) -> Option<([u16; 256], Rate)> {
    let mut table = frequencies(counts)?;
    let mut counter = RateCounter::default();
    code_frequencies(&mut counter, &mut table).ok()?;
    let bits = |(&count, &f): (&u64, &u16)| count as f64 * (f64::from(PROB_BITS) - f64::from(f.max(1)).log2());
    Some((table, counter.rate() + Rate(counts.iter().zip(&table).map(bits).sum())))
}

/// Whether sharing headers over groups of tiles makes them shorter.
fn merging_pays(plan: &mut TensorPlan) -> Result<bool> {
    let mut bits = |merge| {
        plan.parameters.merge = merge;
        let mut counter = RateCounter::default();
        for n in 0..plan.slices() {
            SlicePlan::of(plan, plan.slice_range(n)).code_headers(&mut counter, &mut |_, _| [0; 256])?;
        }
        Ok(counter.rate().0)
    };
    Ok(bits(true)? < bits(false)?)
}

impl TensorPlan {
    /// Bits of header, slice table and side information as [`encode_tensor`] writes them.
    ///
    /// # Errors
    /// None for a plan of consistent shape.
    pub fn side_rate(&self, weights: &[f32]) -> Result<Rate> {
        let mut plan = with_codebook(self, |i| self.dtype.pattern_of(weights[i]));
        let tools = plan.tools();
        let mut first = plan.tiles.first().copied().unwrap_or_default();
        let mut counter = RateCounter::default();
        code_side(&mut counter, &mut plan, tools, &mut first)?;
        Ok(counter.rate() + Rate(Header::bytes(self.slices()) as f64 * 8.0 + 24.0))
    }

    /// Bits of slice `n` as [`encode_tensor`] writes it, without writing it; the tensor's own tables
    /// and merged headers are not looked for.
    ///
    /// # Errors
    /// As [`encode_tensor`].
    pub fn slice_rate(&self, n: usize, weights: &[f32]) -> Result<Rate> {
        let mut slice = SlicePlan::of(self, self.slice_range(n));
        slice.code_headers(&mut RateCounter::default(), &mut |_, _| [0; 256])?;
        let samples = quantize_slice(&slice, &weights[span(self, &slice.rows)])?;
        self.samples_rate(&mut slice, &samples)
    }

    /// Bits of a slice with these samples.
    ///
    /// # Errors
    /// As [`encode_samples`].
    pub fn samples_rate(&self, slice: &mut SlicePlan, samples: &[i32]) -> Result<Rate> {
        let levels = TileSamples::of(slice, samples);
        let mut headers = RateCounter::default();
        slice.code_headers(&mut headers, &mut |n, _| levels.get(n))?;
        let mut counter = SampleCounter::default();
        code_samples(&mut counter, slice, &Books::new(self), samples)?;
        // A final state holds about 16 of its 32 bits as payload.
        let states = 16.0 + self.lanes() as f64 * 16.0;
        Ok(headers.rate() + counter.rate() + Rate(states + SLICE_PREFIX as f64 * 8.0))
    }
}
