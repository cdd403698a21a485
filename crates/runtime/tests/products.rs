//! Products from tiles, and texts, against dense weights.

use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
use waterfill_checkpoint::{Checkpoint, Control};
use waterfill_codec::{Dtype, Format, TensorPlan, TilePlan, encode_tensor};
use waterfill_fixture::{FAMILIES, small_config_of, write_random};
use waterfill_runtime::{Form, PackedLinear, Runtime, RuntimeError, check};

/// A matrix of some formats with scales of rows and columns, of a size that cuts tiles.
fn coded(formats: &[Format], (rows, cols): (usize, usize)) -> (tempfile::TempDir, Checkpoint) {
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    plan.step_base = -48;
    plan.row_scale = (0..rows).map(|r| (r % 7) as i8 - 3).collect();
    plan.col_scale = (0..cols).map(|c| (c % 4) as i8 - 2).collect();
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        tile.format = formats[n % formats.len()];
        tile.step = if tile.format == Format::Int4 { 0 } else { -12 };
    }
    let weights: Vec<f32> =
        (0..rows * cols).map(|n| f32::from_bits((((n as f32 * 0.731).sin() * 0.06).to_bits()) & 0xffff_0000)).collect();
    let bytes = encode_tensor(&plan, &weights).unwrap();
    let (dir, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(from.path().join("config.json"), "{}").unwrap();
    let entry = Entry {
        name: "w".into(),
        shape: vec![rows, cols],
        plain: None,
        bytes: bytes.len() as u64,
        data: Data::Made(Box::new(move || bytes.clone())),
    };
    write_checkpoint(from.path(), dir.path(), &[entry], true).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn products_from_tiles_are_those_of_their_values() {
    let all = [Format::Int4, Format::Int8, Format::Fp8, Format::Lossless, Format::Fp8E5M2];
    let sets: [&[Format]; 4] = [&[Format::Int4], &[Format::Int8], &[Format::Lossless], &all];
    for (formats, size) in sets.into_iter().flat_map(|f| [(40, 75), (16, 16), (300, 33)].map(|size| (f, size))) {
        let (_dir, checkpoint) = coded(formats, size);
        let (rows, cols) = size;
        let linear = PackedLinear::new(checkpoint.decode_packed("w", Control::default()).unwrap());
        let weights = linear.tensor().to_f32();
        for tokens in [1, 5] {
            let x: Vec<f32> = (0..tokens * cols).map(|n| (n as f32 * 0.377).cos()).collect();
            let found = linear.multiply(&x);
            assert_eq!(found.len(), tokens * rows);
            for (t, x) in x.chunks_exact(cols).enumerate() {
                for (r, w) in weights.chunks_exact(cols).enumerate() {
                    let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let size: f64 = w.iter().zip(x).map(|(w, x)| f64::from((w * x).abs())).sum();
                    let error = (f64::from(found[t * rows + r]) - exact).abs();
                    assert!(error <= 1e-5 * size, "{formats:?} {rows}x{cols}, row {r}: off by {error}");
                }
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(pool.install(|| linear.multiply(&x)), found, "threads do not matter");
        }
    }
}

/// Of plain checkpoints tiles hold the same values: both forms write the same.
#[test]
fn families_write_the_same_from_tiles_and_from_dense_weights() {
    for name in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let mut config = small_config_of(name).unwrap();
        config["torch_dtype"] = "bfloat16".into();
        write_random(dir.path(), &config, 3).unwrap();
        let checked = check(dir.path(), "Ada sees the red fox", 12).unwrap();
        let worst = checked.layers.iter().map(|l| l.error).fold(0.0, f64::max);
        assert!(worst < 1e-6 && checked.kl < 1e-7, "{name}: {worst} {}", checked.kl);
        assert_eq!(checked.written[0].text, checked.written[1].text, "{name}");
        assert_eq!(checked.layers.len(), 7 * config["num_hidden_layers"].as_u64().unwrap() as usize, "{name}");
    }
}

#[test]
fn prompts_must_leave_room() {
    let dir = tempfile::tempdir().unwrap();
    write_random(dir.path(), &small_config_of("llama3-8b").unwrap(), 3).unwrap();
    let runtime = Runtime::open(dir.path(), Form::Packed).unwrap();
    let error = runtime.write(&"Ada sees the red fox . ".repeat(100), 8).unwrap_err();
    assert!(matches!(error, RuntimeError::Prompt { .. }) && error.to_string().contains("expected 1 to"), "{error}");
    assert_eq!(runtime.write("Ada", 3).unwrap().tokens, 3);
}
