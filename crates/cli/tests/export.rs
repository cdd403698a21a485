//! Exported files, from the configuration to values read back; `crates/export/test.sh` reads one with ggml's own package.

mod common;

use common::{Place, files, pipeline};

/// A pipeline over the embedded model; `allocate` is the body of that section.
fn tiny(allocate: &str) -> String {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../calibration-data");
    format!(
        "name: tiny\nmodel: path:{data}/tiny\n\
         calibrate: {{text: {data}/world/calibration.txt, context: 64, sequences: 8}}\n\
         allocate: {{{allocate}}}\n\
         evaluate: {{text: {data}/world/validation.txt, context: 64, sequences: 8}}\n"
    )
}

#[test]
fn exported_files_have_the_wanted_size_and_say_what_they_lose() {
    let place = Place::new();
    place.write("p.yaml", &tiny("sizes: [{bits_per_weight: 3.5}, {bits_per_weight: 6}]"));
    let output = place.json(&["export", "p.yaml", "--to", "gguf", "--out", "files"]);
    let points = output["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    let figure = |n: usize, key: &str| points[n][key].as_f64().unwrap();
    assert!(figure(0, "bytes") < figure(1, "bytes") && figure(0, "kl") > figure(1, "kl"));
    for (n, bits) in [(0, 3.5), (1, 6.0)] {
        let found = figure(n, "bits_per_weight");
        assert!(found <= bits && found > bits - 0.1, "{found} for {bits}");
        let file = place.path(points[n]["file"].as_str().unwrap());
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!((&bytes[..4], bytes.len() as f64), (&b"GGUF"[..], figure(n, "bytes")));
        let recipe = std::fs::read_to_string(place.path(points[n]["recipe"].as_str().unwrap())).unwrap();
        assert!(recipe.lines().all(|l| l.starts_with('^') && l.contains("$=")), "{recipe}");
    }
    // The recipe alone is the same, and so is everything at another number of threads.
    let recipes = place.ok(&["export", "p.yaml", "--to", "llama-quantize-recipe", "--out", "recipes"]);
    assert_eq!(recipes.lines().count(), 2);
    let text = |dir: &str| {
        let all = files(&place.path(dir)).into_iter().filter(|(path, _)| path.to_string_lossy().contains("recipe"));
        let mut texts: Vec<Vec<u8>> = all.map(|(_, bytes)| bytes).collect();
        texts.sort();
        texts
    };
    assert_eq!(text("files"), text("recipes"));
    place.json(&["export", "p.yaml", "--to", "gguf", "--out", "again", "--store", "other", "--threads", "1"]);
    assert!(files(&place.path("files")) == files(&place.path("again")));

    place.write("run.yaml", &pipeline("lambdas: [1e-6]"));
    let checkpoint = place.json(&["encode", "run.yaml"])["points"][0]["checkpoint"].as_str().unwrap().to_string();
    place.ok(&["export", &checkpoint, "--to", "hf-bf16", "--out", "dense"]);
    assert!(place.path("dense/model.safetensors").exists());
    assert!(place.fails(&["export", &checkpoint, "--to", "hf-bf16"]).contains("--out"));
    assert!(place.fails(&["export", &checkpoint, "--to", "gguf"]).contains("configuration"));
    assert!(place.fails(&["export", "p.yaml", "--to", "llama-quantize-recipe"]).contains("--out"));
    place.write("small.yaml", &tiny("sizes: [{bits_per_weight: 1}]"));
    assert!(place.fails(&["export", "small.yaml", "--to", "gguf"]).contains("smallest file"));
    assert!(place.fails(&["export", "small.yaml", "--to", "compressed-tensors"]).contains("at least"));
    assert!(place.fails(&["export", "run.yaml", "--to", "gguf"]).contains("WordLevel"));
    place.write("b.yaml", &(tiny("lambdas: [1e-6]") + "baseline: {method: absmax, bits: [4]}\n"));
    assert!(place.fails(&["export", "b.yaml", "--to", "gguf"]).contains("baseline"));
}

/// Tuned checkpoints whose granularity is the target's keep their codes, which the command compares bit for bit; others are
/// refused with what would do.
#[test]
fn tuned_checkpoints_are_exported_as_they_are() {
    let place = Place::new();
    let types = |output: &serde_json::Value| output["types"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut sizes = Vec::new();
    for (n, (allocate, expected)) in [
        ("lambdas: [1e-7], granularity: channel, rate: {storage: 1, resident: 1}, formats: [int4, int8]", "int4"),
        ("lambdas: [1e-9], granularity: 'group:32', formats: [int8]", "int8-g32"),
        ("lambdas: [1e-9], granularity: tensor, formats: [fp8]", "fp8"),
    ]
    .into_iter()
    .enumerate()
    {
        place.write("p.yaml", &tiny(allocate));
        let point = &place.json(&["encode", "p.yaml"])["points"][0];
        let checkpoint = point["checkpoint"].as_str().unwrap().to_string();
        let exported = place.json(&["export", &checkpoint, "--to", "compressed-tensors", "--out", &format!("e{n}")]);
        assert!(types(&exported).contains(&expected.to_string()), "{exported}");
        sizes.push(exported["bytes"].as_u64().unwrap());
        // The configuration itself gives the same, and what it loses.
        let out = format!("c{n}");
        let output = place.json(&["export", "p.yaml", "--to", "compressed-tensors", "--out", &out]);
        let point = &output["points"][0];
        assert_eq!(point["bytes"], exported["bytes"]);
        assert!(point["kl"].as_f64().unwrap() > 0.0);
        let from = place.path(point["file"].as_str().unwrap());
        assert!(files(&from) == files(&place.path(&format!("e{n}"))));
        let message = place.fails(&["export", &checkpoint, "--to", "compressed-tensors", "--out", &format!("e{n}")]);
        assert!(message.contains("exists already"), "{message}");
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");
    assert!(place.fails(&["export", "p.yaml", "--to", "compressed-tensors"]).contains("--out"));
    for (allocate, reason) in [
        ("lambdas: [1e-7]", "has "),
        ("lambdas: [1e-7], granularity: tile, formats: [int4, fp8]", "has "),
        ("lambdas: [1e-15], formats: [lossless]", "hf-bf16"),
    ] {
        place.write("r.yaml", &tiny(allocate));
        let checkpoint = place.json(&["encode", "r.yaml"])["points"][0]["checkpoint"].as_str().unwrap().to_string();
        let message = place.fails(&["export", &checkpoint, "--to", "compressed-tensors", "--out", "refused"]);
        assert!(message.contains("compressed-tensors") && message.contains(reason), "{message}");
        assert!(!place.path("refused").exists(), "{message}");
    }
    for granularity in ["'group:24'", "rows", "'group:0'"] {
        place.write("r.yaml", &tiny(&format!("lambdas: [1e-7], granularity: {granularity}")));
        assert!(place.fails(&["run", "r.yaml"]).contains("group:128"));
    }
    place.write("r.yaml", &(tiny("lambdas: [1e-7], granularity: channel") + "encode: {feedback: false}\n"));
    assert!(place.fails(&["run", "r.yaml"]).contains("granularity channel needs encode.feedback"));
}
