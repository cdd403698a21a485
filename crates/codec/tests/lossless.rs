//! Tensors of any content come back bit for bit, and Gaussian ones near their entropy.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_codec::syntax::tools::Tools;
use waterfill_codec::{CodedTensor, Dtype, Elements, Minifloat, encode_lossless};

fn decoded(coded: &[u8]) -> Vec<u8> {
    CodedTensor::parse(coded).unwrap().decode().unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn any_bytes_come_back(
        dtype in 0usize..7, rows in 0usize..70, cols in 0usize..40, period in 1usize..9, seed in any::<u64>(), sigma in 0u32..24,
    ) {
        let dtype = Dtype::ALL[dtype];
        let cols = if dtype == Dtype::Nibble { cols * 2 } else { cols };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = || random.next_u32();
        // From random bits (not-a-numbers and infinities among them) to nearly constant ones.
        let count = rows * cols * dtype.bits() / 8;
        let bytes: Vec<u8> = (0..count).map(|i| (draw() >> sigma.min(24)) as u8 ^ if i % 2 == 1 { 0x3c } else { 0 }).collect();
        let coded = encode_lossless(&Elements { dtype, rows, cols, period }, &bytes).unwrap();
        prop_assert_eq!(decoded(&coded), bytes);
    }
}

/// A decoded quantized matrix of any groups, with at most one byte of noise: type, rows, columns, elements, and about
/// what its levels take, bits for each element.
fn quantized(seed: u64) -> (Elements, Vec<u8>, f64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: u32| random.next_u32() % n;
    let (dtype, rows) = (Dtype::ALL[draw(3) as usize], 24 + draw(36) as usize);
    let (groups, group, levels) = (3 + draw(3) as usize, 16 + draw(54) as usize, 3 + draw(17) as i32);
    let (by_row, affine, noise) = (draw(2) == 0, draw(2) == 0, draw(2));
    let cols = groups * group;
    let group = if by_row { cols } else { group };
    let mut elements = Vec::new();
    for _ in 0..rows * cols / group {
        let scale = half::f16::from_f32((1.0 + draw(1000) as f32 / 1000.0) * 0.01).to_f32();
        let offset = if affine { half::f16::from_f32(draw(1000) as f32 / -4000.0).to_f32() } else { 0.0 };
        let low = if affine { 0 } else { -levels };
        // Some groups have one value alone.
        let spread = if draw(20) == 0 { 1 } else { 2 * levels as u32 + 1 };
        elements.extend((0..group).map(|_| (low + draw(spread) as i32) as f32 * scale + offset));
    }
    let pattern = |&v: &f32| dtype.pattern_of(v).to_le_bytes()[..dtype.bytes()].to_vec();
    let mut bytes: Vec<u8> = elements.iter().flat_map(pattern).collect();
    for _ in 0..noise {
        let at = draw(bytes.len() as u32) as usize;
        bytes[at] = draw(256) as u8;
    }
    let scales = if affine { 36.0 } else { 18.0 } / group as f64;
    let header = 1000.0 * 8.0 / (rows * cols) as f64;
    let bits = f64::from(2 * levels + 1).log2() + scales + header + 1.0;
    (Elements { dtype, rows, cols, period: 1 }, bytes, bits)
}

#[test]
fn lattices_take_about_what_their_levels_take() {
    for seed in 0..1000 {
        let (elements, bytes, most) = quantized(seed);
        let coded = encode_lossless(&elements, &bytes).unwrap();
        let bits = coded.len() as f64 * 8.0 / (elements.rows * elements.cols) as f64;
        assert!(bits <= most, "seed {seed}: {bits} bits, expected {most} at most");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn lattices_come_back_and_flips_are_noticed(seed in any::<u64>(), (at, bit) in (any::<usize>(), 0u32..8)) {
        let (elements, bytes, _) = quantized(seed);
        let mut coded = encode_lossless(&elements, &bytes).unwrap();
        prop_assert_eq!(decoded(&coded), bytes);
        let at = at % coded.len();
        coded[at] ^= 1 << bit;
        let found = CodedTensor::parse(&coded).and_then(|tensor| tensor.decode());
        prop_assert!(found.is_err(), "byte {} was flipped unnoticed", at);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Blocks, columns and codes too, over more than one slice, with much noise: found or not, elements come back, and
    /// damage is noticed.
    #[test]
    fn lattices_of_any_groups_come_back(
        dtype in 0usize..3, via in 0usize..3, (rows, cols) in (1usize..300, 8usize..80),
        (height, width) in (1usize..60, 1usize..90),
        (book, levels, affine) in (0usize..3, 2u32..120, any::<bool>()), noise in prop_oneof![Just(0usize), 1usize..60],
        negate in any::<bool>(), seed in any::<u64>(),
    ) {
        let (dtype, via) = (Dtype::ALL[dtype], Dtype::ALL[via]);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |n: u32| random.next_u32() % n;
        let across = cols.div_ceil(width);
        let scales: Vec<(f32, f32)> = (0..rows.div_ceil(height) * across)
            .map(|_| (half::f16::from_f32(draw(2000) as f32 / 99_000.0).to_f32(), draw(1000) as f32 / -1024.0))
            .collect();
        let mut patterns: Vec<u32> = (0..rows * cols)
            .map(|i| {
                let (scale, offset) = scales[i / cols / height * across + i % cols / width];
                let value = match book {
                    0 => Minifloat::E4M3.decode(draw(256) as u8),
                    1 => Minifloat::E5M2.decode(draw(256) as u8),
                    _ => draw(levels) as f32 - if affine { 0.0 } else { (levels / 2) as f32 },
                };
                let value = value * scale * if negate && draw(2) == 1 { -1.0 } else { 1.0 };
                let value = if affine { value + offset } else { value };
                dtype.pattern_of(via.value_of(via.pattern_of(value)))
            })
            .collect();
        for _ in 0..noise {
            let place = draw(patterns.len() as u32) as usize;
            patterns[place] = draw(u32::MAX);
        }
        let bytes: Vec<u8> = patterns.iter().flat_map(|p| p.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
        let mut coded = encode_lossless(&Elements { dtype, rows, cols, period: 1 }, &bytes).unwrap();
        prop_assert_eq!(decoded(&coded), bytes);
        for _ in 0..8 {
            let (at, bit) = (draw(coded.len() as u32) as usize, 1 << draw(8));
            coded[at] ^= bit;
            let found = CodedTensor::parse(&coded).and_then(|tensor| tensor.decode());
            prop_assert!(found.is_err(), "byte {} was flipped unnoticed", at);
            coded[at] ^= bit;
        }
    }
}

/// The groups that a lattice has are the ones found, and rounding on the way to a wider type is too.
#[test]
fn groups_and_types_of_lattices_are_found() {
    for (dtype, via, group, affine) in [
        (Dtype::Bf16, Dtype::Bf16, [1, 48], false),
        (Dtype::F16, Dtype::Bf16, [1, 32], false),
        (Dtype::F32, Dtype::F16, [1, 32], false),
        (Dtype::Bf16, Dtype::Bf16, [16, 16], false),
        (Dtype::Bf16, Dtype::Bf16, [300, 1], false),
        (Dtype::F16, Dtype::F16, [1, 32], true),
    ] {
        let (rows, cols) = (300, 96);
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let scales: Vec<f32> = (0..rows * cols).map(|_| (100 + random.next_u32() % 900) as f32 / 16384.0).collect();
        let element = |i: usize| {
            let n = i / cols / group[0] * cols + i % cols / group[1];
            let scale = scales[n];
            // All sixteen levels in each group.
            let level = (i / cols * 5 + i % cols * 7 + i % cols / 16) as f32 % 16.0;
            let value = if affine { level * scale - scales[n + 1] * 5.0 } else { (level - 7.0) * scale };
            dtype.pattern_of(via.value_of(via.pattern_of(value)))
        };
        let bytes: Vec<u8> =
            (0..rows * cols).flat_map(|i| element(i).to_le_bytes()[..dtype.bytes()].to_vec()).collect();
        let coded = encode_lossless(&Elements { dtype, rows, cols, period: 1 }, &bytes).unwrap();
        assert_eq!(decoded(&coded), bytes);
        let tensor = CodedTensor::parse(&coded).unwrap();
        assert!(tensor.header().tools.has(Tools::LATTICE), "{dtype:?} {group:?}");
        let lattice = tensor.plan().parameters.lattice.as_ref().unwrap();
        assert_eq!((lattice.group, lattice.via.0, lattice.offset_bits.is_some()), (group, via, affine));
    }
}

/// A pair of standard Gaussians (Box & Muller 1958).
fn gaussians(seed: u64) -> impl Iterator<Item = f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    std::iter::repeat_with(move || {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), 2.0 * std::f64::consts::PI * uniform());
        [radius * angle.cos(), radius * angle.sin()]
    })
    .flatten()
}

#[test]
fn gaussian_weights_take_little_more_than_their_entropy() {
    let side = 1024;
    let bytes: Vec<u8> = gaussians(1)
        .take(side * side)
        .flat_map(|g| (Dtype::Bf16.pattern_of((g * 0.02) as f32) as u16).to_le_bytes())
        .collect();
    let coded = encode_lossless(&Elements { dtype: Dtype::Bf16, rows: side, cols: side, period: 1 }, &bytes).unwrap();
    assert_eq!(decoded(&coded), bytes);
    let bits = coded.len() as f64 * 8.0 / (side * side) as f64;
    // 10.464 is the entropy of the 16-bit patterns.
    assert!(bits < 10.485, "{bits} bits per weight");
}

#[test]
fn row_and_column_scales_pay_for_themselves() {
    let (rows, cols) = (512, 256);
    let scale = |i: usize| 2f64.powi((i * 7 % 5) as i32 - 2);
    let bytes: Vec<u8> = gaussians(2)
        .take(rows * cols)
        .enumerate()
        .flat_map(|(i, g)| ((g * 0.02 * scale(i / cols) * scale(i % cols)) as f32).to_le_bytes())
        .collect();
    let coded = encode_lossless(&Elements { dtype: Dtype::F32, rows, cols, period: 1 }, &bytes).unwrap();
    assert_eq!(decoded(&coded), bytes);
    let bits = coded.len() as f64 * 8.0 / (rows * cols) as f64;
    assert!(bits < 26.56, "{bits} bits per weight; without scales 26.47 plus the scales' entropy");
    assert!(!CodedTensor::parse(&coded).unwrap().plan().row_sigma.is_empty());
}

#[test]
fn small_numbers_in_wide_types_cost_nothing_above_their_entropy() {
    // 64-bit integers below 16, byte by byte; and nibbles of which few occur.
    let numbers: Vec<u8> = (0..4096u64).flat_map(|i| (((i * 2654435761) >> 7) & 15).to_le_bytes()).collect();
    let coded = encode_lossless(&Elements { dtype: Dtype::Byte, rows: 64, cols: 512, period: 8 }, &numbers).unwrap();
    assert_eq!(decoded(&coded), numbers);
    assert!(coded.len() < 2400, "{} bytes for 2048 of content", coded.len());
    let nibbles: Vec<u8> = (0..8192u64).map(|i| ((i * 2654435761) >> 9) as u8 & 0x33).collect();
    let coded = encode_lossless(&Elements { dtype: Dtype::Nibble, rows: 64, cols: 256, period: 1 }, &nibbles).unwrap();
    assert_eq!(decoded(&coded), nibbles);
    assert!(coded.len() < 4250, "{} bytes for 4096 of content", coded.len());
}

/// Statistics of a large tensor are of a part of it: what lies elsewhere must come back too.
#[test]
fn what_statistics_did_not_see_comes_back() {
    let side = 2048;
    // Of all heads but one octave's there are none in most places; own tables then leave them out.
    let even = |i: usize| (0x3f80 | ((i * 2654435761) >> 9) & 0x7f) as u16 | ((i >> 3 & 1) as u16) << 15;
    let mut patterns: Vec<u16> = (0..side * side).map(even).collect();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for n in 0..200 {
        let odd = [0x7f80, 0xffc1, 0x0000, 0x8000, 0x0001, 0x7f7f, 0x2a00, 0x5b33, 0xbf70];
        // Runs of sixteen that come second in their row: seen in one row of four only.
        let row = random.next_u32() as usize % side;
        patterns[row * side + 16 * (row + 1) % 64 + n % 16] = odd[n % odd.len()];
    }
    let bytes: Vec<u8> = patterns.iter().flat_map(|p| p.to_le_bytes()).collect();
    let coded = encode_lossless(&Elements { dtype: Dtype::Bf16, rows: side, cols: side, period: 1 }, &bytes).unwrap();
    assert!(decoded(&coded) == bytes);
}
