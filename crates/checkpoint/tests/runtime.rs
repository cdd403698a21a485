//! What inference runtimes use: decoding into their buffers, tiles to compute with, opening files and bytes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use waterfill_checkpoint::packed::{ALIGNMENT, PackedFormat};
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Control, Element};
use waterfill_codec::{Dtype, Format, TensorPlan, TilePlan, encode_tensor};

const FORMATS: [Format; 5] = [Format::Int4, Format::Int8, Format::Fp8, Format::Fp8E5M2, Format::Lossless];

fn weight(n: usize) -> f32 {
    let wave = (n as f32 * 0.731).sin() + 0.4 * (n as f32 * 0.113).cos();
    // A value of bf16.
    f32::from_bits((wave * 0.05).to_bits() & 0xffff_0000)
}

/// A tensor with tiles of every format in turn, and row and column scales.
fn coded(rows: usize, cols: usize) -> Vec<u8> {
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    // Steps of about 2^-6.
    plan.step_base = -48;
    plan.row_scale = (0..rows).map(|r| (r % 5) as i8 - 2).collect();
    plan.col_scale = (0..cols).map(|c| (c % 3) as i8 - 1).collect();
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

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A compressed checkpoint with a coded and a plain matrix.
    fn new(rows: usize, cols: usize) -> Self {
        let (dir, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("config.json"), "{}").unwrap();
        let bytes = coded(rows, cols);
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
