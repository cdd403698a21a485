//! One or more coded tensors for every tool: the conformance vectors as the encoder writes them now.

use waterfill_codec::syntax::tools::Tools;
use waterfill_codec::{
    BitShiftTrellis, CodedTensor, Dtype, Elements, Format, Kernel, Minifloat, Palette, Predictor, Scales, TILE,
    TensorEncoder, TensorPlan, TileMode, TilePlan, Transform, Trellis, encode_lossless, encode_tensor,
};

/// Weights with rows of different sizes, in units of a step of one, rounded to the type.
pub fn weights(dtype: Dtype, rows: usize, cols: usize, sigma: f32) -> Vec<f32> {
    let mut state = 11u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut weight = |i: usize| {
        let gauss: f32 = (0..6).map(|_| uniform()).sum::<f32>() * 1.41;
        let row = 1.0 + 0.5 * ((i / cols) as f32 * 0.7).sin();
        // Now and then one that needs an escape.
        gauss * sigma * row * if i % 509 == 100 { 12.0 } else { 1.0 }
    };
    (0..rows * cols).map(|i| dtype.value_of(dtype.pattern_of(weight(i)))).collect()
}

pub fn plan(dtype: Dtype, rows: usize, cols: usize, format: Format) -> TensorPlan {
    let mut plan = TensorPlan::uniform(dtype, rows, cols, TilePlan { format, ..TilePlan::default() });
    plan.sigma_base = 4;
    plan
}

/// A refinement of a coded tensor, under a plan with sigmas over the scales of the layer before, towards
/// `weights`.
pub fn refinement(plan: &TensorPlan, before: &[u8], weights: &[f32]) -> Vec<u8> {
    let base = CodedTensor::parse(before).unwrap();
    let values = base.decode().unwrap().0;
    let scales = Scales::of(base.plan());
    let sum = |own: &[i8], scale: &[i8]| match (own, scale) {
        (_, []) => own.to_vec(),
        ([], _) => scale.to_vec(),
        _ => own.iter().zip(scale).map(|(s, c)| s + c).collect(),
    };
    let mut plan = TensorPlan {
        row_scale: sum(&plan.row_scale, &scales.rows),
        col_scale: sum(&plan.col_scale, &scales.cols),
        row_sigma: sum(&plan.row_sigma, &scales.rows),
        col_sigma: sum(&plan.col_sigma, &scales.cols),
        ..plan.clone()
    };
    plan.tiles.iter_mut().for_each(|t| t.sigma += t.step);
    let width = plan.dtype.bytes();
    let pattern = |b: &[u8]| b.iter().rev().fold(0u32, |v, &x| v << 8 | u32::from(x));
    let known = values.chunks(width).map(|b| plan.dtype.value_of(pattern(b)));
    let left: Vec<f32> = weights.iter().zip(known).map(|(w, k)| if k.is_finite() { w - k } else { 0.0 }).collect();
    let mut encoder = TensorEncoder::refining(&plan, scales, values).unwrap();
    for n in 0..encoder.slices() {
        let rows = encoder.rows(n);
        let slice = encoder
            .slice(n, |slice| {
                waterfill_codec::encoder::quantize::quantize_slice(
                    slice,
                    &left[rows.start * plan.cols..rows.end * plan.cols],
                )
            })
            .unwrap();
        encoder.add(slice);
    }
    encoder.finish()
}

/// The values of a refinement.
pub fn refined(bytes: &[u8], before: &[u8]) -> Vec<u8> {
    let base = CodedTensor::parse(before).unwrap();
    let mut values = base.decode().unwrap().0;
    CodedTensor::parse(bytes).unwrap().refining(&base).unwrap().refine(&mut values).unwrap();
    values
}

/// A coded tensor.
pub struct Example {
    pub name: String,
    pub bytes: Vec<u8>,
    /// The layer before, of a refinement.
    pub before: Option<String>,
}

/// A coded tensor for every tool.
pub fn examples() -> Vec<Example> {
    const SHAPE: (usize, usize) = (40, 70);
    let mut all: Vec<Example> = Vec::new();
    let mut add = |name: &str, plan: &TensorPlan, sigma: f32| {
        let weights = weights(plan.dtype, plan.rows, plan.cols, sigma);
        all.push(Example { name: name.into(), bytes: encode_tensor(plan, &weights).unwrap(), before: None });
    };
    let base = || plan(Dtype::Bf16, SHAPE.0, SHAPE.1, Format::Int8);
    for format in Format::ALL {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let mut plan = plan(dtype, SHAPE.0, SHAPE.1, format);
            plan.tiles.iter_mut().enumerate().for_each(|(n, t)| t.step = n as i16 % 3);
            add(&format!("format-{}-{dtype:?}", format.name()), &plan, 2.0);
        }
    }
    let mut mixed = base();
    for (n, tile) in mixed.tiles.iter_mut().enumerate() {
        *tile = TilePlan { format: Format::ALL[n % 8], step: n as i16 % 5, sigma: 2 - n as i16 % 4, ..*tile };
    }
    mixed.row_scale = (0..SHAPE.0).map(|i| i as i8 % 5 - 2).collect();
    mixed.col_scale = (0..SHAPE.1).map(|i| i as i8 % 3 - 1).collect();
    mixed.row_sigma = (0..SHAPE.0).map(|i| i as i8 % 7 - 3).collect();
    mixed.col_sigma = (0..SHAPE.1).map(|i| i as i8 % 4 - 2).collect();
    (mixed.step_base, mixed.sigma_base) = (-9, 5);
    add("mixed-with-vectors", &mixed, 2.0);
    add("uniform", &base(), 2.0);
    add("large-levels", &TensorPlan { sigma_base: 26, ..base() }, 60.0);

    let with = |change: &dyn Fn(usize, &mut TilePlan)| {
        let mut plan = base();
        plan.tiles.iter_mut().enumerate().for_each(|(n, t)| {
            t.step = n as i16 % 2;
            change(n, t);
        });
        plan
    };
    for (name, predictor) in [
        ("left", Predictor::Left),
        ("top", Predictor::Top),
        ("row-mean", Predictor::RowMean),
        ("col-mean", Predictor::ColMean),
        ("linear", Predictor::Linear),
        ("row-copy", Predictor::Row(7)),
        ("dictionary", Predictor::Dictionary(1)),
        ("constant", Predictor::Constant(-3)),
        ("rank-one", Predictor::RankOne([9; TILE], std::array::from_fn(|i| i as i8 - 8))),
    ] {
        let mut plan = with(&|n, t| {
            let above = n >= 5 || !matches!(predictor, Predictor::Row(_));
            t.predictor = if n % 4 == 3 || !above { Predictor::None } else { predictor };
            t.mode = if n % 5 == 2 { TileMode::Skip } else { TileMode::Coded };
        });
        plan.parameters.linear = [30, 25, 11];
        plan.parameters.dictionary = vec![vec![1; SHAPE.1], (0..SHAPE.1).map(|i| i as i8 % 11 - 5).collect()];
        plan.parameters.dictionary_step = 2;
        add(&format!("predictor-{name}"), &plan, 2.0);
    }
    let palette = Palette { len: 5, values: [-4, -1, 0, 2, 5, 0, 0, 0] };
    add("palette", &with(&|n, t| t.mode = if n % 3 == 0 { TileMode::Palette(palette) } else { TileMode::Coded }), 2.0);
    let full = |n: usize| n / 5 < 2 && n % 5 < 4;
    add("bit-planes", &with(&|n, t| t.mode = if full(n) { TileMode::BitPlanes } else { TileMode::Coded }), 3.0);
    for (name, side) in [("16", 16), ("8", 8), ("4", 4)] {
        let mut plan = with(&|n, t| {
            let (down, along) = (Kernel::COMMON[n % 4], Kernel::COMMON[n / 2 % 4]);
            let side = if (down, along) == (Kernel::Identity, Kernel::Identity) { 16 } else { side };
            t.transform = if full(n) { Transform { down, along, side } } else { Transform::default() };
            t.coarse = (3 * n % 11) as u8;
        });
        plan.parameters.bands = std::array::from_fn(|b| b as i8 % 5 - 2);
        plan.parameters.centroids = [-2, 3, 1];
        add(&format!("transform-{name}"), &plan, 20.0);
    }
    let mut learned = with(&|n, t| {
        let transform = Transform { down: Kernel::Learned, along: Kernel::Dct, side: 16 };
        t.transform = if full(n) { transform } else { Transform::default() };
        t.coarse = 5;
    });
    let matrix = *waterfill_codec::recon::transform::basis(Kernel::Dst, 16);
    learned.parameters.learned = Some(Box::new(matrix));
    add("learned", &learned, 20.0);
    let mut centroids =
        with(&|n, t| (t.coarse, t.predictor) = ((n % 9) as u8, [Predictor::None, Predictor::Left][n % 2]));
    centroids.parameters.centroids = [-3, -1, 2];
    add("centroids", &centroids, 9.0);
    let mut neighbours = with(&|n, t| t.mode = if n == 6 { TileMode::Skip } else { TileMode::Coded });
    neighbours.parameters.neighbours = Some([-6, -3, -1, 0, 1, 2, 4, 6]);
    add("neighbours", &neighbours, 2.0);
    // Patterns between levels count as zeros, also where both tiles of a band are patterns.
    neighbours.tiles.iter_mut().enumerate().for_each(|(n, t)| {
        t.format = if matches!(n, 1 | 6 | 3) { Format::Lossless } else { Format::Int8 };
        t.mode = TileMode::Coded;
    });
    add("neighbours-beside-patterns", &neighbours, 2.0);
    // Beside tiles that the trellis passes over.
    for log2 in 2..=8 {
        let mut trellis = with(&|n, t| {
            t.format = if n == 7 { Format::Lossless } else { Format::Int8 };
            t.mode = if n == 3 { TileMode::Palette(palette) } else { TileMode::Coded };
            t.predictor = if n == 6 { Predictor::Left } else { Predictor::None };
            if n == 2 {
                t.transform = Transform { down: Kernel::Dct, along: Kernel::Dct, side: 16 };
            }
        });
        trellis.parameters.trellis = Trellis::new(log2);
        trellis.parameters.neighbours = (log2 % 2 == 0).then_some([-6, -3, -1, 0, 1, 2, 4, 6]);
        trellis.sigma_base = if log2 == 7 { 26 } else { trellis.sigma_base };
        add(&format!("trellis-{}", 1 << log2), &trellis, if log2 == 7 { 60.0 } else { 2.0 });
    }
    // Codes of all widths, beside tiles of other samples; the last over several slices.
    for (state_bits, rows) in [(8, 40), (12, 40), (13, 300), (16, 40)] {
        let mut codes = plan(Dtype::Bf16, rows, SHAPE.1, Format::Int8);
        codes.parameters.bit_shift = BitShiftTrellis::new(state_bits);
        codes.step_base = -40;
        codes.tiles.iter_mut().enumerate().for_each(|(n, t)| {
            t.format = [Format::Int8, Format::Int4, Format::Lossless, Format::Int8, Format::Fp8][n * 5 / 7 % 5];
            t.step = n as i16 % 3 - 1;
            if t.format.level_range().is_some() {
                t.mode = TileMode::BitShift(1 + (n % 8) as u8);
            }
        });
        codes.col_scale = (0..SHAPE.1).map(|i| i as i8 % 3 - 1).collect();
        add(&format!("bit-shift-{state_bits}"), &codes, 2.0);
    }
    let mut filter = with(&|_, _| {});
    filter.parameters.filter = Some([20, -35]);
    add("filter", &filter, 2.0);
    let mut merged = plan(Dtype::Bf16, 144, 160, Format::Int8);
    merged
        .tiles
        .iter_mut()
        .enumerate()
        .for_each(|(n, t)| t.step = i16::from(n % 10 > 5 && n > 33) + i16::from(n == 61));
    add("merge", &TensorPlan { sigma_base: -6, ..merged }, 0.3);
    for side in [8, 32, 64] {
        let mut plan = plan(Dtype::Bf16, 90, 70, Format::Int8);
        plan.tile = side;
        plan.tiles = (0..90usize.div_ceil(side) * 70usize.div_ceil(side))
            .map(|n| TilePlan {
                step: n as i16 % 3,
                predictor: [Predictor::ColMean, Predictor::RowMean, Predictor::None][n % 3],
                ..TilePlan::default()
            })
            .collect();
        add(&format!("tile-{side}"), &plan, 1.0);
    }
    add("sixty-four-lanes", &TensorPlan { sigma_base: -8, ..plan(Dtype::Bf16, 64, 1600, Format::Int4) }, 0.25);
    for dtype in Dtype::ALL {
        for (rows, cols) in [(0, 6), (1, 2), (33, 50)] {
            // Elements of all bits, which plain coding is for.
            let own = if dtype.is_weight() { dtype } else { Dtype::Bf16 };
            let mut bytes: Vec<u8> = weights(own, rows, cols, 2.0)
                .iter()
                .flat_map(|w| match dtype {
                    Dtype::E4M3 | Dtype::E5M2 | Dtype::Byte => vec![(w * 16.0) as i8 as u8],
                    Dtype::Nibble => vec![(w * 2.0) as i8 as u8 & 0x77],
                    _ => dtype.pattern_of(*w).to_le_bytes()[..dtype.bytes()].to_vec(),
                })
                .collect();
            bytes.truncate(rows * cols * dtype.bits() / 8);
            let coded = encode_lossless(&Elements { dtype, rows, cols, period: 2 }, &bytes).unwrap();
            all.push(Example { name: format!("lossless-{dtype:?}-{rows}x{cols}"), bytes: coded, before: None });
        }
    }
    for (name, dtype, elements) in structured() {
        let bytes: Vec<u8> = elements.iter().flat_map(|p| p.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
        let coded = encode_lossless(&Elements { dtype, rows: 48, cols: 96, period: 1 }, &bytes).unwrap();
        let tensor = CodedTensor::parse(&coded).unwrap();
        let (tools, parameters) = (tensor.header().tools, &tensor.plan().parameters);
        // Groups, the type products were rounded to, and whether there are offsets.
        let lattice = parameters.lattice.as_ref().map(|l| (l.group, l.via.0, l.offset_bits.is_some()));
        // Low bits that are zero, whether zeros have signs, and whether rows have further ones.
        let rests = parameters.rests.as_ref().map(|r| (r.cut, r.signed_zeros, !r.rows.is_empty()));
        let expected = match name {
            "rests-narrow" => (None, Some((16, false, false))),
            "rests-rows" => (None, Some((0, false, true))),
            "rests-signed-zeros" => (None, Some((0, true, false))),
            "rests-zeros" | "rests-some-minus-zeros" => (None, Some((0, false, false))),
            "lattice-int8-rows" => (Some(([1, 96], Dtype::F16, false)), None),
            "lattice-fp8-blocks" => (Some(([16, 16], Dtype::Bf16, false)), None),
            "lattice-affine" => (Some(([1, 32], Dtype::Bf16, true)), None),
            _ => (Some(([1, 48], Dtype::Bf16, false)), None),
        };
        assert_eq!((lattice, rests), expected, "{name}");
        assert_eq!(
            (tools.has(Tools::LATTICE), tools.has(Tools::RESTS)),
            (lattice.is_some(), rests.is_some()),
            "{name}"
        );
        all.push(Example { name: name.into(), bytes: coded, before: None });
    }
    for (name, before, trellis) in
        [("plain", "uniform", None), ("vectors", "mixed-with-vectors", Some(3)), ("f16", "format-int4-F16", Some(8))]
    {
        let bytes = all.iter().find(|e| e.name == before).unwrap().bytes.clone();
        let dtype = CodedTensor::parse(&bytes).unwrap().header().dtype;
        let mut plan = plan(dtype, SHAPE.0, SHAPE.1, Format::Int8);
        (plan.step_base, plan.sigma_base) = (-24, 8);
        plan.parameters.trellis = trellis.and_then(Trellis::new);
        if name == "vectors" {
            plan.row_sigma = (0..SHAPE.0).map(|i| i as i8 % 4 - 1).collect();
            plan.col_scale = (0..SHAPE.1).map(|i| i as i8 % 3 - 1).collect();
            plan.tiles.iter_mut().enumerate().for_each(|(n, t)| {
                (t.step, t.sigma) = (n as i16 % 4, n as i16 % 3 - 1);
                t.format = [Format::Int8, Format::Lossless, Format::Fp8][n % 3];
                t.mode = if n == 3 { TileMode::Skip } else { TileMode::Coded };
            });
        }
        let bytes = refinement(&plan, &bytes, &weights(dtype, SHAPE.0, SHAPE.1, 2.0));
        all.push(Example { name: format!("refinement-{name}"), bytes, before: Some(before.into()) });
    }
    all
}

/// Bit patterns of 48 x 96 elements that were something else before.
fn structured() -> Vec<(&'static str, Dtype, Vec<u32>)> {
    let plain = weights(Dtype::F32, 48, 96, 0.3);
    let of = |dtype: Dtype, f: &dyn Fn(usize, f32) -> f32| -> Vec<u32> {
        plain.iter().enumerate().map(|(i, &w)| dtype.pattern_of(f(i, w))).collect()
    };
    let round = |dtype: Dtype, v: f32| dtype.value_of(dtype.pattern_of(v));
    // The largest magnitude in a group of the element i.
    let largest = |i: usize, rows: usize, cols: usize| {
        let (row, col) = (i / 96 / rows * rows, i % 96 / cols * cols);
        let part = (row..row + rows).flat_map(|r| (col..col + cols).map(move |c| r * 96 + c));
        part.map(|i| plain[i].abs()).fold(1e-3, f32::max)
    };
    let int4 = |i: usize, w: f32| {
        let scale = round(Dtype::F16, largest(i, 1, 48) / 7.0);
        (w / scale).round() * scale
    };
    let fp8 = |i: usize, w: f32| {
        let scale = largest(i, 16, 16) / 448.0;
        Minifloat::E4M3.decode(Minifloat::E4M3.encode(w / scale)) * scale
    };
    let affine = |i: usize, w: f32| {
        let group = &plain[i / 32 * 32..][..32];
        let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(l, h), &w| (l.min(w), h.max(w)));
        let [scale, offset] = [(high - low) / 15.0, low].map(|v| round(Dtype::F16, v));
        ((w - low) / scale).round() * scale + offset
    };
    let int8 = |i: usize, w: f32| (w * 127.0 / largest(i, 1, 96)).round() * (largest(i, 1, 96) / 127.0);
    let mut odd = of(Dtype::Bf16, &int4);
    [(1970, 0x7fc1), (1971, 0xff80), (1980, 0x0001), (2000, 0x3f81)]
        .into_iter()
        .for_each(|(i, pattern)| odd[i] = pattern);
    let sparse = |w: f32| w.abs() > 0.25;
    vec![
        ("rests-narrow", Dtype::F32, of(Dtype::F32, &|_, w| round(Dtype::Bf16, w))),
        ("rests-rows", Dtype::F32, of(Dtype::F32, &|i, w| if i / 96 % 2 == 0 { round(Dtype::F16, w) } else { w })),
        ("rests-zeros", Dtype::Bf16, of(Dtype::Bf16, &|_, w| if sparse(w) { w } else { 0.0 })),
        ("rests-signed-zeros", Dtype::Bf16, of(Dtype::Bf16, &|_, w| if sparse(w) { w } else { 0.0 * w })),
        (
            "rests-some-minus-zeros",
            Dtype::F16,
            of(Dtype::F16, &|i, w| match sparse(w) {
                true => w,
                false if i % 50 == 0 => -0.0,
                false => 0.0,
            }),
        ),
        ("lattice-int4", Dtype::Bf16, of(Dtype::Bf16, &int4)),
        ("lattice-exceptions", Dtype::Bf16, odd),
        ("lattice-int8-rows", Dtype::F16, of(Dtype::F16, &int8)),
        ("lattice-fp8-blocks", Dtype::Bf16, of(Dtype::Bf16, &fp8)),
        ("lattice-via", Dtype::F32, of(Dtype::F32, &|i, w| round(Dtype::Bf16, int4(i, w)))),
        ("lattice-affine", Dtype::Bf16, of(Dtype::Bf16, &affine)),
    ]
}
