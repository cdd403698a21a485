//! What inference runtimes use: decoding into their buffers, tiles to compute with, opening files and bytes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use waterfill_checkpoint::packed::{ALIGNMENT, Bucket, PackedFormat, PackedTensor, PackedTrellis};
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Control, Element};
use waterfill_codec::{BitShiftTrellis, Dtype, Format, TILE, TensorPlan, TileMode, TilePlan, encode_tensor};

const FORMATS: [Format; 5] = [Format::Int4, Format::Int8, Format::Fp8, Format::Fp8E5M2, Format::Lossless];

fn weight(n: usize) -> f32 {
    let wave = (n as f32 * 0.731).sin() + 0.4 * (n as f32 * 0.113).cos();
    // A value of bf16.
    f32::from_bits((wave * 0.05).to_bits() & 0xffff_0000)
}

/// Row and column scales, and no formats yet.
fn scaled(dtype: Dtype, rows: usize, cols: usize) -> TensorPlan {
    let mut plan = TensorPlan::uniform(dtype, rows, cols, TilePlan::default());
    plan.row_scale = (0..rows).map(|r| (r % 5) as i8 - 2).collect();
    plan.col_scale = (0..cols).map(|c| (c % 3) as i8 - 1).collect();
    plan
}

/// A tensor with tiles of every format in turn, and row and column scales.
fn coded(rows: usize, cols: usize) -> Vec<u8> {
    let mut plan = scaled(Dtype::Bf16, rows, cols);
    // Steps of about 2^-6.
    plan.step_base = -48;
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        tile.format = FORMATS[n % FORMATS.len()];
        tile.step = match tile.format {
            Format::Int4 => 0,
            _ => -12,
        };
    }
    let weights: Vec<f32> = (0..rows * cols).map(weight).collect();
    encode_tensor(&plan, &weights).unwrap()
}

/// Plan of a tensor with a bit-shift trellis: codes of every width and tiles of other formats in no order, and their packed
/// formats.
fn trellis_plan(dtype: Dtype, rows: usize, cols: usize, state_bits: u32) -> (TensorPlan, Vec<PackedFormat>) {
    let mut plan = scaled(dtype, rows, cols);
    // Steps of about 2^-11: levels have a root mean square of 84.5, weights one of 0.04.
    plan.step_base = -89;
    plan.parameters.bit_shift = BitShiftTrellis::new(state_bits);
    let set = |(n, tile): (usize, &mut TilePlan)| {
        let mixed = ((n * n) as u32).wrapping_mul(0x9e37_79b1) >> 12;
        let (format, step, packed) = match mixed % 11 {
            8 => (Format::Lossless, 0, PackedFormat::Plain(dtype)),
            9 => (Format::Fp8, 12, PackedFormat::E4m3),
            10 => (Format::Fp8E5M2, 12, PackedFormat::E5m2),
            kind => {
                let bits = kind as u8 + 1;
                tile.mode = TileMode::BitShift(bits);
                // The format has no part in the codes.
                let format = [Format::Int2, Format::Int3, Format::Int4, Format::Int8][n % 4];
                (format, (n % 3) as i16 - 1, PackedFormat::Trellis(bits))
            }
        };
        (tile.format, tile.step) = (format, step);
        packed
    };
    let formats = plan.tiles.iter_mut().enumerate().map(set).collect();
    (plan, formats)
}

/// States of all columns before each row of tiles, by all codes from the top of each slice on.
fn walked_states(packed: &PackedTensor, slice_rows: usize) -> Vec<Vec<u32>> {
    let Some(PackedTrellis { states: trellis, .. }) = packed.trellis else { panic!("no trellis") };
    let mut tiles = tiles(packed).into_iter();
    let mut states = vec![0; packed.tiles_across() * TILE];
    let row = |row: usize| {
        if (row * TILE).is_multiple_of(slice_rows) {
            states.fill(0);
        }
        let before = states.clone();
        for (states, (bucket, n)) in states.chunks_exact_mut(TILE).zip(tiles.by_ref()) {
            match bucket.format.code_bits() {
                None => states.fill(0),
                Some(bits) => {
                    for (i, code) in bucket.format.unpack_codes(bucket.tile(n), 0).into_iter().enumerate() {
                        states[i % TILE] = trellis.next(states[i % TILE], bits, code.into());
                    }
                }
            }
        }
        before
    };
    (0..packed.rows.div_ceil(TILE)).map(row).collect()
}

/// Bucket and number in it of each tile, row of tiles by row of tiles.
fn tiles(packed: &PackedTensor) -> Vec<(&Bucket, usize)> {
    let places = |b: &Bucket| b.places().enumerate().map(|(n, place)| (place, n)).collect::<Vec<_>>();
    let all = packed.buckets.iter().flat_map(|b| places(b).into_iter().map(move |(place, n)| (place, (b, n))));
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, tile)| tile).collect()
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A compressed checkpoint with a coded and a plain matrix.
    fn new(rows: usize, cols: usize) -> Self {
        Self::of(coded(rows, cols), rows, cols)
    }

    /// The same with another coded matrix.
    fn of(bytes: Vec<u8>, rows: usize, cols: usize) -> Self {
        let (dir, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("config.json"), "{}").unwrap();
        let plain: Vec<u8> = (0..rows * cols).flat_map(|n| weight(n).to_le_bytes()).collect();
        let entries = [
            Entry {
                name: "coded".into(),
                shape: vec![rows, cols],
                plain: None,
                bytes: bytes.len() as u64,
                data: Data::Made(Box::new(move || bytes.clone())),
            },
            Entry {
                name: "plain".into(),
                shape: vec![rows, cols],
                plain: Some(Element::F32),
                bytes: plain.len() as u64,
                data: Data::Made(Box::new(move || plain.clone())),
            },
        ];
        write_checkpoint(from.path(), dir.path(), &entries, true).unwrap();
        Self { dir }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.dir.path()).unwrap()
    }
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pattern = |b: &[u8]| b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
    bytes.chunks_exact(dtype.bytes()).map(|b| dtype.value_of(pattern(b))).collect()
}

#[test]
fn tensors_are_decoded_into_buffers_of_any_type() {
    let place = Place::new(600, 70);
    let checkpoint = place.open();
    for name in ["coded", "plain"] {
        let expected = checkpoint.read_f32(name, &[600, 70]).unwrap();
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let mut out = vec![0; checkpoint.decoded_bytes(name, dtype).unwrap()];
            let told = Mutex::new(Vec::new());
            let progress = |done, all| told.lock().unwrap().push((done, all));
            let control = Control { progress: Some(&progress), cancelled: None };
            checkpoint.decode(name, dtype, &mut out, control).unwrap();
            let rounded: Vec<f32> = expected.iter().map(|&v| dtype.value_of(dtype.pattern_of(v))).collect();
            assert_eq!(values(dtype, &out), rounded, "{name} {dtype:?}");
            let mut told = told.into_inner().unwrap();
            told.sort();
            let all = told[0].1;
            assert_eq!(told, (1..=all).map(|n| (n, all)).collect::<Vec<_>>(), "{name} {dtype:?}");
        }
        let message = checkpoint.decode(name, Dtype::Bf16, &mut [0; 3], Control::default()).unwrap_err().to_string();
        assert!(message.contains("buffer of 3 bytes, expected 84000"), "{message}");
    }
    let stop = AtomicBool::new(true);
    let control = Control { progress: None, cancelled: Some(&stop) };
    let mut out = vec![0; 84_000];
    assert!(matches!(checkpoint.decode("coded", Dtype::Bf16, &mut out, control), Err(CheckpointError::Cancelled)));
    assert!(matches!(checkpoint.decode_packed("coded", control), Err(CheckpointError::Cancelled)));
    // Stopped on its way.
    stop.store(false, Ordering::Relaxed);
    let after_one = |_, _| stop.store(true, Ordering::Relaxed);
    let control = Control { progress: Some(&after_one), cancelled: Some(&stop) };
    let large = Place::new(5000, 70);
    let checkpoint = large.open();
    let mut out = vec![0; checkpoint.decoded_bytes("coded", Dtype::Bf16).unwrap()];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let stopped = pool.install(|| checkpoint.decode("coded", Dtype::Bf16, &mut out, control));
    assert!(matches!(stopped, Err(CheckpointError::Cancelled)), "{stopped:?}");
}

#[test]
fn packed_tiles_have_the_decoded_values() {
    for (rows, cols) in [(600, 70), (16, 16), (33, 100), (1, 1)] {
        let place = Place::new(rows, cols);
        let checkpoint = place.open();
        let expected = checkpoint.read_f32("coded", &[rows, cols]).unwrap();
        let packed = checkpoint.decode_packed("coded", Control::default()).unwrap();
        assert_eq!((packed.rows, packed.cols, packed.dtype), (rows, cols, Dtype::Bf16));
        assert_eq!(packed.trellis, None);
        let tiles = rows.div_ceil(16) * cols.div_ceil(16);
        let across = cols.div_ceil(16);
        let places = packed.buckets.iter().flat_map(|b| b.places().map(|[row, column]| row * across + column));
        let mut places: Vec<usize> = places.collect();
        places.sort();
        assert_eq!(places, (0..tiles).collect::<Vec<_>>(), "every tile once");
        // Integers take as many bits as their levels need.
        let formats: Vec<PackedFormat> = packed.buckets.iter().map(|b| b.format).collect();
        assert!(formats.len() >= tiles.min(FORMATS.len() - 1), "{formats:?}");
        for bucket in packed.buckets.iter().filter(|b| b.format.level_bits().is_some_and(|bits| bits > 2)) {
            let bits = bucket.format.level_bits().unwrap();
            let narrower = PackedFormat::INTEGERS.iter().filter_map(|f| f.level_bits()).filter(|b| *b < bits).max();
            for n in 0..bucket.tiles() {
                let levels = bucket.format.unpack(bucket.tile(n));
                let most = 1 << (narrower.unwrap() - 1);
                assert!(levels.iter().any(|&l| i32::from(l) < -most || i32::from(l) >= most), "{rows}x{cols} {bits}");
            }
        }
        for bucket in &packed.buckets {
            assert_eq!(bucket.data.as_ptr() as usize % ALIGNMENT, 0, "{:?}", bucket.format);
            let tiles = bucket.tiles();
            assert_eq!(bucket.data.len(), tiles * bucket.format.tile_bytes());
            assert_eq!(bucket.row_starts.len(), rows.div_ceil(16) + 1);
            let plain = matches!(bucket.format, PackedFormat::Plain(_));
            assert_eq!(bucket.scales.len(), if plain { 0 } else { tiles });
        }
        // bf16 rounds by 2^-8 of the value at most; products of scales are exact to 2^-14.
        for (n, (a, b)) in packed.to_f32().iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= b.abs() * (1.0 / 256.0 + 1e-4), "{rows}x{cols} {n}: {a}, decoded {b}");
        }
        let elements = checkpoint.decode_packed("plain", Control::default()).unwrap();
        assert_eq!(elements.to_f32(), checkpoint.read_f32("plain", &[rows, cols]).unwrap());
        assert_eq!(elements.buckets[0].format, PackedFormat::Plain(Dtype::F32));
        assert!(packed.resident_bytes() < elements.resident_bytes() || tiles == 1);
    }
}

#[test]
fn packed_trellis_tiles_have_the_decoded_values() {
    for (rows, cols) in [(600, 300), (1000, 70), (33, 100), (16, 16), (1, 1)] {
        for (dtype, state_bits) in [(Dtype::F16, 8), (Dtype::Bf16, 12), (Dtype::F32, 16)] {
            let (plan, formats) = trellis_plan(dtype, rows, cols, state_bits);
            let weights: Vec<f32> = (0..rows * cols).map(weight).collect();
            let what = format!("{rows}x{cols} {dtype:?}, states of {state_bits} bits");
            let place = Place::of(encode_tensor(&plan, &weights).unwrap(), rows, cols);
            let checkpoint = place.open();
            let expected = checkpoint.read_f32("coded", &[rows, cols]).unwrap();
            let packed = checkpoint.decode_packed("coded", Control::default()).unwrap();
            assert_eq!((packed.rows, packed.cols, packed.dtype), (rows, cols, dtype));
            let restart = plan.slice_rows() / TILE;
            let states = BitShiftTrellis::new(state_bits).unwrap();
            assert_eq!(packed.trellis, Some(PackedTrellis { states, restart }), "{what}");
            let found: Vec<PackedFormat> = tiles(&packed).iter().map(|(bucket, _)| bucket.format).collect();
            assert_eq!(found, formats, "{what}");

            // Products with scales are rounded to binary32, and then to the tensor's type.
            let values = packed.to_f32();
            for (n, (a, b)) in values.iter().zip(&expected).enumerate() {
                assert_eq!(dtype.value_of(dtype.pattern_of(*a)), *b, "{what}: row {}, column {}", n / cols, n % cols);
            }
            for row in [0, 15, 16, 17, 255, 256, 257, 599, 959, 960, rows - 1].into_iter().filter(|r| *r < rows) {
                assert_eq!(packed.row(row).unwrap(), values[row * cols..][..cols], "{what}: row {row}");
            }
            assert!(packed.row(rows).is_none());
            for (row, states) in walked_states(&packed, plan.slice_rows()).into_iter().enumerate() {
                assert_eq!(packed.states_before(row), states, "{what}: row of tiles {row}");
            }

            let (down, across) = (rows.div_ceil(TILE), cols.div_ceil(TILE));
            let scales = formats.iter().filter(|f| !matches!(f, PackedFormat::Plain(_))).count();
            let bytes: usize = formats.iter().map(|f| f.code_bits().map_or(f.tile_bytes(), |b| 32 * b as usize)).sum();
            let buckets = packed.buckets.len() * (4 * (down + 1) + down * across.div_ceil(8) + 4);
            assert_eq!(packed.resident_bytes(), bytes + scales + buckets + rows + cols, "{what}");
        }
    }
}

/// What the test above relies on: several slices, states other than zero, and every width below every other format.
#[test]
fn trellis_plans_have_all_neighbours() {
    let (plan, formats) = trellis_plan(Dtype::Bf16, 600, 300, 12);
    assert_eq!((plan.slice_rows(), plan.slices()), (256, 3));
    let across = plan.tiles_across();
    let below = |above: PackedFormat, tile: PackedFormat| {
        (across..formats.len()).any(|n| n / across % 16 > 0 && formats[n - across] == above && formats[n] == tile)
    };
    let widths = || (1..=8).map(PackedFormat::Trellis);
    let others = [PackedFormat::Plain(Dtype::Bf16), PackedFormat::E4m3, PackedFormat::E5m2];
    for above in widths().chain(others) {
        assert!(widths().all(|tile| below(above, tile)), "{above:?}");
    }
    // Levels cover the weights: where codes are wide, values are near.
    let weights: Vec<f32> = (0..600 * 300).map(weight).collect();
    let place = Place::of(encode_tensor(&plan, &weights).unwrap(), 600, 300);
    let decoded = place.open().read_f32("coded", &[600, 300]).unwrap();
    let error = |bits| {
        let of = |n: &usize| formats[n / 300 / TILE * across + n % 300 / TILE] == PackedFormat::Trellis(bits);
        let squares = |f: &dyn Fn(usize) -> f32| (0..weights.len()).filter(of).map(|n| f(n).powi(2)).sum::<f32>();
        squares(&|n| decoded[n] - weights[n]) / squares(&|n| weights[n])
    };
    let errors: Vec<f32> = (1..=8).map(error).collect();
    assert!(errors.is_sorted_by(|a, b| a > b) && errors[0] < 1.0 && errors[7] < 1e-3, "{errors:?}");
}

#[test]
fn single_files_and_bytes_are_checkpoints_too() {
    let place = Place::new(64, 48);
    let file = place.dir.path().join("model.safetensors");
    let whole = place.open();
    let bytes = std::fs::read(&file).unwrap();
    let alone = Checkpoint::open(&file).unwrap();
    let memory = Checkpoint::of_bytes("somewhere", bytes.clone().into()).unwrap();
    for other in [&alone, &memory] {
        assert_eq!(other.tensors().count(), 2);
        for name in ["coded", "plain"] {
            assert_eq!(other.read_f32(name, &[64, 48]).unwrap(), whole.read_f32(name, &[64, 48]).unwrap());
        }
        assert_eq!(other.verify().unwrap().len(), 1);
        assert_eq!(other.bytes(), bytes.len() as u64);
    }
    let message = Checkpoint::of_bytes("somewhere", bytes[..500].to_vec().into()).err().unwrap().to_string();
    assert!(message.contains("somewhere"), "{message}");
    let mut damaged = bytes;
    let at = damaged.len() - 9_000;
    damaged[at] ^= 4;
    let damaged = Checkpoint::of_bytes("somewhere", damaged.into()).unwrap();
    assert!(damaged.verify().is_err());
    let failures = ["coded", "plain"].map(|name| damaged.decode_packed(name, Control::default()).is_err());
    assert!(failures.contains(&true));
}

/// An inference engine links this crate: nothing of training, calibration or the network comes with it.
#[test]
fn the_decoder_depends_on_few_crates() {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", "waterfill-checkpoint", "-e", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let names: std::collections::BTreeSet<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(names.contains("waterfill-codec") && names.contains("safetensors"), "{names:?}");
    for unwanted in ["candle-core", "candle-nn", "ndarray", "polars", "tokenizers", "faer", "gemm", "hf-hub", "ureq"] {
        assert!(!names.contains(unwanted), "{unwanted}");
    }
    let own: Vec<&&str> = names.iter().filter(|n| n.starts_with("waterfill")).collect();
    assert_eq!(own, [&"waterfill-checkpoint", &"waterfill-codec"]);
    assert!(names.len() < 60, "{}: {names:?}", names.len());
}
