//! Files with the key names of the last version still run, with one warning, as the same configuration.

mod common;

use common::{Place, pipeline};

/// Runs an old file and its counterpart with today's names; returns the warnings of the old one.
fn same(place: &Place, new: &str, old: &str, command: &str) -> Vec<String> {
    place.write("new.yaml", new);
    place.write("old.yaml", old);
    let run = |file: &str| {
        let output = place.run(&[command, file, "--json"]);
        let events = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{file}: {events}");
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let events: Vec<serde_json::Value> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let notes = events.iter().filter_map(|e| e["message"].as_str()).filter(|m| m.contains("old names"));
        (printed["artifacts"].clone(), notes.map(String::from).collect::<Vec<_>>())
    };
    let ((of_new, silent), (of_old, notes)) = (run("new.yaml"), run("old.yaml"));
    assert!(silent.is_empty(), "{silent:?}");
    assert_eq!(of_new, of_old, "the same artifacts");
    notes
}

#[test]
fn configurations_with_old_names_run_with_one_warning() {
    let place = Place::new();
    let new = pipeline("sizes: [{bits_per_weight: 5}]");
    let old = new.replace("folds:", "shards:").replace("hessian:", "second_moment:").replace("sizes:", "targets:");
    let old = old.replace("hessian_block:", "second_moment_block:");
    assert!(old.contains("shards: 2, second_moment: ") && old.contains("targets: "));
    let notes = same(&place, &new, &old, "allocate");
    assert_eq!(notes.len(), 1, "{notes:?}");
    for renamed in ["calibrate.shards is now calibrate.folds", "allocate.targets is now allocate.sizes"] {
        assert!(notes[0].contains(renamed), "{notes:?}");
    }

    let new = pipeline("lambdas: [1e-6]") + "encode: {quality_layers: {bits: [1.5], optimize_for: base}}\n";
    let old = new.replace("quality_layers", "layers").replace("optimize_for", "favour");
    let notes = same(&place, &new, &old, "encode");
    assert!(notes.len() == 1 && notes[0].contains("favour is now encode.quality_layers.optimize_for"), "{notes:?}");

    let new = pipeline("lambdas: [1e-6], probes: roles").replace("sequences: 24", "sequences: 24, held_out: 6");
    let old = new.replace("probes: roles", "probes: kinds");
    let notes = same(&place, &new, &old, "allocate");
    assert!(notes.len() == 1 && notes[0].contains("allocate.probes: roles"), "{notes:?}");
}

#[test]
fn sweeps_with_old_names_are_read() {
    let place = Place::new();
    let base = pipeline("lambdas: [1e-6]");
    let sweep = "sweep:\n  grid: {calibrate.shards: [1, 2]}\n  \
        targets: [{name: a, figure: start, run: shards=1, against: shards=2}]\n";
    place.write("s.yaml", &(base + sweep));
    let output = place.run(&["validate", "s.yaml"]);
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Labels of runs have the new names, and so have the claims that name them.
    assert!(output.status.success() && text.contains("sweep of 2 runs"), "{text} {notes}");
    for renamed in ["sweep.targets is now sweep.claims", "calibrate.shards is now calibrate.folds"] {
        assert!(notes.contains(renamed), "{notes}");
    }
}
