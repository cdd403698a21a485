//! Layers of quality: prefixes by layer and by byte, refinement in place, and what is refused.

use std::path::Path;

use waterfill_checkpoint::writer::{Data, Entry, quality_layer_name, write_checkpoint, write_quality_layers};
use waterfill_checkpoint::{Checkpoint, Control, Element, QualityPrefix};
use waterfill_codec::encoder::quantize::quantize_slice;
use waterfill_codec::{CodedTensor, Dtype, Scales, TensorEncoder, TensorPlan, TilePlan, encode_tensor};

const SHAPES: [(&str, usize, usize); 3] = [("a", 300, 70), ("b", 64, 33), ("c", 16, 1040)];
const LAYERS: usize = 3;

fn weights(rows: usize, cols: usize, seed: f32) -> Vec<f32> {
    let weight = |n: usize| (n as f32 * (0.731 + seed)).sin() + 0.4 * (n as f32 * 0.113).cos();
    (0..rows * cols).map(|n| f32::from_bits(weight(n).to_bits() & 0xffff_0000)).collect()
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| Dtype::Bf16.value_of(u16::from_le_bytes([b[0], b[1]]).into())).collect()
}

/// A base and refinements of one matrix, each with steps of a quarter of those before.
fn coded(rows: usize, cols: usize, seed: f32) -> Vec<Vec<u8>> {
    let weights = weights(rows, cols, seed);
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    plan.step_base = -8;
    plan.row_scale = (0..rows).map(|r| (r % 5) as i8 - 2).collect();
    let mut layers = vec![encode_tensor(&plan, &weights).unwrap()];
    let mut known = CodedTensor::parse(&layers[0]).unwrap().decode().unwrap().0;
    for n in 1..LAYERS {
        plan.step_base -= 16;
        let left: Vec<f32> = weights.iter().zip(values(&known)).map(|(w, k)| w - k).collect();
        let scales = Scales::of(CodedTensor::parse(&layers[0]).unwrap().plan());
        let mut encoder = TensorEncoder::refining(&plan, scales, known.clone()).unwrap();
        for n in 0..encoder.slices() {
            let rows = encoder.rows(n);
            let part = &left[rows.start * cols..rows.end * cols];
            let slice = encoder.slice(n, |slice| quantize_slice(slice, part)).unwrap();
            encoder.add(slice);
        }
        layers.push(encoder.finish());
        let base = CodedTensor::parse(&layers[0]).unwrap();
        CodedTensor::parse(&layers[n]).unwrap().refining(&base).unwrap().refine(&mut known).unwrap();
    }
    layers
}

fn entry(name: &str, (rows, cols): (usize, usize), bytes: Vec<u8>) -> Entry<'static> {
    let length = bytes.len() as u64;
    let data = Data::Made(Box::new(move || bytes.clone()));
    Entry { name: name.into(), shape: vec![rows, cols], plain: None, data, bytes: length }
}

/// A compressed checkpoint in layers, with a plain tensor next to the coded ones.
fn write(dir: &Path, seed: f32) {
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("config.json"), "{}").unwrap();
    let mut layers: Vec<Vec<Entry>> = (0..LAYERS).map(|_| vec![]).collect();
    // The names that come first are not the most important.
    for (name, rows, cols) in SHAPES.into_iter().rev() {
        for (layer, bytes) in layers.iter_mut().zip(coded(rows, cols, seed)) {
            layer.push(entry(name, (rows, cols), bytes));
        }
    }
    let plain = Entry { plain: Some(Element::F32), ..entry("plain", (2, 3), vec![0; 24]) };
    layers[0].push(plain);
    let rest = layers.split_off(1);
    write_checkpoint(from.path(), dir, &layers[0], true).unwrap();
    write_quality_layers(dir, &rest).unwrap();
}

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0.0);
    dir
}

fn error(checkpoint: &Checkpoint, name: &str) -> f64 {
    let (_, rows, cols) = SHAPES.into_iter().find(|s| s.0 == name).unwrap();
    let found = checkpoint.read_f32(name, &[rows, cols]).unwrap();
    found.iter().zip(weights(rows, cols, 0.0)).map(|(f, w)| f64::from(f - w).powi(2)).sum()
}

#[test]
fn every_layer_makes_values_finer_and_refining_in_place_gives_the_same() {
    let dir = place();
    let all = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(all.quality_layers(), LAYERS);
    let lines = all.verify().unwrap();
    assert_eq!(lines.len(), LAYERS, "{lines:?}");
    for (name, rows, cols) in SHAPES {
        let mut last = f64::INFINITY;
        for layers in 1..=LAYERS {
            let prefix = Checkpoint::open_prefix(dir.path(), QualityPrefix::Layers(layers)).unwrap();
            assert_eq!(prefix.quality_layers(), layers);
            assert!(error(&prefix, name) < 0.3 * last, "{name} in {layers} layers");
            last = error(&prefix, name);
            let mut known = vec![0; rows * cols * 2];
            prefix.decode(name, Dtype::Bf16, &mut known, Control::default()).unwrap();
            assert_eq!(known, prefix.read(name).unwrap().bytes);
            let mut wide = vec![0; rows * cols * 4];
            prefix.decode(name, Dtype::F32, &mut wide, Control::default()).unwrap();
            let exact: Vec<u8> = values(&known).iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(wide, exact);
            all.refine(name, layers, &mut known, Control::default()).unwrap();
            assert_eq!(known, all.read(name).unwrap().bytes, "{name} from {layers} layers");
        }
        let packed = all.decode_packed(name, Control::default()).unwrap();
        assert_eq!(packed.to_f32(), values(&all.read(name).unwrap().bytes));
        // Values of other layers than is said are noticed.
        let mut base = vec![0; rows * cols * 2];
        let message = all.refine(name, 1, &mut base, Control::default()).unwrap_err().to_string();
        assert!(message.contains("digest") && message.contains("refinement-1-of-2"), "{message}");
    }
}

#[test]
fn any_number_of_bytes_is_a_checkpoint() {
    let dir = place();
    let all = Checkpoint::open(dir.path()).unwrap();
    let base = Checkpoint::open_prefix(dir.path(), QualityPrefix::Layers(1)).unwrap();
    let total = |c: &Checkpoint| SHAPES.iter().map(|s| error(c, s.0)).sum::<f64>();
    let (mut last, mut used) = (total(&base), base.bytes());
    let mut steps = 0;
    for bytes in (base.bytes()..all.bytes() + 60).step_by(60) {
        let prefix = Checkpoint::open_prefix(dir.path(), QualityPrefix::Bytes(bytes)).unwrap();
        assert!(prefix.bytes() <= bytes);
        if prefix.bytes() == used {
            continue;
        }
        used = prefix.bytes();
        assert!(total(&prefix) <= last);
        steps += usize::from(total(&prefix) < last);
        last = total(&prefix);
    }
    assert_eq!((last, steps), (total(&all), 6), "three tensors in two layers, one after the other");
    // The first tensor written, not the first by name, is refined first.
    let first = (base.bytes()..).step_by(1000).find_map(|bytes| {
        let prefix = Checkpoint::open_prefix(dir.path(), QualityPrefix::Bytes(bytes)).unwrap();
        (total(&prefix) < total(&base)).then_some(prefix)
    });
    assert!(error(&first.unwrap(), "c") < error(&base, "c"));
    let message = Checkpoint::open_prefix(dir.path(), QualityPrefix::Bytes(100)).err().unwrap().to_string();
    assert!(message.contains("100 bytes") && message.contains(&base.bytes().to_string()), "{message}");
}

#[test]
fn what_arrived_of_the_last_layer_is_used() {
    let dir = place();
    let path = dir.path().join(quality_layer_name(2, 2));
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [header, header + 1000, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let cut = Checkpoint::open(dir.path()).unwrap();
        cut.verify().unwrap();
        assert!(
            cut.bytes()
                <= Checkpoint::open_prefix(dir.path(), QualityPrefix::Layers(2)).unwrap().bytes() + length as u64
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().quality_layers(), 2);
}

#[test]
fn layers_that_do_not_fit_are_refused_by_name() {
    let (dir, other) = (place(), tempfile::tempdir().unwrap());
    write(other.path(), 0.01);
    let open = || Checkpoint::open(dir.path()).and_then(|c| c.verify());
    let (first, second) = (dir.path().join(quality_layer_name(1, 2)), dir.path().join(quality_layer_name(2, 2)));
    let bytes = std::fs::read(&first).unwrap();

    std::fs::copy(other.path().join(quality_layer_name(1, 2)), &first).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(message.contains("refinement-1-of-2") && message.contains("another checkpoint"), "{message}");

    std::fs::remove_file(&first).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(message.contains("refinement-2-of-2") && message.contains("refinement-1-of-2"), "{message}");

    std::fs::copy(&second, &first).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(message.contains("says that it is layer 2"), "{message}");

    std::fs::copy(dir.path().join("model.safetensors"), &first).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(message.contains("no refinement layer"), "{message}");

    // Every damaged byte, of the header or of tensors.
    for at in (0..bytes.len()).step_by(97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&first, damaged).unwrap();
        assert!(open().is_err(), "byte {at} of {}", bytes.len());
    }
    std::fs::write(&first, &bytes).unwrap();
    open().unwrap();
    let names = |n| Checkpoint::open_prefix(dir.path(), QualityPrefix::Layers(n));
    assert!(names(0).is_err() && names(9).unwrap().quality_layers() == LAYERS);
}

#[test]
fn layers_that_cannot_be_read_are_refused_when_they_are_written() {
    let coded = coded(64, 33, 0.0);
    let refused = |layer: Vec<Entry>, expected: &str| {
        let [from, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("config.json"), "{}").unwrap();
        write_checkpoint(from.path(), dir.path(), &[entry("b", (64, 33), coded[0].clone())], true).unwrap();
        let message = write_quality_layers(dir.path(), &[layer]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let mut damaged = coded[1].clone();
    *damaged.last_mut().unwrap() ^= 1;
    let layer = |name: &str, bytes: &Vec<u8>| entry(name, (64, 33), bytes.clone());
    refused(vec![layer("b", &damaged)], "not written, since it does not come back");
    refused(vec![layer("b", &coded[2])], "not written, since it does not come back");
    refused(vec![layer("b", &vec![7; 64])], "does not begin as a coded tensor does");
    refused(vec![layer("c", &coded[1])], "is not in the base");
    refused(vec![layer("b", &coded[1]), layer("b", &coded[1])], "tensor b: is given twice");
    refused(vec![layer("__metadata__", &coded[1])], "metadata");
}
