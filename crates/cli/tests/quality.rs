//! Probes, usual quantizers and comparisons with peers, on the generated model.

mod common;

use common::{Place, pipeline};

#[test]
fn probes_measure_what_quantization_loses() {
    let place = Place::new();
    let text = pipeline("lambdas: [1e-6], probes: roles");
    place.write("p.yaml", &text.replace("sequences: 24", "sequences: 24, held_out: 0"));
    assert!(place.fails(&["validate", "p.yaml"]).contains("calibrate.held_out"));
    place.write("p.yaml", &text.replace("sequences: 24", "sequences: 24, held_out: 6"));
    let output = place.json(&["run", "p.yaml"]);
    let quiet = place.run(&["run", "p.yaml", "--json", "--quiet"]);
    assert!(quiet.stderr.is_empty(), "no events: {}", String::from_utf8_lossy(&quiet.stderr));
    let printed: serde_json::Value = serde_json::from_slice(&quiet.stdout).unwrap();
    assert_eq!(printed["points"], output["points"]);
    let planned = place.json(&["sweep", "p.yaml", "--dry-run"]);
    assert_eq!(planned["seconds"].as_f64(), Some(0.0), "everything is there: {planned}");
    // Probes and texts have nothing to do with questions.
    place
        .write("q.yaml", &text.replace("sequences: 24", "sequences: 24, held_out: 6").replace("shots: 1", "bos: true"));
    let planned = place.json(&["sweep", "q.yaml", "--dry-run"]);
    for stage in planned["runs"][0]["stages"].as_array().unwrap() {
        let answers = stage["stage"].as_str().unwrap().starts_with("answer mmlu");
        assert_eq!(stage["cached"].as_bool(), Some(!answers), "{stage}");
    }
    let dir = place.path(output["artifacts"]["probe"].as_str().unwrap());
    let probed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("corrections.json")).unwrap()).unwrap();
    let groups = probed["groups"].as_array().unwrap();
    // Seven kinds of linear layers, and embedding or head.
    assert!(groups.len() >= 8, "{groups:?}");
    for group in groups {
        let (measured, predicted) = (group["measured"]["mean"].as_f64(), group["predicted"].as_f64());
        // A group that allocation keeps without loss has none.
        assert_eq!(measured.unwrap() > 0.0, predicted.unwrap() > 0.0, "{group}");
    }
    let prediction = &probed["prediction"];
    let levels: Vec<f64> =
        prediction["levels"].as_array().unwrap().iter().map(|level| level[0].as_f64().unwrap()).collect();
    assert!(levels.len() == 2 && levels.is_sorted(), "{levels:?}");
    assert_eq!(prediction["texts"].as_array().unwrap().len(), 1);
    let corrections = probed["corrections"].as_object().unwrap();
    assert!(corrections.values().all(|c| (0.25..=8.0).contains(&c.as_f64().unwrap())));
    // What is expected of all is in the order of what is measured.
    let point = &output["points"][0];
    let (kl, expected) = (point["kl"].as_f64(), point["predicted_kl"].as_f64());
    let ratio = kl.unwrap() / expected.unwrap();
    assert!((0.3..3.0).contains(&ratio), "{ratio}");
    let interval = &point["predicted"][0]["interval"];
    assert!(interval[0].as_f64() < expected && expected < interval[1].as_f64(), "{point}");
}

/// On the embedded model errors that agree over rows and blocks lose hundreds of times what is predicted; those of its files
/// do not, and what is predicted for them holds.
#[test]
fn what_is_predicted_for_the_embedded_model_holds() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../calibration-data");
    let place = Place::new();
    let yaml = format!(
        "name: tiny\nmodel: path:{data}/tiny\n\
         calibrate: {{text: {data}/world/calibration.txt, sequences: 32, held_out: 16, hessian: full}}\n\
         allocate: {{lambdas: [3e-10]}}\nencode: {{preset: balanced}}\n\
         evaluate: {{text: {data}/world/test.txt, sequences: 32}}\n"
    );
    place.write("p.yaml", &yaml);
    let point = &place.json(&["run", "p.yaml"])["points"][0];
    let (kl, predicted) = (point["kl"].as_f64().unwrap(), point["predicted_kl"].as_f64().unwrap());
    assert!((0.5..2.0).contains(&(kl / predicted)), "{kl}, predicted {predicted}");
}

#[test]
fn a_closed_loop_keeps_the_best_of_three() {
    let place = Place::new();
    let text = pipeline("lambdas: [3e-6], closed_loop: tensors");
    place.write("p.yaml", &text.replace("sequences: 24", "sequences: 24, held_out: 0"));
    assert!(place.fails(&["validate", "p.yaml"]).contains("closed_loop needs calibrate.held_out"));
    let text = text.replace("sequences: 24", "sequences: 24, held_out: 6");
    place.write("p.yaml", &(text.clone() + "baseline: {method: absmax, bits: [4]}\n"));
    assert!(place.fails(&["validate", "p.yaml"]).contains("closed_loop is not for a baseline"));
    place.write("p.yaml", &text);
    let output = place.json(&["run", "p.yaml"]);
    let point = &output["points"][0];
    let attempts = point["closed_loop"].as_array().unwrap();
    let names: Vec<&str> = attempts.iter().map(|a| a["allocated"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "second", "uniform"]);
    let number = |a: &serde_json::Value, key: &str| a[key].as_f64().unwrap();
    let held_out = |a: &serde_json::Value| number(&a["held_out"], "mean");
    let kept: Vec<_> = attempts.iter().filter(|a| a["kept"] == true).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0]["checkpoint"], &kept[0]["bytes"]), (&point["checkpoint"], &point["bytes"]));
    assert_eq!(kept[0]["kl"]["mean"], point["kl"], "the figures are of the one that is kept");
    for other in attempts {
        assert!(held_out(kept[0]) <= held_out(other) + number(&other["held_out"], "se"), "{other}");
        let ratio = number(other, "bytes") / number(kept[0], "bytes");
        assert!((ratio - 1.0).abs() < 0.02, "as many bytes: {ratio}");
        assert!(place.path(other["checkpoint"].as_str().unwrap()).join("model.safetensors").is_file());
    }
    let written =
        |a: &serde_json::Value| std::fs::read(place.path(a["checkpoint"].as_str().unwrap()).join("model.safetensors"));
    assert!(written(&attempts[0]).unwrap() != written(&attempts[2]).unwrap(), "bits are spread otherwise");
    // How often the others are coded until their size is met is not known before.
    let planned = place.json(&["sweep", "p.yaml", "--dry-run"]);
    let stages = planned["runs"][0]["stages"].as_array().unwrap();
    let last = stages.iter().position(|s| s["stage"] == "probe first").expect("it is planned");
    assert!(stages[..=last].iter().all(|s| s["cached"] == true), "{planned}");
    assert!(place.ok(&["run", "p.yaml"]).contains("uniform allocation"));
}

#[test]
fn usual_quantisers_and_peers_compare_in_one_sweep() {
    let place = Place::new();
    let peers = r#"{"sequences": 16, "context": 48, "rows": [{"method": "none", "kl": 0.0},
        {"method": "between", "tensor_bytes": 60000, "kl": KL}, {"method": "beyond", "tensor_bytes": 9, "kl": 1e9}]}"#;
    let sweep = |file: &str| {
        let runs = "  runs: [{baseline: {method: absmax, bits: [3, 8]}}, {baseline: {method: gptq, bits: [3, 4], group: 32}}]\n";
        pipeline("lambdas: [1e-6]") + "sweep:\n" + &format!("  peers: {file}\n") + runs
    };
    place.write("s.yaml", &sweep("peers.json"));
    assert!(place.fails(&["sweep", "s.yaml"]).contains("peers.json"));
    // A first run without peers tells what lies between the points.
    place.write("first.yaml", &sweep("peers.json").replace("  peers: peers.json\n", ""));
    let first = place.json(&["sweep", "first.yaml"]);
    let points = |run: usize| first["runs"][run]["points"].as_array().unwrap().clone();
    let number = |point: &serde_json::Value, key: &str| point[key].as_f64().unwrap();
    for run in [0, 1] {
        let of = points(run);
        assert!(number(&of[0], "kl") > number(&of[1], "kl") && number(&of[0], "bytes") < number(&of[1], "bytes"));
    }
    let bits = number(&points(0)[0], "bits_per_weight");
    assert!((3.0..4.0).contains(&bits), "{bits}: three for codes, and scales and norms");
    let middle = (number(&points(0)[0], "kl") * number(&points(0)[1], "kl")).sqrt();
    place.write("peers.json", &peers.replace("KL", &middle.to_string()));
    let output = place.json(&["sweep", "s.yaml"]);
    let reach = output["reach"].as_array().unwrap();
    assert_eq!(reach.len(), 2);
    let half = (number(&points(0)[0], "bytes") + number(&points(0)[1], "bytes")) / 2.0;
    assert!(number(&reach[0], "our_bytes") <= half + 1.0, "{reach:?}, {half} by the first run");
    assert!(reach[1]["our_bytes"].is_null() && reach[1]["peer"] == "beyond");
    place.write("peers.json", &peers.replace("KL", "0.1").replace("16", "17"));
    assert!(place.fails(&["sweep", "s.yaml"]).contains("17 of 48"));
}

#[test]
fn blocks_make_up_for_those_before_them() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let plain = place.json(&["run", "p.yaml"]);
    let sequential = place.json(&["run", "p.yaml", "--sequential"]);
    let of = |output: &serde_json::Value, key: &str| output["points"][0][key].as_f64().unwrap();
    assert_eq!(of(&plain, "lambda"), of(&sequential, "lambda"));
    assert!(of(&sequential, "kl") < of(&plain, "kl"), "{} {}", of(&sequential, "kl"), of(&plain, "kl"));
    assert!((of(&sequential, "bytes") / of(&plain, "bytes") - 1.0).abs() < 0.01);
    let checkpoint = place.path(sequential["points"][0]["checkpoint"].as_str().unwrap());
    assert!(place.run(&["verify", checkpoint.to_str().unwrap()]).status.success());
    place.write("p.yaml", &(pipeline("lambdas: [1e-6]") + "encode: {sequential: {steps: 0}}\n"));
    assert!(place.fails(&["validate", "p.yaml"]).contains("encode.sequential.steps is 0"));
}
