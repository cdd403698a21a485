//! Sizes in memory.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, pipeline};

#[test]
fn budgets_of_memory_are_met_and_not_exceeded() {
    let place = Place::new();
    let sizes = "sizes: [{resident_bits_per_weight: 3.5}, {resident_bits_per_weight: 5}, {resident_gb: 0.00008}]";
    place.write("p.yaml", &pipeline(sizes));
    let output = place.json(&["run", "p.yaml"]);
    let points = output["points"].as_array().unwrap();
    for (n, point) in points.iter().enumerate() {
        let checkpoint = point["checkpoint"].as_str().unwrap();
        let written = place.json(&["generate", checkpoint, "--prompt", "Ada sees", "--tokens", "2"]);
        let weights = written["weights"].as_f64().unwrap();
        let budget = [3.5 * weights / 8.0, 5.0 * weights / 8.0, 80_000.0][n];
        let resident = point["resident_bits_per_weight"].as_f64().unwrap() * weights / 8.0;
        assert!(resident <= budget && resident > 0.99 * budget, "{resident} bytes in memory of {budget}");
        // The runtime holds just that.
        let held = written["resident_bytes"].as_f64().unwrap();
        assert!((held - resident).abs() < 1.0, "{held} bytes are held, {resident} were said");
        assert!(point["kl"].as_f64().unwrap() > 0.0);
    }
    // More than the model takes is no error.
    place.write("roomy.yaml", &pipeline("sizes: [{resident_gb: 4}]"));
    let point = place.json(&["encode", "roomy.yaml"])["points"][0].clone();
    assert!(point["resident_bits_per_weight"].as_f64().unwrap() > 12.0, "{point}");
    let kl = |n: usize| points[n]["kl"].as_f64().unwrap();
    assert!(kl(1) < kl(0), "{} {}", kl(0), kl(1));
}

#[test]
fn memory_and_file_are_limited_at_once() {
    let place = Place::new();
    let sizes = |point: &serde_json::Value| {
        let figure = |key: &str| point[key].as_f64().unwrap();
        let weights = figure("bytes") * 8.0 / figure("bits_per_weight");
        (figure("resident_bits_per_weight") * weights / 8.0, figure("bytes"))
    };
    place.write("alone.yaml", &pipeline("sizes: [{resident_gb: 0.00008}]"));
    let (resident, file) = sizes(&place.json(&["encode", "alone.yaml"])["points"][0]);
    let less = (file * 0.9) as u64;
    let both = |bytes: u64| format!("{{within: {{resident_gb: 0.00008, bytes: {bytes}}}}}");
    place.write("both.yaml", &pipeline(&format!("sizes: [{}, {}]", both(2 * file as u64), both(less))));
    let output = place.json(&["encode", "both.yaml"]);
    // Points are in order of their bytes.
    assert_eq!(sizes(&output["points"][1]), (resident, file), "memory is what is filled");
    let (resident, file) = sizes(&output["points"][0]);
    assert!(file <= less as f64 && file > 0.99 * less as f64, "{file} bytes of {less}");
    assert!(resident < 80_000.0, "{resident}");
    place.write("small.yaml", &pipeline(&format!("sizes: [{}]", both(4000))));
    let message = place.fails(&["encode", "small.yaml"]);
    assert!(message.contains("80000 bytes in memory and 4000 of the file are asked for"), "{message}");
}

/// A run that is stopped on its search for a budget goes on.
#[test]
fn searches_for_a_budget_are_resumed() {
    let place = Place::new();
    let mut exceeding = 0;
    for bits in ["2.6", "3.5", "5"] {
        place.write("p.yaml", &pipeline(&format!("sizes: [{{resident_bits_per_weight: {bits}}}]")));
        let first = place.json(&["encode", "p.yaml"])["points"][0].clone();
        let kept = Path::new(first["checkpoint"].as_str().unwrap()).parent().unwrap().to_owned();
        let all = place.path("").join(kept.parent().unwrap());
        let trials = std::fs::read_dir(&all).unwrap().map(|trial| trial.unwrap().path());
        let above = |trial: &PathBuf| {
            let text = std::fs::read_to_string(trial.join("summary.json")).unwrap();
            let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
            let held = summary["resident_bytes"].as_f64().unwrap() * 8.0 / summary["weights"].as_f64().unwrap();
            held > bits.parse().unwrap()
        };
        exceeding += trials.filter(above).count();
        // Only trials before it are left.
        std::fs::remove_dir_all(place.path("").join(&kept)).unwrap();
        let again = place.json(&["encode", "p.yaml"])["points"][0].clone();
        assert_eq!(first["resident_bits_per_weight"], again["resident_bits_per_weight"], "{bits}");
        std::fs::remove_dir_all(&all).unwrap();
    }
    assert!(exceeding > 0, "no trial was above its budget, as one that a search goes on from would be");
}

#[test]
fn sizes_of_files_and_of_memory_do_not_mix() {
    let place = Place::new();
    place.write("both.yaml", &pipeline("sizes: [{resident_gb: 1}, {bytes: 70000}]"));
    let message = place.fails(&["run", "both.yaml"]);
    assert!(message.contains("sizes in memory") && message.contains("allocate.rate"), "{message}");
    place.write("small.yaml", &pipeline("sizes: [{resident_gb: 0.000001}]"));
    let message = place.fails(&["run", "small.yaml"]);
    assert!(message.contains("a size of 1000 bytes in memory cannot be met"), "{message}");
}

/// Lines of `inspect` that compare what allocation chose with what the file has: role, allocated shares, held shares, rest.
fn compared(place: &Place, config: &str) -> Vec<[String; 4]> {
    place.write("preset.yaml", config);
    let output = place.json(&["encode", "preset.yaml"]);
    let artifact = Path::new(output["points"][0]["checkpoint"].as_str().unwrap()).parent().unwrap().to_owned();
    let said = place.ok(&["inspect", artifact.to_str().unwrap()]);
    let line = |line: &str| {
        let (role, rest) = line.split_at_checked(26)?;
        let ((allocated, rest), role) = (rest.split_once(" -> ")?, role.trim().to_string());
        let (held, moved) = rest.split_once("; ")?;
        Some([role, allocated.to_string(), held.to_string(), moved.to_string()])
    };
    said.lines().filter_map(line).collect()
}

/// Percent of tiles with one of these formats.
fn share(shares: &str, formats: &[&str]) -> f64 {
    let parts = shares.split(", ").filter_map(|part| part.strip_suffix(" %")?.split_once(' '));
    parts.filter(|(format, _)| formats.contains(format)).map(|(_, percent)| percent.parse::<f64>().unwrap()).sum()
}

/// With memory first the file has what allocation chose, whatever the preset; with bits of the file first, steps follow from
/// lambda, and what exceeds its format is named.
#[test]
fn files_have_the_formats_that_are_allocated_or_say_where_not() {
    let place = Place::new();
    let mut exceeding = false;
    for preset in ["fast", "balanced", "best"] {
        for (allocate, first) in
            [("rate: {storage: 0, resident: 1}, lambdas: [1e-6]", true), ("lambdas: [1e-6]", false)]
        {
            let config = pipeline(allocate) + &format!("encode: {{preset: {preset}}}\n");
            let lines = compared(&place, &config);
            assert!(lines.len() > 3, "{preset}: {lines:?}");
            for [role, allocated, held, moved] in lines {
                let place = format!("{preset}, memory first {first}, {role}: {allocated} -> {held}; {moved}");
                if first {
                    assert_eq!(moved, "none exceeds its format", "{place}");
                } else {
                    // INT4 tiles that are held wider than four bits are named.
                    let narrow = |held: &str| share(held, &["int2", "int3", "int4"]);
                    let wider = share(&allocated, &["int4"]) > narrow(&held) + 0.5;
                    assert!(!wider || moved.starts_with("beyond their format: "), "{place}");
                    exceeding |= wider;
                }
                // Codes of a trellis take just the bits that they are given; levels may need fewer.
                let trellis = preset != "fast";
                assert_eq!(first && trellis, allocated.contains("trellis"), "{place}");
                if first && trellis {
                    let held = held.replace("plain", "lossless").replace("fp8-e4m3", "fp8");
                    assert_eq!(allocated, held, "{place}");
                }
            }
        }
    }
    assert!(exceeding, "no preset has a tile that exceeds its format, so that naming it is not tested");
}
