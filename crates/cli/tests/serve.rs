//! The reference runtime on the command line.

mod common;

use common::{Place, pipeline};

#[test]
fn tuned_checkpoints_are_served_from_their_tiles() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let output = place.json(&["encode", "p.yaml"]);
    let checkpoint = output["points"][0]["checkpoint"].as_str().unwrap();
    let checked = place.json(&["serve-check", checkpoint, "--prompt", "Ada sees", "--tokens", "6"]);
    let layers = checked["layers"].as_array().unwrap();
    assert!(!layers.is_empty() && layers.iter().all(|l| l["error"].as_f64().unwrap() < 1.0 / 256.0), "{checked}");
    assert!(layers.iter().any(|l| l["error"].as_f64().unwrap() > 0.0), "coded values are rounded");
    let bytes: Vec<u64> = (0..2).map(|n| checked["linear_bytes"][n].as_u64().unwrap()).collect();
    assert!(bytes[0] < bytes[1], "{bytes:?}");
    let written = place.json(&["generate", checkpoint, "--prompt", "Ada sees", "--tokens", "6"]);
    assert_eq!(written["text"], checked["written"][0]["text"]);
    assert_eq!((written["tokens"].as_u64(), written["linear_bytes"].as_u64()), (Some(6), Some(bytes[0])));
    let dense = place.json(&["generate", checkpoint, "--prompt", "Ada sees", "--tokens", "6", "--dense"]);
    assert_eq!(dense["text"], checked["written"][1]["text"]);
    let coded = place.json(&["generate", checkpoint, "--prompt", "Ada sees", "--tokens", "6", "--coded"]);
    assert_eq!(coded["text"], dense["text"]);
    let sizes = [&coded, &written, &dense].map(|w| w["resident_bytes"].as_u64().unwrap());
    assert!(sizes.is_sorted() && sizes[0] < output["points"][0]["bytes"].as_u64().unwrap(), "{sizes:?}");
    let text = String::from_utf8(place.run(&["serve-check", checkpoint]).stdout).unwrap();
    for expected in ["products from tiles are off by at most", "packed", "dense f32", "coded", "same text:"] {
        assert!(text.contains(expected), "{text}");
    }
    let long = "Ada sees the red fox . ".repeat(200);
    assert!(place.fails(&["generate", checkpoint, "--prompt", &long]).contains("the model takes"));
    assert!(place.fails(&["generate", "nowhere", "--prompt", "Ada"]).contains("nowhere"));
}
