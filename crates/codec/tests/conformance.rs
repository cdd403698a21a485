//! The bitstream as it is specified: conformance vectors, a second decoder, and a gate that no change
//! passes without a line in the specification's changelog.

mod examples;
#[allow(clippy::precedence, clippy::needless_range_loop, clippy::manual_is_multiple_of)]
mod oracle;

use std::path::{Path, PathBuf};

use examples::{Example, examples, refined, refinement, weights};
use proptest::prelude::*;
use waterfill_codec::{
    BitShiftTrellis, CodedTensor, Dtype, Elements, Format, Kernel, Minifloat, Palette, Parameters, Predictor, TILE,
    TensorPlan, TileMode, TilePlan, Transform, Trellis, encode_lossless, encode_tensor,
};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// What it decodes to, by a decoder's two functions.
fn decoded(
    bytes: &[u8],
    before: Option<&[u8]>,
    decode: impl Fn(&[u8]) -> Vec<u8>,
    refine: impl Fn(&[u8], &[u8]) -> Vec<u8>,
) -> Vec<u8> {
    before.map_or_else(|| decode(bytes), |before| refine(bytes, before))
}

fn decoded_here(bytes: &[u8], before: Option<&[u8]>) -> Vec<u8> {
    decoded(bytes, before, |b| CodedTensor::parse(b).unwrap().decode().unwrap().0, refined)
}

fn decoded_by_oracle(bytes: &[u8], before: Option<&[u8]>) -> Vec<u8> {
    decoded(bytes, before, oracle::decode, oracle::refine)
}

#[test]
fn conformance_vectors_decode_to_their_digests() {
    let dir = vectors();
    let list = dir.join("digests.txt");
    if std::env::var_os("WATERFILL_WRITE_VECTORS").is_some() {
        let mut lines = String::new();
        for Example { name, bytes, before } in examples() {
            std::fs::write(dir.join(format!("{name}.wft")), &bytes).unwrap();
            let layer = before.as_ref().map(|b| std::fs::read(dir.join(format!("{b}.wft"))).unwrap());
            let decoded = decoded_here(&bytes, layer.as_deref());
            lines += &format!("{} {name} {}", blake3::hash(&decoded).to_hex(), blake3::hash(&bytes).to_hex());
            lines += &before.map_or("\n".into(), |before| format!(" {before}\n"));
        }
        std::fs::write(&list, lines).unwrap();
    }
    let list = std::fs::read_to_string(list).unwrap();
    let files = std::fs::read_dir(&dir).unwrap().count() - 1;
    assert_eq!(list.lines().count(), files, "every vector has a digest");
    for line in list.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (digest, name, own) = (fields[0], fields[1], fields[2]);
        let read = |name: &str| std::fs::read(dir.join(format!("{name}.wft"))).unwrap();
        let (bytes, before) = (read(name), fields.get(3).map(|name| read(name)));
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), own, "{name}");
        let decoded = decoded_here(&bytes, before.as_deref());
        assert_eq!(blake3::hash(&decoded).to_hex().as_str(), digest, "{name}");
        assert!(decoded_by_oracle(&bytes, before.as_deref()) == decoded, "{name}: the second decoder differs");
    }
}

/// The examples are of today's encoder: every tool is in the vectors, and today's encoder is held to the
/// second decoder too.
#[test]
fn what_the_encoder_writes_now_is_decoded_alike_by_both_decoders() {
    let list = std::fs::read_to_string(vectors().join("digests.txt")).unwrap();
    let names: Vec<&str> = list.lines().filter_map(|l| l.split(' ').nth(1)).collect();
    let examples = examples();
    for Example { name, bytes, before } in &examples {
        assert!(names.contains(&name.as_str()), "{name} has no vector");
        let before = before.as_ref().and_then(|b| examples.iter().find(|e| e.name == *b)).map(|e| &e.bytes[..]);
        assert!(decoded_by_oracle(bytes, before) == decoded_here(bytes, before), "{name}");
    }
}

#[test]
fn the_changelog_names_the_tables_and_vectors_as_they_are() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(crate_dir.join("../../docs/BITSTREAM.md")).unwrap();
    let changelog = text.split("## Changelog").nth(1).unwrap();
    let digest = |files: &[&str]| {
        let mut hasher = blake3::Hasher::new();
        files.iter().for_each(|f| {
            hasher.update(&std::fs::read(crate_dir.join(f)).unwrap());
        });
        hasher.finalize().to_hex()[..16].to_string()
    };
    let tables = digest(&["src/entropy/table_data.rs", "src/recon/transform_bases.rs"]);
    let vectors = digest(&["tests/vectors/digests.txt"]);
    let last = changelog.lines().rfind(|l| l.starts_with('|')).unwrap_or_default();
    assert!(
        last.contains(&tables) && last.contains(&vectors),
        "tables {tables}, vectors {vectors}: the normative parts changed, docs/BITSTREAM.md needs a line for it"
    );
}

fn any_tile() -> impl Strategy<Value = TilePlan> {
    let transform = (0..4usize, 0..4usize, 0..3u32);
    (0..8usize, -6i16..6, -5i16..5, 0..4u8, (0..10u8, 1u16..40, -50i16..50), 0..32u8, transform).prop_map(
        |(format, step, sigma, mode, (predictor, distance, value), coarse, (down, along, side))| {
            let format = Format::ALL[format];
            let mut tile = TilePlan { format, step, sigma, ..TilePlan::default() };
            if format.level_range().is_none() {
                return tile;
            }
            tile.predictor = match predictor {
                0 => Predictor::None,
                1 => Predictor::Left,
                2 => Predictor::Top,
                3 => Predictor::RowMean,
                4 => Predictor::ColMean,
                5 => Predictor::Linear,
                6 => Predictor::Row(distance),
                7 => Predictor::Dictionary(0),
                8 => Predictor::Constant(value),
                _ => Predictor::RankOne([value as i8; TILE], std::array::from_fn(|i| i as i8 * 3 - 20)),
            };
            tile.mode = match mode {
                0 => TileMode::Coded,
                1 => TileMode::Skip,
                2 => TileMode::Palette(Palette { len: 3, values: [value, -1, 2, 0, 0, 0, 0, 0] }),
                _ => TileMode::BitPlanes,
            };
            if matches!(tile.mode, TileMode::Coded | TileMode::BitPlanes) {
                tile.coarse = coarse;
                tile.transform =
                    Transform { down: Kernel::COMMON[down], along: Kernel::COMMON[along], side: 4 << side };
                if tile.transform.is_identity() {
                    tile.transform.side = 16;
                }
            }
            tile
        },
    )
}

prop_compose! {
    /// A plan with any tools, of an odd shape.
    fn any_plan()(
        (rows, cols) in prop_oneof![Just((1, 1)), Just((1, 37)), Just((37, 1)), Just((17, 31)), Just((0, 5)), Just((5, 0)),
            Just((16, 16)), (1usize..80, 1usize..80)],
        dtype in 0..3usize, side in prop_oneof![4 => Just(16usize), 1 => Just(8), 1 => Just(32), 1 => Just(64)],
        tiles in prop::collection::vec(any_tile(), 1..30), step_base in -40i32..40, sigma_base in -6i32..30,
        vectors in prop::collection::vec(prop::option::of(-4i8..=4), 4), neighbours: Option<[i8; 8]>, filter: Option<[i8; 2]>,
        trellis in 0..9u32, codes in prop::option::of(8..17u32), centroids: [i8; 3], bands in prop::collection::vec(-9i8..9, 36), linear: [i8; 3], merge: bool,
    ) -> TensorPlan {
        let mut plan = TensorPlan::uniform(Dtype::ALL[dtype], rows, cols, TilePlan::default());
        plan.tile = side;
        (plan.step_base, plan.sigma_base) = (step_base, sigma_base);
        let vector = |n: usize, v: Option<i8>| v.map_or(vec![], |v| (0..n).map(|i| (i as i8 % 5) * v / 2).collect());
        plan.row_scale = vector(rows, vectors[0]);
        plan.col_scale = vector(cols, vectors[1]);
        plan.row_sigma = vector(rows, vectors[2]);
        plan.col_sigma = vector(cols, vectors[3]);
        let p = &mut plan.parameters;
        let within = |v: i8| v.max(-127);
        p.neighbours = neighbours.map(|n| n.map(|v| v / 8));
        p.trellis = Trellis::new(trellis);
        p.filter = filter.map(|f| f.map(within));
        p.centroids = centroids.map(|c| c / 16);
        p.linear = linear.map(within);
        p.bands = bands.try_into().unwrap();
        p.merge = merge;
        let codes = codes.filter(|_| side == TILE).and_then(BitShiftTrellis::new);
        p.dictionary = vec![(0..cols).map(|i| i as i8 % 9 - 4).collect()];
        plan.tiles = (0..rows.div_ceil(side) * cols.div_ceil(side)).map(|n| tiles[n % tiles.len()]).collect();
        let slice_rows = plan.slice_rows();
        for n in 0..plan.tiles.len() {
            let (r, c) = plan.tile_range(n);
            let full = r.len() == TILE && c.len() == TILE && side == TILE;
            let tile = &mut plan.tiles[n];
            if !full {
                tile.transform = Transform::default();
                tile.mode = if tile.mode == TileMode::BitPlanes { TileMode::Coded } else { tile.mode };
            }
            match tile.predictor {
                Predictor::RankOne(..) if side != TILE => tile.predictor = Predictor::Left,
                Predictor::Row(d) if usize::from(d) > r.start % slice_rows => tile.predictor = Predictor::Top,
                _ => {}
            }
        }
        if codes.is_some() {
            plan.parameters = Parameters { merge, bit_shift: codes, ..Parameters::default() };
            for (n, tile) in plan.tiles.iter_mut().enumerate().filter(|(_, t)| t.format.level_range().is_some()) {
                let TilePlan { format, step, sigma, .. } = *tile;
                *tile = TilePlan { format, step, sigma, mode: TileMode::BitShift(1 + (n % 8) as u8), ..TilePlan::default() };
            }
        }
        plan
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Every tool at every shape: what is encoded is decoded, and alike by both decoders.
    #[test]
    fn both_decoders_agree_on_any_plan(plan in any_plan(), sigma in 0.1f32..30.0) {
        let weights = weights(plan.dtype, plan.rows, plan.cols, sigma);
        let bytes = encode_tensor(&plan, &weights).unwrap();
        let tensor = CodedTensor::parse(&bytes).unwrap();
        let decoded = tensor.decode().unwrap().0;
        prop_assert!(oracle::decode(&bytes) == decoded);
    }

    /// Refinements of any plan by any plan.
    #[test]
    fn both_decoders_agree_on_any_refinement(
        base in any_plan(), fine in any_plan(), sigma in 0.1f32..30.0, finer in 0i32..40,
    ) {
        let weights = weights(base.dtype, base.rows, base.cols, sigma);
        let before = encode_tensor(&base, &weights).unwrap();
        // The fine plan's decisions in the shape of the base's.
        let across = base.cols.div_ceil(base.tile);
        let mut plan = TensorPlan { step_base: base.step_base - finer, sigma_base: fine.sigma_base, parameters: fine.parameters, ..base.clone() };
        plan.parameters.dictionary = base.parameters.dictionary.clone();
        if base.tile != TILE {
            plan.parameters.bit_shift = None;
        }
        let codes = plan.parameters.bit_shift.is_some();
        if codes {
            plan.parameters.dictionary.clear();
        }
        let fits = |t: &TilePlan| match t.mode {
            _ if t.format.level_range().is_none() => true,
            TileMode::BitShift(_) => codes,
            mode => !codes && mode == TileMode::Coded && t.transform.is_identity() && t.predictor == Predictor::None,
        };
        let mut own: Vec<TilePlan> = fine.tiles.iter().copied().filter(fits).collect();
        if own.is_empty() {
            plan.parameters.bit_shift = None;
            own.push(TilePlan::default());
        }
        plan.tiles = (0..plan.tiles.len()).map(|n| own[(n + n / across.max(1)) % own.len()]).collect();
        plan.row_sigma = plan.row_sigma.iter().map(|v| v / 2).collect();
        plan.row_scale = vec![];
        let bytes = refinement(&plan, &before, &weights);
        prop_assert!(oracle::refine(&bytes, &before) == refined(&bytes, &before));
        // Without the layer before, or on another, nothing is decoded.
        let tensor = CodedTensor::parse(&bytes).unwrap();
        prop_assert!(tensor.decode().is_err());
    }

    /// Elements that were zero or narrower before, in lossless tiles beside any others.
    #[test]
    fn both_decoders_agree_on_rests_beside_any_tiles(
        plan in any_plan(), sigma in 0.1f32..30.0, (zeros, minus, narrow) in (0.0f32..1.5, 0..3u32, 0..3usize),
    ) {
        let narrow = Dtype::ALL[narrow];
        let mut weights = weights(plan.dtype, plan.rows, plan.cols, sigma);
        for (i, w) in weights.iter_mut().enumerate() {
            let zero = [0.0, *w * 0.0, [0.0, -0.0][usize::from(i % 50 == 0)]][minus as usize];
            let narrowed = narrow.value_of(narrow.pattern_of(*w));
            *w = if w.abs() < zeros * sigma { zero } else { plan.dtype.value_of(plan.dtype.pattern_of(narrowed)) };
        }
        let bytes = encode_tensor(&plan, &weights).unwrap();
        prop_assert!(oracle::decode(&bytes) == decoded_here(&bytes, None));
    }

    /// Levels and codes in groups of any shape, over more than one slice, a few elements off.
    #[test]
    fn both_decoders_agree_on_any_lattice(
        (dtype, via) in (0..3usize, 0..3usize), (rows, groups) in (30usize..300, 1usize..4),
        (height, width) in (1usize..40, 16usize..40), (book, affine) in (0..3usize, any::<bool>()),
        odd in prop::collection::vec((0usize..4000, any::<u32>()), 0..20),
        scales in prop::collection::vec((1u32..2048, -500i16..500), 1..60),
    ) {
        let (dtype, via, cols) = (Dtype::ALL[dtype], Dtype::ALL[via], groups * width);
        let mut patterns: Vec<u32> = (0..rows * cols)
            .map(|i| {
                let (scale, offset) = scales[(i / cols / height * groups + i % cols / width) % scales.len()];
                let code = ((i * i + 7 * i) >> 3) as u8;
                let value = match book {
                    0 => f32::from(code % 16) - if affine { 0.0 } else { 7.0 },
                    1 => Minifloat::E4M3.decode(code),
                    _ => Minifloat::E5M2.decode(code),
                };
                let value = value * (scale as f32 / 65536.0);
                let value = if affine { value + f32::from(offset) / 1024.0 } else { value };
                dtype.pattern_of(via.value_of(via.pattern_of(value)))
            })
            .collect();
        for (place, pattern) in odd {
            let count = patterns.len();
            patterns[place % count] = pattern;
        }
        let bytes: Vec<u8> = patterns.iter().flat_map(|p| p.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
        let coded = encode_lossless(&Elements { dtype, rows, cols, period: 1 }, &bytes).unwrap();
        prop_assert!(decoded_here(&coded, None) == bytes);
        prop_assert!(oracle::decode(&coded) == bytes);
    }

    #[test]
    fn both_decoders_agree_on_any_bytes(
        (dtype, rows, cols, period) in (0..7usize, 0usize..40, 0usize..60, 0usize..9),
        bytes in prop::collection::vec(any::<u8>(), 40 * 60 * 4), mask: u8,
    ) {
        let dtype = Dtype::ALL[dtype];
        let cols = if dtype == Dtype::Nibble { cols / 2 * 2 } else { cols };
        let bytes: Vec<u8> = bytes[..rows * cols * dtype.bits() / 8].iter().map(|b| b & mask).collect();
        let coded = encode_lossless(&Elements { dtype, rows, cols, period }, &bytes).unwrap();
        prop_assert!(CodedTensor::parse(&coded).unwrap().decode().unwrap().0 == bytes);
        prop_assert!(oracle::decode(&coded) == bytes);
    }
}
