//! Checkpoints in layers, from the configuration to prefixes of the files.

mod common;

use common::{Place, files, pipeline};

#[test]
fn every_prefix_of_a_layered_checkpoint_is_one() {
    let place = Place::new();
    let text = pipeline("lambdas: [3e-8]");
    place
        .write("p.yaml", &(text.clone() + "encode: {quality_layers: {bits: [1.5, 1], optimize_for: all, parts: 1}}\n"));
    let output = place.json(&["run", "p.yaml"]);
    let points = output["points"].as_array().unwrap();
    let layers: Vec<_> =
        points.iter().map(|p| (p["layers"]["used"].as_u64(), p["layers"]["whole"].as_bool())).collect();
    let expected = [(1, true), (2, false), (2, true), (3, false), (3, true)].map(|(n, whole)| (Some(n), Some(whole)));
    assert_eq!(layers, expected);
    let figures = |key: &str| points.iter().map(|p| p[key].as_f64().unwrap()).collect::<Vec<f64>>();
    assert!(figures("bytes").is_sorted_by(|a, b| a < b) && figures("decoded_loss").is_sorted_by(|a, b| a > b));
    let kl = figures("kl");
    assert!(kl[0] > kl[2] && kl[2] > kl[4], "{kl:?}");

    let dir = points[0]["checkpoint"].as_str().unwrap();
    place.ok(&["verify", dir]);
    assert!(place.ok(&["inspect", dir]).contains("3 quality layers"));
    // The base alone in a folder of its own is what the first layer is.
    std::fs::create_dir(place.path("base")).unwrap();
    for (path, bytes) in files(&place.path(dir)) {
        if !path.to_string_lossy().contains("refinement") {
            std::fs::write(place.path("base").join(path), bytes).unwrap();
        }
    }
    place.ok(&["decode", "base", "dense-base"]);
    place.ok(&["decode", dir, "dense-1", "--layers", "1"]);
    let bytes = (figures("bytes")[1] as u64).to_string();
    assert!(place.ok(&["decode", dir, "dense-part", "--bytes", &bytes]).contains(&format!("{bytes} bytes")));
    place.ok(&["decode", dir, "dense-all"]);
    let dense = |name: &str| files(&place.path(name));
    assert!(dense("dense-base") == dense("dense-1"));
    assert!(dense("dense-part") != dense("dense-1") && dense("dense-part") != dense("dense-all"));
    assert!(place.fails(&["decode", dir, "dense-none", "--bytes", "10"]).contains("base layer takes"));

    // Starts from it, from its base, and from dense files.
    let starts = place.json(&["bench", "load", dir, "--prompt", "Ada sees", "--repeats", "1"]);
    let starts = starts.as_array().unwrap();
    let sources: Vec<_> = starts.iter().map(|s| s["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["base", "tuned", "bf16", "flat-int8"]);
    assert_eq!(starts[0]["bytes"], points[0]["bytes"]);
    assert!(starts.iter().all(|s| s["cold"][0].as_f64().unwrap() > 0.0 && s["peak_bytes"].as_u64().unwrap() > 0));

    // The same at another number of threads, and dry runs find all of it.
    let again = place.json(&["run", "p.yaml", "--store", "again", "--threads", "1"]);
    assert!(files(&place.path(dir)) == files(&place.path(again["points"][0]["checkpoint"].as_str().unwrap())));
    place.write("q.yaml", &(text.clone() + "encode: {quality_layers: {bits: [1.5, 1], optimize_for: all}}\n"));
    assert_eq!(place.json(&["sweep", "q.yaml", "--dry-run"])["seconds"].as_f64(), Some(0.0));

    for (layers, message) in [
        ("{bits: []}", "one to eight"),
        ("{bits: [-1]}", "0.1 to 8"),
        ("{bits: [1], error_penalty: -2}", "error_penalty"),
        ("{bits: [1], favor: all}", "favor"),
        ("{bits: [1], optimize_for: neither}", "neither"),
        ("{bits: [1], parts: 1000}", "parts"),
    ] {
        place.write("bad.yaml", &(text.clone() + &format!("encode: {{quality_layers: {layers}}}\n")));
        assert!(place.fails(&["validate", "bad.yaml"]).contains(message), "{layers}");
    }
    place.write("bad.yaml", &(text + "encode: {quality_layers: {bits: [1]}, feedback: false}\n"));
    assert!(place.fails(&["validate", "bad.yaml"]).contains("feedback"));
}

/// Refinements with two of four levels: a runtime multiplies layers apart, and comes to what the decoded weights give.
#[test]
fn sparse_refinements_are_served_apart() {
    let place = Place::new();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../calibration-data");
    let text = |structure: &str| {
        format!(
            "name: tiny\nmodel: path:{data}/tiny\n\
             calibrate: {{text: {data}/world/calibration.txt, context: 64, sequences: 8}}\n\
             allocate: {{lambdas: [1e-8]}}\n\
             evaluate: {{text: {data}/world/validation.txt, context: 64, sequences: 8}}\n\
             encode: {{layers: {{bits: [1.5]{structure}}}}}\n"
        )
    };
    let mut losses = Vec::new();
    for (name, structure) in [("plain", ""), ("sparse", ", structure: '2:4'")] {
        place.write("p.yaml", &text(structure));
        let output = place.json(&["run", "p.yaml"]);
        let points = output["points"].as_array().unwrap();
        assert!(points[1]["kl"].as_f64().unwrap() < points[0]["kl"].as_f64().unwrap(), "{output}");
        losses.push(points[1]["decoded_loss"].as_f64().unwrap());
        let checkpoint = points[1]["checkpoint"].as_str().unwrap();
        place.ok(&["verify", checkpoint]);
        let checked = place.json(&["serve-check", checkpoint, "--prompt", "Ada sees", "--tokens", "4"]);
        let bits = checked["linear_bytes"][0].as_f64().unwrap() / checked["linear_bytes"][1].as_f64().unwrap() * 16.0;
        // INT8 at most, half as many levels of the refinement and their places, or elements and where tiles are.
        let expected = if name == "sparse" { 4.0..13.7 } else { 15.9..16.2 };
        assert!(expected.contains(&bits), "{name}: {bits} bits a weight in memory");
    }
    assert!(losses[1] > losses[0], "zeros cost: {losses:?}");
    place.write("bad.yaml", &text(", structure: '3:4'"));
    assert!(place.fails(&["validate", "bad.yaml"]).contains("2:4"));
}
