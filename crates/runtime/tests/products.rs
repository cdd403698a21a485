//! Products from tiles, and texts, against dense weights.

use candle_core::{Device, Tensor};
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_quality_layers};
use waterfill_checkpoint::{Checkpoint, Control};
use waterfill_codec::encoder::quantize::quantize_slice;
use waterfill_codec::{CodedTensor, Dtype, Format, Scales, TensorEncoder, TensorPlan, TilePlan, encode_tensor};
use waterfill_fixture::{FAMILIES, small_config_of, write_random};
use waterfill_model::Linear;
use waterfill_runtime::{CodedLinear, Form, PackedLinear, Runtime, RuntimeError, SparseLinear, check};

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

#[test]
fn coded_matrices_multiply_and_look_up_as_their_values() {
    let (rows, cols) = (3000, 75);
    let (_dir, checkpoint) = coded(&[Format::Int4, Format::Lossless, Format::Fp8], (rows, cols));
    let values = checkpoint.read_f32("w", &[rows, cols]).unwrap();
    let held = CodedLinear::open(&checkpoint, "w").unwrap().unwrap();
    assert_eq!(held.resident_bytes(), checkpoint.read_raw("w").unwrap().len());
    let packed = PackedLinear::open(&checkpoint, "w").unwrap();
    let x =
        Tensor::from_vec((0..2 * cols).map(|n| (n as f32 * 0.377).cos()).collect(), (2, cols), &Device::Cpu).unwrap();
    let weights = Tensor::from_slice(&values, (rows, cols), &Device::Cpu).unwrap();
    let expected: Vec<Vec<f32>> = x.matmul(&weights.t().unwrap()).unwrap().to_vec2().unwrap();
    for found in [held.forward(&x).unwrap(), packed.forward(&x).unwrap()] {
        let found: Vec<Vec<f32>> = found.to_vec2().unwrap();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }
    // The first and the last slice, out of order and twice.
    let ids = [2999, 0, 17, 2999];
    let looked_up: Vec<Vec<f32>> = held.rows(&ids).unwrap().to_vec2().unwrap();
    let from_tiles: Vec<Vec<f32>> = packed.rows(&ids).unwrap().to_vec2().unwrap();
    for (n, &id) in ids.iter().enumerate() {
        let expected = &values[id as usize * cols..][..cols];
        assert_eq!(looked_up[n], expected);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 128.0;
        assert!(from_tiles[n].iter().zip(expected).all(near), "row {id}");
    }
    for matrix in [&held as &dyn Linear, &packed] {
        assert!(matrix.rows(&[3000]).unwrap_err().to_string().contains("row 3000 of 3000"));
    }
}

/// A base and a refinement, 2:4 sparse or not.
fn layered(sparse: bool, (rows, cols): (usize, usize)) -> (tempfile::TempDir, Checkpoint) {
    let (base_dir, base) = coded(&[Format::Int8], (rows, cols));
    let bytes = base.read_raw("w").unwrap();
    let coded = CodedTensor::parse(&bytes).unwrap();
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    plan.step_base = -100;
    let mut encoder = TensorEncoder::refining(&plan, Scales::of(coded.plan()), coded.decode().unwrap().0).unwrap();
    for n in 0..encoder.slices() {
        let top = encoder.rows(n).start * cols;
        let keep = |i: usize| !sparse || [i / cols % 3, 3].contains(&(i % cols % 4));
        let left: Vec<f32> = (0..encoder.rows(n).len() * cols)
            .map(|i| if keep(top + i) { ((top + i) as f32 * 0.917).cos() * 3e-3 } else { 0.0 })
            .collect();
        let slice = encoder.slice(n, |slice| quantize_slice(slice, &left)).unwrap();
        encoder.add(slice);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(base_dir.path().join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::copy(base_dir.path().join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let bytes = encoder.finish();
    let (length, data) = (bytes.len() as u64, Data::Made(Box::new(move || bytes.clone())));
    let entry = Entry { name: "w".into(), shape: vec![rows, cols], plain: None, bytes: length, data };
    write_quality_layers(dir.path(), &[vec![entry]]).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn sparse_refinements_are_multiplied_apart() {
    for (rows, cols) in [(40, 75), (16, 16), (300, 33)] {
        let (_dir, checkpoint) = layered(true, (rows, cols));
        let decoded = checkpoint.read("w").unwrap().to_f32();
        let found = checkpoint.decode_structured("w", Control::default()).unwrap().expect("2:4 sparse");
        let sum = found.base.to_f32().into_iter().zip(found.refinements[0].to_f32()).map(|(a, b)| a + b);
        for (n, (sum, decoded)) in sum.zip(&decoded).enumerate() {
            // The base is rounded to bf16 before it is refined, and what becomes of it is.
            assert!((sum - decoded).abs() <= 2.0 * decoded.abs().max(0.06) / 256.0, "{n}: {sum}, decoded {decoded}");
        }
        let sparse = SparseLinear::new(found.refinements.into_iter().next().unwrap());
        assert!(sparse.tensor().levels.iter().any(|l| *l != 0));
        assert_eq!(sparse.tensor().levels.len(), rows * cols.div_ceil(4) * 2);
        let weights = sparse.tensor().to_f32();
        let linear = PackedLinear::open(&checkpoint, "w").unwrap();
        assert_eq!(linear.refinements().len(), 1);
        let base = PackedLinear::new(found.base);
        for tokens in [1, 3] {
            let x: Vec<f32> = (0..tokens * cols).map(|n| (n as f32 * 0.377).cos()).collect();
            let mut products = vec![0.0; tokens * rows];
            sparse.add_to(&x, &mut products);
            for (n, product) in products.iter().enumerate() {
                let (x, w) = (&x[n / rows * cols..][..cols], &weights[n % rows * cols..][..cols]);
                let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
                let size: f64 = w.iter().zip(x).map(|(w, x)| f64::from((w * x).abs())).sum();
                assert!((f64::from(*product) - exact).abs() <= 1e-5 * size, "{rows}x{cols}: {product}, exact {exact}");
            }
            let both: Vec<f32> = base.multiply(&x).iter().zip(&products).map(|(a, b)| a + b).collect();
            assert_eq!(linear.multiply(&x), both);
        }
    }
    let (_dir, checkpoint) = layered(false, (40, 75));
    assert!(checkpoint.decode_structured("w", Control::default()).unwrap().is_none());
    assert!(PackedLinear::open(&checkpoint, "w").unwrap().refinements().is_empty());
    let (_dir, plain) = coded(&[Format::Int4], (16, 16));
    assert!(plain.decode_structured("w", Control::default()).unwrap().is_none(), "one layer");
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
        assert_eq!(checked.written[0].text, checked.written[2].text, "{name}");
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
