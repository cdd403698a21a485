//! The whole pipeline on the generated model.

mod common;

use common::{Place, files, pipeline};
use waterfill_checkpoint::Checkpoint;

#[test]
fn identical_output_at_one_and_two_threads() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6, 1e-8], sizes: [{bits_per_weight: 5}]"));
    place.ok(&["run", "p.yaml", "--threads", "1", "--store", "one"]);
    place.ok(&["run", "p.yaml", "--threads", "2", "--store", "two"]);
    let (one, two) = (files(&place.path("one")), files(&place.path("two")));
    let names = |all: &[(std::path::PathBuf, Vec<u8>)]| all.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one).len(), names(&two).len());
    assert!(one.len() > 40, "{} files", one.len());
    for ((name, a), (other, b)) in one.iter().zip(&two) {
        // The report shows the store's folder, which is part of the configuration.
        if !name.starts_with("fixture/report") {
            assert_eq!(name, other);
            assert!(a == b, "{} differs", name.display());
        }
    }
}

#[test]
fn target_bytes_are_met_within_half_a_percent() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("sizes: [{bits_per_weight: 4.5}, {bytes: 70000}, {bits_per_weight: 9}]"));
    let output = place.json(&["encode", "p.yaml"]);
    for (i, point) in output["points"].as_array().unwrap().iter().enumerate() {
        let dir = place.path(point["checkpoint"].as_str().unwrap());
        let weights = Checkpoint::open(&dir).unwrap().weights() as f64;
        let wanted = [4.5 * weights / 8.0, 70_000.0, 9.0 * weights / 8.0][i];
        let bytes = dir.join("model.safetensors").metadata().unwrap().len();
        assert_eq!(point["bytes"], bytes);
        assert!((bytes as f64 / wanted - 1.0).abs() < 0.005, "{bytes} bytes for a target of {wanted}");
    }
    place.write("impossible.yaml", &pipeline("sizes: [{bytes: 1000}]"));
    let message = place.fails(&["allocate", "impossible.yaml"]);
    assert!(message.contains("a size of 1000 bytes cannot be met"), "{message}");
}

#[test]
fn the_output_has_the_promised_names_and_sense() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [3e-6, 1e-7, 1e-17]"));
    let output = place.json(&["run", "p.yaml"]);
    assert_eq!(output["model"], "fixture");
    for key in ["nll", "perplexity", "accuracy"] {
        assert!(output["base"][key].is_number(), "base.{key}");
    }
    let points = output["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    for point in points {
        for key in [
            "lambda",
            "bytes",
            "bits_per_weight",
            "linear_bits_per_weight",
            "resident_bits_per_weight",
            "nll",
            "perplexity",
            "kl",
            "kl_se",
            "top1",
            "accuracy",
            "predicted_loss",
        ] {
            assert!(point[key].is_number(), "{key} of {point}");
        }
    }
    let number = |i: usize, key: &str| points[i][key].as_f64().unwrap();
    assert!(number(0, "bytes") < number(1, "bytes") && number(1, "bytes") < number(2, "bytes"));
    assert!(number(0, "kl") > number(1, "kl") && number(1, "kl") > 0.0);
    // A bit that costs nothing buys the original back: lossless tiles, bit for bit.
    assert_eq!((number(2, "kl"), number(2, "top1"), number(2, "predicted_loss")), (0.0, 1.0, 0.0));
    let ratio = number(1, "kl") / number(1, "predicted_loss");
    assert!((0.5..2.0).contains(&ratio), "measured over predicted loss: {ratio}");
    for file in ["report.html", "curve.svg", "curve.png", "points.csv", "points.parquet"] {
        assert!(place.path(output["artifacts"]["report"].as_str().unwrap()).join(file).exists(), "{file}");
    }
    // Nothing is computed twice.
    let again = place.run(&["--json", "run", "p.yaml"]);
    let events = String::from_utf8(again.stderr).unwrap();
    let done: Vec<&str> = events.lines().filter(|l| l.contains("\"done\"")).collect();
    assert!(done.len() >= 12 && done.iter().all(|l| l.contains("\"cached\":true")), "{events}");
}

#[test]
fn decoding_gives_dense_directories_and_lossless_gives_the_original() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-17, 1e-7]"));
    let output = place.json(&["encode", "p.yaml"]);
    let tuned = |i: usize| output["points"][i]["checkpoint"].as_str().unwrap().to_string();
    place.ok(&["decode", &tuned(1), "lossless"]);
    place.ok(&["decode", &tuned(0), "lossy", "--dtype", "f32"]);
    let model = std::fs::read_dir(place.path("results/fixture/fixture")).unwrap().next().unwrap().unwrap().path();
    let original = Checkpoint::open(model.join("model")).unwrap();
    let (lossless, lossy) =
        (Checkpoint::open(place.path("lossless")).unwrap(), Checkpoint::open(place.path("lossy")).unwrap());
    let coded = Checkpoint::open(place.path(&tuned(0))).unwrap();
    for info in original.tensors() {
        assert_eq!(original.read_raw(&info.name).unwrap(), lossless.read_raw(&info.name).unwrap(), "{}", info.name);
        assert_eq!(lossy.tensor(&info.name).unwrap().shape, info.shape);
        let decoded = coded.read(&info.name).unwrap();
        assert_eq!(lossy.read(&info.name).unwrap().to_f32(), decoded.to_f32(), "{}", info.name);
    }
    assert!(place.path("lossy/tokenizer.json").exists());
    assert!(!std::fs::read_to_string(place.path("lossy/config.json")).unwrap().contains("waterfill"));
    assert!(
        std::fs::read_to_string(place.path(&tuned(0)).join("config.json"))
            .unwrap()
            .contains("\"quant_method\": \"waterfill\"")
    );
    let message = place.fails(&["decode", &tuned(0), "lossy"]);
    assert!(message.contains("lossy: exists already"), "{message}");
}

/// What is floored loses at most what it did without floors, in the written files, and as much less as its bits say: 6 dB each.
#[test]
fn the_safe_policy_buys_loss_at_the_usual_price() {
    let place = Place::new();
    let measured = |file: &str, allocate: &str| {
        place.write(file, &pipeline(allocate));
        let point = place.json(&["encode", file])["points"][0].clone();
        let dir = place.path(point["checkpoint"].as_str().unwrap());
        let summary = std::fs::read_to_string(dir.parent().unwrap().join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let tensors = checkpoint.tensors().filter_map(|t| {
            let loss = summary["losses"][&t.name].as_f64()?;
            Some((t.name.clone(), (loss, t.stored_bytes() as f64 * 8.0 / t.weights() as f64)))
        });
        (point, tensors.collect::<std::collections::BTreeMap<String, (f64, f64)>>())
    };
    let (_, free) = measured("free.yaml", "lambdas: [1e-6]");
    let (point, safe) = measured("safe.yaml", "lambdas: [1e-6], policy: safe");
    let floors = &point["floors"];
    let ratio = floors["price_over_worth"].as_f64().unwrap() / floors["expected"].as_f64().unwrap();
    assert!((0.7..1.4).contains(&ratio), "{floors}");
    let is_floored = |name: &str| ["q_proj", "k_proj", "v_proj", "embed"].iter().any(|part| name.contains(part));
    let (mut bits, mut decibels) = (0.0, 0.0);
    for (name, &(loss, rate)) in &safe {
        let (free_loss, free_rate) = free[name];
        if is_floored(name) {
            assert!(loss <= free_loss, "{name} loses {loss}, without a floor {free_loss}");
            bits += rate - free_rate;
            decibels += 10.0 * (free_loss / loss).log10();
        } else {
            assert_eq!((loss, rate), (free_loss, free_rate), "{name}");
        }
    }
    assert!((4.8..7.3).contains(&(decibels / bits)), "{decibels} dB for {bits} bits a weight");
}
