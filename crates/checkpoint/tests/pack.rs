//! Packed files: every type comes back byte for byte, and every damage is noticed and named.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::TensorView;
use waterfill_checkpoint::Element;
use waterfill_checkpoint::pack::{pack, packed_records, unpack, verify_packed};

/// Roughly Gaussian with a standard deviation of 0.02.
fn weight(random: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..12).map(|_| random.next_u32() as f32 / u32::MAX as f32).sum();
    (sum - 6.0) * 0.02
}

/// A file with a tensor of every kind that is seen in checkpoints, also small, empty and odd ones.
fn write_file(path: &Path) {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut tensors: Vec<(String, Element, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, element, shape: &[usize], bytes: Vec<u8>| {
        tensors.push((name.into(), element, shape.to_vec(), bytes));
    };
    for (name, rows, cols) in
        [("a.weight", 80, 64), ("odd.weight", 17, 31), ("one.weight", 1, 1), ("row.weight", 1, 700)]
    {
        let f32s: Vec<f32> = (0..rows * cols).map(|_| weight(&mut random)).collect();
        let bf16: Vec<u8> = f32s.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
        add(&format!("bf16.{name}"), Element::BF16, &[rows, cols], bf16);
        add(&format!("f32.{name}"), Element::F32, &[rows, cols], f32s.iter().flat_map(|v| v.to_le_bytes()).collect());
        let codes: Vec<u8> = f32s.iter().map(|v| (v * 1000.0) as i8 as u8).collect();
        add(&format!("fp8.{name}"), Element::F8_E4M3, &[rows, cols], codes.clone());
        add(&format!("int.{name}"), Element::I8, &[rows, cols], codes);
        // Eight four-bit values in a word, as AWQ and GPTQ keep them.
        let nibble = |random: &mut ChaCha8Rng| (0..4).map(|_| random.next_u32() >> 30).sum::<u32>();
        let words = (0..rows * cols).map(|_| (0..8).fold(0u32, |w, n| w | nibble(&mut random) << (4 * n)));
        add(&format!("{name}.qweight"), Element::I32, &[rows, cols], words.flat_map(u32::to_le_bytes).collect());
    }
    add("bool", Element::BOOL, &[300], (0..300).map(|i| (i % 7 == 0) as u8).collect());
    add("wide", Element::I64, &[3, 100], (0..300u64).flat_map(u64::to_le_bytes).collect());
    add("empty", Element::F16, &[0, 4], vec![]);
    add("scalar", Element::F64, &[], 0.5f64.to_le_bytes().to_vec());
    add("nan", Element::F16, &[10, 64], vec![0xff; 1280]);
    // What was narrower before, has many zeros, was quantized, or is there twice.
    let f32s: Vec<f32> = (0..64 * 96).map(|_| weight(&mut random)).collect();
    let bf16 = |v: f32| (v.to_bits() + 0x7fff + (v.to_bits() >> 16 & 1)) >> 16;
    let bytes = |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
        values.flat_map(|v| (bf16(v) as u16).to_le_bytes()).collect()
    };
    let widened = f32s.iter().flat_map(|&v| (bf16(v) << 16).to_le_bytes());
    add("narrow", Element::F32, &[64, 96], widened.collect());
    let sparse = f32s.iter().map(|&v| if v.abs() < 0.015 { 0.0 } else { v });
    add("sparse", Element::BF16, &[64, 96], bytes(&mut sparse.clone()));
    add("sparse.copy", Element::BF16, &[64, 96], bytes(&mut sparse.clone()));
    let quantized = f32s.chunks(24).flat_map(|group| {
        let scale = group.iter().fold(1e-9f32, |m, v| m.max(v.abs())) / 7.0;
        group.iter().map(move |v| (v / scale).round() * scale)
    });
    add("quantized", Element::BF16, &[64, 96], bytes(&mut quantized.clone()));
    let views = tensors.iter().map(|(n, e, s, b)| (n.as_str(), TensorView::new(*e, s.clone(), b).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

fn packed() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("model.safetensors"), dir.path().join("model.wfp"));
    write_file(&plain);
    pack(&plain, &packed, &|_| {}).unwrap();
    (dir, plain, packed)
}

#[test]
fn every_type_comes_back() {
    let (dir, plain, packed) = packed();
    let back = dir.path().join("back.safetensors");
    let summary = unpack(&packed, &back, &|_| {}).unwrap();
    assert_eq!(std::fs::read(&plain).unwrap(), std::fs::read(&back).unwrap());
    assert_eq!(summary.original, plain.metadata().unwrap().len());
    assert!(summary.packed * 20 < summary.original * 17, "{summary:?}");
    // Neither is written over.
    let message = unpack(&packed, &plain, &|_| {}).unwrap_err().to_string();
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing unfinished is left");
}

#[test]
fn every_flipped_bit_is_noticed_and_its_place_is_named() {
    let (dir, _, packed) = packed();
    let bytes = std::fs::read(&packed).unwrap();
    let damaged_path = dir.path().join("damaged.wfp");
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut places = std::collections::BTreeSet::new();
    // Many anywhere, and every bit of the frame.
    let frame = (0..64).chain((bytes.len() - 16) * 8..bytes.len() * 8);
    let count = std::env::var("WATERFILL_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    for bit in frame.chain((0..count).map(|_| random.next_u32() as usize % (bytes.len() * 8)).collect::<Vec<_>>()) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&damaged_path, &damaged).unwrap();
        let error = verify_packed(&damaged_path).map(|_| ()).expect_err(&format!("flip of bit {bit} went unnoticed"));
        let message = error.to_string();
        assert!(message.contains("damaged.wfp"), "{message}");
        let place = ["tensor ", "head", "first four bytes"].iter().find(|p| message.contains(**p));
        places.insert(place.unwrap_or_else(|| panic!("bit {bit}: no place in {message}")).to_string());
    }
    assert_eq!(places.len(), 3, "{places:?}");
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let (dir, plain, packed) = packed();
    let bytes = std::fs::read(&packed).unwrap();
    let path = dir.path().join("cut");
    for length in [0, 3, 8, 23, 24, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(verify_packed(&path).is_err(), "{length} bytes");
    }
    assert!(verify_packed(&plain).unwrap_err().to_string().contains("WFPK"));
    let message = pack(&packed, &dir.path().join("x"), &|_| {}).unwrap_err().to_string();
    assert!(message.contains("not safetensors"), "{message}");
}

#[test]
fn directories_come_back_and_equal_tensors_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let [from, packed, back] = ["model", "model.wfp", "back"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(from.join("original/.hidden")).unwrap();
    write_file(&from.join("model.safetensors"));
    std::fs::copy(from.join("model.safetensors"), from.join("original/copy.safetensors")).unwrap();
    std::fs::write(from.join("config.json"), "{\"model_type\": \"llama\"}\n".repeat(40)).unwrap();
    std::fs::write(from.join(".gitattributes"), "").unwrap();
    std::fs::write(from.join("original/.hidden/odd.safetensors"), "no header").unwrap();
    std::fs::write(from.join("tokenizer.model"), (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<_>>())
        .unwrap();
    std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
    let summary = pack(&from, &packed, &|_| {}).unwrap();
    let size = from.join("model.safetensors").metadata().unwrap().len();
    assert!(summary.equal > size * 9 / 10, "{summary:?}");
    assert!(summary.packed < size * 9 / 10 && summary.original > 2 * size, "{summary:?}");
    assert_eq!((summary.files, summary.left_out.len()), (Some(6), 1), "{summary:?}");
    assert_eq!(unpack(&packed, &back, &|_| {}).unwrap().files, Some(6));
    for name in ["model.safetensors", "original/copy.safetensors", "config.json", ".gitattributes", "tokenizer.model"] {
        assert_eq!(std::fs::read(from.join(name)).unwrap(), std::fs::read(back.join(name)).unwrap(), "{name}");
    }
    assert!(back.join("original/.hidden/odd.safetensors").is_file());
    let found: Vec<String> = packed_records(&packed).unwrap().into_iter().filter_map(|r| r.found).collect();
    for words in ["bf16 values in f32", "many zeros", "groups of 24: was 4-bit", "equal to sparse of model.safetensors"]
    {
        assert!(found.iter().any(|f| f.contains(words)), "{words}: {found:?}");
    }
    // Damage is named by file and tensor.
    let mut bytes = std::fs::read(&packed).unwrap();
    bytes[500] ^= 1;
    std::fs::write(&packed, &bytes).unwrap();
    let message = unpack(&packed, &dir.path().join("never"), &|_| {}).unwrap_err().to_string();
    assert!(message.contains("of model.safetensors"), "{message}");
    assert!(!dir.path().join("never").exists());
}

#[test]
fn files_of_version_1_are_read() {
    use waterfill_codec::entropy::adaptive_rans::Encoder;
    use waterfill_codec::entropy::models::Coder;
    use waterfill_codec::syntax::header::check_of;
    use waterfill_codec::syntax::text::code_text;
    use waterfill_codec::{Dtype, Elements, encode_lossless};

    let dir = tempfile::tempdir().unwrap();
    let [packed, back] = ["old.wfp", "back"].map(|name| dir.path().join(name));
    let data: Vec<u8> = (0..2400u32).flat_map(|i| ((i % 97) as f32).to_le_bytes()).collect();
    let header = r#"{"a":{"dtype":"F32","shape":[40,60],"data_offsets":[0,9600]},"b":{"dtype":"U8","shape":[3],"data_offsets":[9600,9603]}}"#;
    let plain = raw(header, &[&data[..], &[1, 2, 3]].concat());
    let coded = encode_lossless(&Elements { dtype: Dtype::F32, rows: 40, cols: 60, period: 1 }, &data).unwrap();
    let mut head = Encoder::default();
    let number = |head: &mut Encoder, n: usize| {
        let bits = usize::BITS - n.leading_zeros();
        head.raw(7, bits);
        head.raw_wide(bits.saturating_sub(1), (n & ((1 << bits.saturating_sub(1)) - 1)) as u32);
    };
    number(&mut head, 8 + header.len());
    code_text(&mut head, &mut plain[..8 + header.len()].to_vec(), 8 + header.len());
    for &b in &blake3::hash(&plain).as_bytes()[..16] {
        head.raw(8, b.into());
    }
    number(&mut head, 2);
    head.raw(1, 1);
    number(&mut head, 9600);
    number(&mut head, coded.len());
    head.raw(1, 0);
    number(&mut head, 3);
    let check = check_of(&[&[1, 2, 3]]);
    head.raw_wide(32, check as u32);
    head.raw_wide(32, (check >> 32) as u32);
    let head = head.finish();
    let length = (head.len() as u64).to_le_bytes();
    let start = *b"WFPK\x01\0\0\0";
    let check = check_of(&[&start, &head, &length]).to_le_bytes();
    std::fs::write(&packed, [&start[..], &coded, &[1, 2, 3], &head, &length, &check].concat()).unwrap();
    assert_eq!(unpack(&packed, &back, &|_| {}).unwrap().files, None);
    assert_eq!(std::fs::read(&back).unwrap(), plain);
}

/// Found by fuzzing: a head of a few bytes that declares a header of 10^8 took minutes to be refused.
#[test]
fn small_heads_that_declare_much_are_refused() {
    use waterfill_codec::entropy::adaptive_rans::Encoder;
    use waterfill_codec::entropy::models::Coder;
    use waterfill_codec::syntax::header::check_of;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.wfp");
    for (prefix, records) in [(100_000_000u32, 0u32), (0, 4_000_000)] {
        let mut encoder = Encoder::default();
        let mut number = |n: u32| {
            let bits = 32 - n.leading_zeros();
            encoder.raw(7, bits);
            if bits > 1 {
                encoder.raw_wide(bits - 1, n & ((1 << (bits - 1)) - 1));
            }
        };
        number(prefix);
        if prefix == 0 {
            (0..16).for_each(|_| {
                encoder.raw(8, 0);
            });
            let bits = 32 - records.leading_zeros();
            encoder.raw(7, bits);
            encoder.raw_wide(bits - 1, records & ((1 << (bits - 1)) - 1));
        }
        let head = encoder.finish();
        let length = (head.len() as u64).to_le_bytes();
        let start = *b"WFPK\x01\0\0\0";
        let check = check_of(&[&start, &head, &length]).to_le_bytes();
        std::fs::write(&path, [&start[..], &head, &length, &check].concat()).unwrap();
        let message = verify_packed(&path).unwrap_err().to_string();
        assert!(message.contains("head"), "{message}");
    }
}

/// A file with this header and data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn odd_headers_come_back_or_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let [plain, packed, back] = ["a.safetensors", "a.wfp", "b"].map(|name| dir.path().join(name));
    let try_one = |bytes: &[u8]| -> Result<(), String> {
        std::fs::write(&plain, bytes).unwrap();
        pack(&plain, &packed, &|_| {}).map_err(|e| e.to_string())?;
        unpack(&packed, &back, &|_| {}).unwrap();
        assert_eq!(std::fs::read(&back).unwrap(), bytes);
        [&packed, &back].into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
        Ok(())
    };
    let one = |name: &str, dtype: &str, shape: &str, bytes: usize| {
        let name = serde_json::to_string(name).unwrap();
        let header = format!(r#"{{{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        raw(&header, &vec![3; bytes])
    };
    for name in ["", "..", "/etc/passwd", "a/b", "a\\b", "\u{0}\u{1}\u{7f}\n", "\u{fc}\u{1f984}", "\u{202e}x", " "] {
        try_one(&one(name, "F32", "[10,60]", 2400)).unwrap();
    }
    try_one(&raw("{}", b"")).unwrap();
    try_one(&raw("  {} \n ", b"")).unwrap();
    try_one(&raw(r#"{"__metadata__":{"":"\u0000","b":"x"}}"#, b"")).unwrap();
    try_one(&one("zero", "F32", "[0,3]", 0)).unwrap();
    try_one(&one("scalar", "F64", "[]", 8)).unwrap();
    // Two tensors without bytes at one place.
    let empty = r#""dtype":"F16","shape":[0],"data_offsets":[0,0]"#;
    try_one(&raw(&format!("{{\"x\":{{{empty}}},\"y\":{{{empty}}}}}"), b"")).unwrap();
    for (bytes, expected) in [
        (one("x", "F3", "[1]", 8), "F3"),
        (one("x", "F32", "[3]", 8), "header"),
        (one("x", "F32", "[18446744073709551615,18446744073709551615]", 8), "header"),
        (raw("[]", b""), "header"),
        (raw("{}", b"more"), "14 bytes"),
        (raw("{\"\u{fc}", b""), "header"),
    ] {
        let message = try_one(&bytes).unwrap_err();
        assert!(message.contains("a.safetensors") && message.contains(expected), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{message}");
    }
}
