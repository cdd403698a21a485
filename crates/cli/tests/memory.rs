//! Sizes in memory.

mod common;

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
        // The runtime holds the same, but norms in f32.
        let held = written["resident_bytes"].as_f64().unwrap();
        assert!((held / resident - 1.0).abs() < 0.02, "{held} bytes are held, {resident} were said");
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
fn sizes_of_files_and_of_memory_do_not_mix() {
    let place = Place::new();
    place.write("both.yaml", &pipeline("sizes: [{resident_gb: 1}, {bytes: 70000}]"));
    let message = place.fails(&["run", "both.yaml"]);
    assert!(message.contains("sizes in memory") && message.contains("allocate.rate"), "{message}");
    place.write("small.yaml", &pipeline("sizes: [{resident_gb: 0.000001}]"));
    let message = place.fails(&["run", "small.yaml"]);
    assert!(message.contains("a size of 1000 bytes in memory cannot be met"), "{message}");
}
