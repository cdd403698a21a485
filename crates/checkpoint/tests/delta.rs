//! Deltas between checkpoints: every file comes back byte for byte, another base and every damage are named.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::TensorView;
use waterfill_checkpoint::Element;
use waterfill_checkpoint::delta::{Coders, Counts, DeltaSummary, Factors, apply, delta, delta_with, verify};
use waterfill_codec::Dtype;

type Tensors = Vec<(String, Element, Vec<usize>, Vec<u8>)>;

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(n, e, s, b)| (n.as_str(), TensorView::new(*e, s.clone(), b).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

/// A base, and a fine-tune with changed, unchanged, new and resized tensors, in shards cut otherwise.
fn make(dir: &Path) -> [PathBuf; 2] {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let weights = |random: &mut ChaCha8Rng, element: Element, count: usize| -> Vec<u8> {
        let value = |random: &mut ChaCha8Rng| ((random.next_u32() % 2001) as f32 - 1000.0) * 3e-5;
        let bytes = |v: f32| match element {
            Element::BF16 => ((v.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        };
        (0..count).flat_map(|_| bytes(value(random))).collect()
    };
    let mut base: Tensors = Vec::new();
    for (name, element) in [("a", Element::BF16), ("b", Element::F32), ("c", Element::BF16), ("d", Element::F16)] {
        let bytes = match element {
            Element::F16 => (0..6000).flat_map(|_| (random.next_u32() as u16 & 0x3fff).to_le_bytes()).collect(),
            _ => weights(&mut random, element, 6000),
        };
        base.push((name.into(), element, vec![60, 100], bytes));
    }
    base.push(("ids".into(), Element::I64, vec![50], (0..50u64).flat_map(u64::to_le_bytes).collect()));
    let mut fine_tune = base.clone();
    for (n, width) in [(0, 2), (1, 4), (3, 2)] {
        for element in fine_tune[n].3.chunks_exact_mut(width) {
            if random.next_u32().is_multiple_of(5) {
                element[0] ^= random.next_u32() as u8 & 7;
            }
        }
    }
    let adapter = weights(&mut random, Element::BF16, 6000);
    fine_tune.push(("new".into(), Element::BF16, vec![100, 60], adapter));
    fine_tune[4].3[8] ^= 1;
    let dirs = ["base", "tuned"].map(|name| dir.join(name));
    dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    write(&dirs[0].join("model-00001-of-00002.safetensors"), &base[..2].to_vec());
    write(&dirs[0].join("model-00002-of-00002.safetensors"), &base[2..].to_vec());
    write(&dirs[1].join("model.safetensors"), &fine_tune);
    for (n, dir) in dirs.iter().enumerate() {
        std::fs::write(dir.join("tokenizer.json"), "{\"same\": true}").unwrap();
        std::fs::write(dir.join("config.json"), format!("{{\"tuned\": {n}}}")).unwrap();
    }
    dirs
}

/// All files below a directory with their bytes.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => {
                all.extend(files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)))
            }
            false => all.push((name, std::fs::read(entry.path()).unwrap())),
        }
    }
    all.sort();
    all
}

fn made(dir: &Path) -> ([PathBuf; 2], PathBuf, DeltaSummary) {
    let dirs = make(dir);
    let out = dir.join("delta");
    let summary = delta(&dirs[0], &dirs[1], &out, &|_| {}).unwrap();
    (dirs, out, summary)
}

#[test]
fn fine_tunes_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let ([base, fine_tune], out, summary) = made(dir.path());
    // Three changed tensors, one the base's; the integers and the new one go alone.
    assert_eq!(summary.tensors, Counts { same: 1, given: 3, low_rank: 0, alone: 2 });
    assert!(summary.delta < summary.fine_tune, "{summary:?}");
    let names: Vec<String> = files(&out).into_iter().map(|f| f.0).collect();
    assert_eq!(
        names,
        ["coded/model.safetensors.wfd", "delta.json", "stored/config.json"],
        "unchanged files take no room"
    );
    let restored = dir.path().join("restored");
    assert_eq!(apply(&base, &out, &restored, &|_| {}).unwrap().fine_tune, summary.fine_tune);
    assert_eq!(files(&restored), files(&fine_tune));
    for (what, message) in [
        ("delta", delta(&base, &fine_tune, &out, &|_| {}).unwrap_err().to_string()),
        ("restored", apply(&base, &out, &restored, &|_| {}).unwrap_err().to_string()),
    ] {
        assert!(message.contains(what) && message.contains("exists already"), "{message}");
    }
    // Of a checkpoint and itself nothing is left but the list.
    let nothing = dir.path().join("nothing");
    delta(&fine_tune, &fine_tune, &nothing, &|_| {}).unwrap();
    assert_eq!(files(&nothing).len(), 1);
    apply(&fine_tune, &nothing, &dir.path().join("copy"), &|_| {}).unwrap();
    assert_eq!(files(&dir.path().join("copy")), files(&fine_tune));
}

#[test]
fn another_base_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let ([base, _], out, _) = made(dir.path());
    let shard = base.join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, other).unwrap();
    let restored = dir.path().join("restored");
    let message = apply(&base, &out, &restored, &|_| {}).unwrap_err().to_string();
    assert!(message.contains("model-00002-of-00002.safetensors") && message.contains("another base"), "{message}");
    std::fs::remove_file(&shard).unwrap();
    let message = apply(&base, &out, &restored, &|_| {}).unwrap_err().to_string();
    assert!(message.contains("is not there"), "{message}");
    assert!(!restored.exists(), "nothing is made of another base");
    std::fs::write(&shard, bytes).unwrap();
    apply(&base, &out, &restored, &|_| {}).unwrap();
}

#[test]
fn every_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let ([base, fine_tune], out, _) = made(dir.path());
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for (n, name) in ["coded/model.safetensors.wfd", "delta.json", "stored/config.json"].into_iter().enumerate() {
        let path = out.join(name);
        let bytes = std::fs::read(&path).unwrap();
        for round in 0..150 {
            let mut damaged = bytes.clone();
            let at = random.next_u32() as usize % bytes.len();
            match round % 3 {
                0 => damaged.truncate(at),
                _ => damaged[at] ^= 1 << (random.next_u32() % 8),
            }
            std::fs::write(&path, &damaged).unwrap();
            let restored = dir.path().join(format!("restored-{n}-{round}"));
            assert_eq!(
                verify(&base, &out, &|_| {}).is_ok(),
                apply(&base, &out, &restored, &|_| {}).is_ok(),
                "{name} {at}"
            );
            if restored.exists() {
                // White space in the list means nothing.
                assert!(name == "delta.json" && files(&restored) == files(&fine_tune), "{name} {at}");
                std::fs::remove_dir_all(&restored).unwrap();
            }
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    let path = out.join("delta.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"config.json\"", "\"../config.json\"")).unwrap();
    let message = apply(&base, &out, &dir.path().join("x"), &|_| {}).unwrap_err().to_string();
    assert!(message.contains("leaves the directory"), "{message}");
}

/// A merged product is stored as its factors: smaller, exact, and every damage is noticed.
#[test]
fn changes_of_low_rank_are_factors() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, cols) = (96, 128);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut value = || (random.next_u32() % 2001) as f32 * 1e-3 - 1.0;
    let base: Vec<f32> = (0..rows * cols).map(|_| value() * 0.05).collect();
    let component = (0..rows).map(|_| f64::from(value())).collect::<Vec<_>>();
    let component = vec![(component, (0..cols).map(|_| f64::from(value()) * 1e-3).collect::<Vec<_>>())];
    let bf16 = |v: f32| Dtype::Bf16.pattern_of(v) as u16;
    let bytes = |value: &dyn Fn(usize) -> f32| -> Vec<u8> {
        (0..rows * cols).flat_map(|n| bf16(value(n)).to_le_bytes()).collect()
    };
    let change = |n: usize| (component[0].0[n / cols] * component[0].1[n % cols]) as f32;
    let tensors = [bytes(&|n| base[n]), bytes(&|n| Dtype::Bf16.value_of(bf16(base[n]).into()) + change(n))];
    let dirs = ["base", "tuned"].map(|name| dir.path().join(name));
    for (dir, bytes) in dirs.iter().zip(tensors) {
        std::fs::create_dir(dir).unwrap();
        write(&dir.join("model.safetensors"), &vec![("w".into(), Element::BF16, vec![rows, cols], bytes)]);
    }
    let [base, fine_tune] = &dirs;
    let factors = |shape: [usize; 2], _, _: &[f32], _: &[f32]| {
        assert_eq!(shape, [rows, cols]);
        Factors::new(&component, 2).into_iter().collect()
    };
    let coders = Coders { factors: Some(&factors), ..Coders::default() };
    let [out, plain] = ["delta", "plain"].map(|name| dir.path().join(name));
    let summary = delta_with(base, fine_tune, &out, &coders, &|_| {}).unwrap();
    assert_eq!(summary.tensors, Counts { low_rank: 1, ..Counts::default() });
    let without = delta(base, fine_tune, &plain, &|_| {}).unwrap().delta;
    assert!(summary.delta * 2 < without, "{} bytes, {without} without factors", summary.delta);
    apply(base, &out, &dir.path().join("again"), &|_| {}).unwrap();
    assert_eq!(files(&dir.path().join("again")), files(fine_tune));
    let path = out.join("coded/model.safetensors.wfd");
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        let restored = dir.path().join(format!("restored-{at}"));
        // The last bit of a factor may change nothing.
        let found = apply(base, &out, &restored, &|_| {});
        assert!(found.is_err() || files(&restored) == files(fine_tune), "byte {at}");
    }
}
