//! Whether a group of elements lies on a lattice, and with which scales.

use crate::format::Dtype;
use crate::minifloat::Minifloat;
use crate::syntax::lattice::Book;

/// What a lattice's symbols are, and the type to which products are rounded first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    symbols: Symbols,
    pub via: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symbols {
    /// Multiples of a scale.
    Integers,
    /// Multiples over an offset.
    Affine,
    /// Codes of a small floating-point type.
    Codes(Minifloat),
}

/// Largest multiple of a scale.
const MOST_INTEGER: f64 = 127.0;
/// Largest multiple over an offset. Beyond, steps are as small as what elements are rounded by.
const MOST_STEPS: u32 = 63;
/// Largest multiple that the least magnitude of a group is taken for.
const MOST_FIRST: u32 = 24;
/// Shares of an element's rounding that its interval has: what is just between two elements rounds to the even one.
const ODD: f64 = 1.0 - 1e-4;
const EVEN: f64 = 1.0 + 1e-4;

/// Scales, and offsets, with which a group lies on a lattice.
#[derive(Debug, Clone)]
pub(super) struct Range {
    low: f64,
    high: f64,
    /// A scale at which there are offsets.
    inside: Option<f64>,
    /// Symbols with the elements' intervals, for offsets.
    steps: Vec<(f64, f64, f64)>,
}

impl Kind {
    /// All kinds, in the order in which they are tried.
    pub fn all(dtype: Dtype) -> Vec<Self> {
        let types: &[Dtype] = match dtype {
            Dtype::Bf16 => &[Dtype::Bf16, Dtype::F16],
            Dtype::F16 => &[Dtype::F16, Dtype::Bf16],
            _ => &[Dtype::F32, Dtype::F16, Dtype::Bf16],
        };
        let symbols =
            [Symbols::Integers, Symbols::Codes(Minifloat::E4M3), Symbols::Codes(Minifloat::E5M2), Symbols::Affine];
        symbols.iter().flat_map(|&symbols| types.iter().map(move |&via| Self { symbols, via })).collect()
    }

    pub fn has_offset(self) -> bool {
        self.symbols == Symbols::Affine
    }

    pub fn book(self) -> Book {
        match self.symbols {
            Symbols::Integers | Symbols::Affine => Book::Integers,
            Symbols::Codes(Minifloat::E4M3) => Book::E4M3,
            Symbols::Codes(_) => Book::E5M2,
        }
    }

    /// The symbol nearest to `value`.
    pub fn symbol(self, value: f32, (scale, offset): (f32, f32)) -> u8 {
        let ratio = if scale > 0.0 { (f64::from(value) - f64::from(offset)) / f64::from(scale) } else { 0.0 };
        match self.symbols {
            Symbols::Integers if value == 0.0 && value.is_sign_negative() => 0,
            Symbols::Integers | Symbols::Affine => (ratio.round().clamp(-MOST_INTEGER, MOST_INTEGER) + 128.0) as u8,
            Symbols::Codes(float) => {
                let code = float.encode(ratio as f32);
                if value.is_sign_negative() { code | 0x80 } else { code }
            }
        }
    }
}

/// Fits one group after another.
pub(super) struct Fitting {
    kind: Kind,
    dtype: Dtype,
    magnitudes: Vec<f64>,
}

impl Fitting {
    pub fn new(dtype: Dtype, kind: Kind) -> Self {
        Self { kind, dtype, magnitudes: Vec::new() }
    }

    /// Half the length of the interval that rounds to an element: about half a unit of its last place.
    fn half(&self, v: f64) -> f64 {
        let unit = |dtype: Dtype| {
            let (fraction, least) = match dtype {
                Dtype::Bf16 => (7, -126),
                Dtype::F16 => (10, -14),
                _ => (23, -126),
            };
            let exponent = ((v.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
            power(exponent - fraction - 1)
        };
        let via = if self.kind.via == self.dtype { 0.0 } else { unit(self.kind.via) };
        let last = match self.dtype {
            Dtype::Bf16 => 16,
            Dtype::F16 => 13,
            _ => 0,
        };
        let even = (v as f32).to_bits() >> last & 1 == 0;
        (unit(self.dtype) + via) * if even { EVEN } else { ODD }
    }

    /// Scales with which the elements lie on the lattice; `None` if there is none.
    pub fn range(&mut self, values: &[f32]) -> Option<Range> {
        if values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let mut magnitudes = std::mem::take(&mut self.magnitudes);
        magnitudes.clear();
        match self.kind.symbols {
            Symbols::Affine => magnitudes.extend(values.iter().map(|&v| f64::from(v))),
            _ => magnitudes.extend(values.iter().filter(|&&v| v != 0.0).map(|&v| f64::from(v.abs()))),
        }
        magnitudes.sort_unstable_by(f64::total_cmp);
        magnitudes.dedup();
        let found = match self.kind.symbols {
            Symbols::Integers => self.integers(&magnitudes),
            Symbols::Affine => self.affine(&magnitudes),
            Symbols::Codes(float) => self.codes(float, &magnitudes),
        };
        self.magnitudes = magnitudes;
        found
    }

    /// The largest scale of which all magnitudes, in rising order, are multiples.
    fn integers(&self, magnitudes: &[f64]) -> Option<Range> {
        let Some((&first, rest)) = magnitudes.split_first() else { return Some(Range::any()) };
        let h = self.half(first);
        (1..=MOST_FIRST).find_map(|n| {
            let n = f64::from(n);
            let mut range = Range { low: (first - h) / n, high: (first + h) / n, inside: None, steps: Vec::new() };
            rest.iter().all(|&v| range.narrow(v, self.half(v))).then_some(range)
        })
    }

    /// The largest scale of which all values, in rising order, are multiples over the least.
    fn affine(&self, values: &[f64]) -> Option<Range> {
        let (&first, &last) = (values.first()?, values.last()?);
        if first == last {
            return Some(Range { steps: vec![(0.0, first, first)], ..Range::any() });
        }
        let widest = self.half(first.abs().max(last.abs()));
        (1..=MOST_STEPS).find_map(|n| {
            let mut range = Range {
                low: (last - first - 2.0 * widest) / f64::from(n),
                high: (last - first + 2.0 * widest) / f64::from(n),
                inside: None,
                steps: Vec::new(),
            };
            // Where steps are no larger than this, any value is a multiple.
            if range.low < 6.0 * widest {
                return None;
            }
            for &v in values {
                let h = self.half(v);
                let (low, high) = (v - h, v + h);
                let steps = ((v - first) / ((range.low + range.high) / 2.0)).round();
                if steps > 0.0 {
                    let first = self.half(first);
                    let distance = v - values[0];
                    range.low = range.low.max((distance - h - first) / steps);
                    range.high = range.high.min((distance + h + first) / steps);
                } else if v > first {
                    return None;
                }
                if range.low > range.high {
                    return None;
                }
                range.steps.push((steps, low, high));
            }
            range.tighten().then_some(range)
        })
    }

    /// The scale that makes the largest magnitude one of the type's largest codes, and all others codes.
    fn codes(&self, float: Minifloat, magnitudes: &[f64]) -> Option<Range> {
        let Some(&largest) = magnitudes.last() else { return Some(Range::any()) };
        let top = f64::from(float.max());
        let fractions = 1u32 << float.fraction_bits();
        // The largest code may be any that has no other an octave above it.
        (0..fractions).find_map(|n| {
            let code = {
                let code = power(exponent(top)) * (1.0 + f64::from(n) / f64::from(fractions));
                if code > top { code / 2.0 } else { code }
            };
            let h = self.half(largest);
            let mut range =
                Range { low: (largest - h) / code, high: (largest + h) / code, inside: None, steps: Vec::new() };
            let fits = magnitudes.iter().rev().all(|&v| {
                let code = f64::from(float.decode(float.encode((v / range.middle()) as f32)));
                code > 0.0 && range.intersect((v - self.half(v)) / code, (v + self.half(v)) / code)
            });
            fits.then_some(range)
        })
    }
}

impl Range {
    /// The range of a group of zeros.
    fn any() -> Self {
        Self { low: 0.0, high: f64::INFINITY, inside: None, steps: Vec::new() }
    }

    fn middle(&self) -> f64 {
        (self.low + self.high) / 2.0
    }

    fn intersect(&mut self, low: f64, high: f64) -> bool {
        (self.low, self.high) = (self.low.max(low), self.high.min(high));
        self.low <= self.high
    }

    /// Narrows the range to scales of which a magnitude `v`, give or take `h`, is a multiple; false if there is none.
    fn narrow(&mut self, v: f64, h: f64) -> bool {
        let least = ((v - h) / self.high).ceil().max(1.0);
        let most = ((v + h) / self.low).floor().min(MOST_INTEGER);
        match least.total_cmp(&most) {
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => self.intersect((v - h) / least, (v + h) / least),
            // More than one: it says nothing yet, and is tested where elements are coded.
            std::cmp::Ordering::Less => true,
        }
    }

    /// Least and largest offset at a scale, and by how much they come nearer each other with the scale.
    fn offsets(&self, scale: f64) -> (f64, f64, f64) {
        let (mut least, mut most) = ((f64::NEG_INFINITY, 0.0), (f64::INFINITY, 0.0));
        for &(steps, low, high) in &self.steps {
            let (low, high) = (low - steps * scale, high - steps * scale);
            least = if low > least.0 { (low, steps) } else { least };
            most = if high < most.0 { (high, steps) } else { most };
        }
        (least.0, most.0, most.1 - least.1)
    }

    /// Finds a scale at which there is an offset; false if there is none. The room for offsets is concave over scales.
    fn tighten(&mut self) -> bool {
        let (mut low, mut high) = (self.low, self.high);
        for _ in 0..48 {
            let middle = (low + high) / 2.0;
            let (least, most, nearer) = self.offsets(middle);
            if least <= most {
                self.inside = Some(middle);
                return true;
            }
            if nearer > 0.0 { high = middle } else { low = middle }
        }
        false
    }

    /// Scale and offset with fractions of `bits` bits, the nearest to the middle of the range; `None` if it has none.
    pub fn scale(&self, bits: u32) -> Option<(f32, f32)> {
        if self.high.is_infinite() {
            return short(self.steps.first().map_or(0.0, |step| step.1), bits).map(|offset| (0.0, offset));
        }
        let middle = self.inside.unwrap_or(self.middle());
        if middle <= 0.0 || !middle.is_finite() {
            return None;
        }
        let unit = power(exponent(middle) - bits as i32);
        let nearest = (middle / unit).round();
        let fits = |n: f64| Some(n * unit).filter(|v| (self.low..=self.high).contains(v)).and_then(|v| short(v, bits));
        if self.steps.is_empty() {
            return fits(nearest).map(|scale| (scale, 0.0));
        }
        (0..32).flat_map(|k| [nearest + f64::from(k), nearest - f64::from(k) - 1.0]).find_map(|n| {
            let scale = fits(n)?;
            let (low, high, _) = self.offsets(scale.into());
            let middle = (low + high) / 2.0;
            let unit = power(exponent(middle.abs().max(f64::from(f32::MIN_POSITIVE))) - bits as i32);
            let offset = (middle / unit).round() * unit;
            Some((scale, short(offset, bits).filter(|_| (low..=high).contains(&offset))?))
        })
    }
}

/// A number as binary32, if its fraction has no more than `bits` bits there.
fn short(v: f64, bits: u32) -> Option<f32> {
    let short = v as f32;
    (f64::from(short) == v && short.to_bits() & ((1 << (23 - bits)) - 1) == 0).then_some(short)
}

/// Exponent of the leading bit of a positive number.
fn exponent(v: f64) -> i32 {
    (v.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// 2^e of exponents that f64 has.
fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023).clamp(1, 2046) as u64) << 52)
}
