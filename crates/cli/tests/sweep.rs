//! Sweeps on the generated model.

mod common;

use common::{Place, pipeline};

fn sweep(section: &str) -> String {
    pipeline("lambdas: [1e-6]") + "sweep:\n" + section
}

/// Stages that were computed, by the events of a run.
fn computed(events: &[u8], stage: &str) -> usize {
    let text = String::from_utf8_lossy(events).into_owned();
    let events = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    events
        .filter(|e| {
            e["event"] == "done" && e["stage"].as_str().is_some_and(|s| s.starts_with(stage)) && e["cached"] == false
        })
        .count()
}

#[test]
fn runs_share_what_they_can_and_resume() {
    let place = Place::new();
    place.write(
        "s.yaml",
        &sweep("  grid: {allocate.policy: [free, safe], allocate.margin: [0, 0.5], calibrate.seed: [1, 2]}\n"),
    );
    let planned = place.json(&["sweep", "s.yaml", "--dry-run"]);
    assert_eq!(planned["runs"].as_array().unwrap().len(), 8);
    assert!(planned["seconds"].as_f64().unwrap() > 0.0 && planned["rough"] == true);
    assert!(!place.path("results/fixture/calibrate").exists(), "a dry run computes nothing");
    let output = place.run(&["--json", "sweep", "s.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Of each calibration, probes quantize two allocations that no policy and no margin touches.
    for (stage, times) in
        [("calibrate", 2), ("measure", 2), ("evaluate the original", 1), ("allocate", 12), ("probe", 2)]
    {
        assert_eq!(computed(&output.stderr, stage), times, "{stage}");
    }
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = object["runs"].as_array().unwrap();
    assert_eq!((object["sweep"].as_str(), runs.len()), (Some("s"), 8));
    for run in runs {
        assert!(run["error"].is_null() && run["points"][0]["kl"].is_number(), "{run}");
        assert!(run["settings"]["allocate.policy"].is_string() && run["label"].as_str().unwrap().contains("policy="));
    }
    let again = place.run(&["--json", "sweep", "s.yaml"]);
    assert_eq!(computed(&again.stderr, ""), 0);
    assert_eq!(again.stdout, output.stdout);
    let planned = place.json(&["sweep", "s.yaml", "--dry-run"]);
    assert_eq!(planned["seconds"].as_f64(), Some(0.0));
}

#[test]
fn failures_end_their_own_run_only_and_are_listed() {
    let place = Place::new();
    place.write("s.yaml", &sweep("  runs: [{calibrate.context: 200}, {}, {model: 'path:nowhere'}]\n"));
    let output = place.run(&["sweep", "s.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let gone = "model=path:nowhere: model: nowhere is no directory";
    for part in ["2 of 3 runs failed", "context 200, the model takes 128 positions", gone, "\nbase "] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(errors.contains("2 of 3 runs failed"), "{errors}");
    let planned = place.json(&["sweep", "s.yaml", "--dry-run"]);
    assert!(planned["runs"][2]["error"].as_str().unwrap().contains("nowhere"));
}

#[test]
fn sweeps_that_cannot_be_read_are_explained() {
    let place = Place::new();
    let fails = |section: &str| {
        place.write("s.yaml", &sweep(section));
        place.fails(&["sweep", "s.yaml"])
    };
    assert!(fails("  grid: {allocate.lambda: [1]}\n").contains("unknown key allocate.lambda; did you mean lambdas?"));
    assert!(fails("  memory_gb: -1\n").contains("sweep.memory_gb is -1"));
    assert!(fails("  grid: 3\n").contains("s.yaml: sweep"));
    assert!(place.fails(&["run", "s.yaml"]).contains("`waterfill sweep` runs it"));
}

#[test]
fn claims_are_checked_and_printed() {
    let place = Place::new();
    let base = pipeline("lambdas: [1e-6, 1e-7]");
    let flat = "{label: flat, baseline: {method: absmax, bits: [8]}}";
    let sweep = |claims: &str| {
        format!(
            "{base}sweep:\n  runs: [{flat}, {{label: compressed}}, {{label: layered, encode.quality_layers: {{bits: [2]}}, allocate.lambdas: [1e-7]}}]\n  claims:\n{claims}"
        )
    };
    place.write("s.yaml", &sweep("    - {name: none, figure: bytes, run: compressed, at_most: 1}\n"));
    assert!(place.fails(&["validate", "s.yaml"]).contains("give compared_with"));
    place.write("s.yaml", &sweep("    - {name: none, figure: kl, run: tunde, at_most: 1}\n"));
    assert!(place.fails(&["validate", "s.yaml"]).contains("names the run \"tunde\""));
    place.write(
        "s.yaml",
        &sweep(
            "    - {name: small, figure: bytes, run: compressed, compared_with: flat, at_most: 1}\n\
             \x20   - {name: too small, figure: bytes, run: compressed, compared_with: flat, at_most: 0.01}\n\
             \x20   - {name: as good, figure: bytes, run: compressed, compared_with: flat, allowed_loss: {kl_ratio: 0}, at_most: 1}\n\
             \x20   - {name: memory, figure: resident, run: compressed, compared_with: flat, at_least: 0.1}\n\
             \x20   - {name: prefixes, figure: worse-prefixes, run: layered, at_most: 0}\n\
             \x20   - {name: original, figure: original-nll, run: compressed, at_least: 0.1}\n",
        ),
    );
    let output = place.json(&["sweep", "s.yaml"]);
    let claims = output["claims"].as_array().unwrap();
    let met: Vec<bool> = claims.iter().map(|t| t["met"].as_bool().unwrap()).collect();
    assert_eq!(met, [true, false, false, true, true, true], "{claims:?}");
    let value = |n: usize| claims[n]["value"].as_f64();
    let bytes = |run: usize, point: usize| output["runs"][run]["points"][point]["bytes"].as_f64().unwrap();
    assert_eq!(value(0), Some(bytes(1, 0) / bytes(0, 0)), "the smallest file of the run over the flat one");
    assert_eq!((value(0), value(2)), (value(1), None));
    assert!(claims[2]["detail"].as_str().unwrap().contains("no file loses as little"));
    let text = place.ok(&["sweep", "s.yaml"]);
    assert!(text.contains("not met  too small: ") && text.contains("met      small: "), "{text}");
    let page = std::fs::read_to_string(place.path(output["page"].as_str().unwrap())).unwrap();
    assert!(page.contains("<h2>Claims</h2>") && page.contains(">not met<"));
}
