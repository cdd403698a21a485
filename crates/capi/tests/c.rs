//! The header, and a C program that uses it.

use std::path::{Path, PathBuf};
use std::process::Command;

use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_quality_layers};
use waterfill_codec::encoder::quantize::quantize_slice;
use waterfill_codec::{
    BitShiftTrellis, CodedTensor, Dtype, Format, Scales, TensorEncoder, TensorPlan, TileMode, TilePlan, encode_tensor,
};

/// Rows and columns of the tensor with a bit-shift trellis: edges cut tiles.
const TRELLIS_SHAPE: (usize, usize) = (600, 300);

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `WATERFILL_HEADER=write cargo test -p waterfill-capi` writes it.
#[test]
fn the_committed_header_is_what_the_code_gives() {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_config(config).with_src(here().join("src/lib.rs")).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let path = here().join("include/waterfill.h");
    if std::env::var_os("WATERFILL_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == made, "run WATERFILL_HEADER=write cargo test -p waterfill-capi");
}

/// The static library that was built with this test.
fn library() -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    let found = |dir: &Path| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().filter_map(|e| Some(e.ok()?.path())).collect();
        let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
        files.retain(|p| name(p).starts_with("libwaterfill") && name(p).ends_with(".a"));
        files.retain(|p| !name(p).contains("waterfill_"));
        files.into_iter().max_by_key(|p| p.metadata().unwrap().modified().unwrap())
    };
    found(&dir).or_else(|| found(dir.parent().unwrap())).expect("cargo builds the static library with its tests")
}

/// Row and column scales, and no formats yet.
fn scaled(rows: usize, cols: usize) -> TensorPlan {
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    plan.row_scale = (0..rows).map(|r| (r % 5) as i8 - 2).collect();
    plan.col_scale = (0..cols).map(|c| (c % 3) as i8 - 1).collect();
    plan
}

/// Values of bf16.
fn weights(rows: usize, cols: usize) -> Vec<f32> {
    let exact = (0..rows * cols).map(|n| (n as f32 * 0.731).sin() * 0.06);
    exact.map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect()
}

/// A tensor of three slices with codes of a bit-shift trellis of every width, and lossless tiles. What lies below a tile
/// differs from column to column.
fn trellis(rows: usize, cols: usize) -> Vec<u8> {
    let mut plan = scaled(rows, cols);
    // Levels have a root mean square of 84.5, weights one of 0.04.
    plan.step_base = -89;
    plan.parameters.bit_shift = BitShiftTrellis::new(12);
    let across = plan.tiles_across();
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        match (n / across * (n % across) + n % across) % 9 {
            0 => tile.format = Format::Lossless,
            bits => tile.mode = TileMode::BitShift(bits as u8),
        }
    }
    assert_eq!(plan.slices(), 3);
    encode_tensor(&plan, &weights(rows, cols)).unwrap()
}

fn checkpoint(dir: &Path) {
    let (rows, cols) = (200, 70);
    let mut plan = scaled(rows, cols);
    plan.step_base = -48;
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        tile.format = [Format::Int4, Format::Int8, Format::Lossless, Format::Fp8][n % 4];
        tile.step = if tile.format == Format::Int4 { 0 } else { -12 };
    }
    let weights = weights(rows, cols);
    let bytes = encode_tensor(&plan, &weights).unwrap();
    let plain: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
    let entry = |name: &str, (rows, cols), plain, bytes: Vec<u8>| Entry {
        name: name.into(),
        shape: vec![rows, cols],
        plain,
        bytes: bytes.len() as u64,
        data: Data::Made(Box::new(move || bytes.clone())),
    };
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("config.json"), "{}").unwrap();
    let entries = [
        entry("a", (rows, cols), None, bytes),
        entry("b", (rows, cols), Some(waterfill_checkpoint::Element::F32), plain),
        entry("c", TRELLIS_SHAPE, None, trellis(TRELLIS_SHAPE.0, TRELLIS_SHAPE.1)),
    ];
    write_checkpoint(from.path(), dir, &entries, true).unwrap();
}

/// A base and a refinement.
fn layered(dir: &Path) {
    let (rows, cols) = (64, 48);
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    plan.step_base = -32;
    let weights: Vec<f32> = (0..rows * cols).map(|n| (n as f32 * 0.731).sin()).collect();
    let weights: Vec<f32> = weights.iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect();
    let base = encode_tensor(&plan, &weights).unwrap();
    let coded = CodedTensor::parse(&base).unwrap();
    let known = coded.decode().unwrap().0;
    let value = |b: &[u8]| Dtype::Bf16.value_of(u16::from_le_bytes([b[0], b[1]]).into());
    let left: Vec<f32> = known.chunks_exact(2).zip(&weights).map(|(b, w)| w - value(b)).collect();
    plan.step_base -= 16;
    let mut encoder = TensorEncoder::refining(&plan, Scales::of(coded.plan()), known).unwrap();
    for n in 0..encoder.slices() {
        let rows = encoder.rows(n);
        let slice = encoder.slice(n, |s| quantize_slice(s, &left[rows.start * cols..rows.end * cols])).unwrap();
        encoder.add(slice);
    }
    let entry = |bytes: Vec<u8>| Entry {
        name: "a".into(),
        shape: vec![rows, cols],
        plain: None,
        bytes: bytes.len() as u64,
        data: Data::Made(Box::new(move || bytes.clone())),
    };
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("config.json"), "{}").unwrap();
    let finer = entry(encoder.finish());
    write_checkpoint(from.path(), dir, &[entry(base)], true).unwrap();
    write_quality_layers(dir, &[vec![finer]]).unwrap();
}

#[test]
fn a_c_program_decodes_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let [program, model, layers] = ["demo", "model", "layers"].map(|name| dir.path().join(name));
    std::fs::create_dir(&model).unwrap();
    std::fs::create_dir(&layers).unwrap();
    checkpoint(&model);
    layered(&layers);
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg(here().join("tests/demo.c"))
        .arg("-I")
        .arg(here().join("include"))
        .arg(library())
        .args(["-lpthread", "-ldl", "-lm"])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).arg(&model).arg(&layers).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Of 200 x 70 weights those in FP8 tiles, a quarter, are left out; of those with a trellis none.
    let text = String::from_utf8(output.stdout).unwrap();
    let compared: usize = text.rsplit(", ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    let trellis = TRELLIS_SHAPE.0 * TRELLIS_SHAPE.1;
    let expected = trellis + 9_000..trellis + 12_000;
    assert!(text.starts_with("3 tensors, 2 coded, ") && expected.contains(&compared), "{text}");
}
