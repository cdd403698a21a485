//! Deltas on the command line: the embedded model and its fine-tune.

mod common;

use std::path::Path;

use common::Place;

#[test]
fn a_fine_tune_is_a_delta_of_its_base() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let [base, tuned] = ["tiny", "tiny-letters"].map(|name| root.join("calibration-data").join(name));
    let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
    let told = place.run(&["delta", base, tuned, "--out", "delta"]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("bits for each of") && told.contains("differences from it"), "{told}");
    place.run(&["apply", base, "delta", "--out", "again"]);
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert_eq!(read(&place.path("again")), read(Path::new(tuned)));
    let size = |path: std::path::PathBuf| path.metadata().unwrap().len();
    let (small, large) = (size(place.path("delta/model.safetensors.wfd")), size(place.path("again/model.safetensors")));
    assert!(small * 2 < large, "{small} of {large} bytes");
    let message = place.fails(&["apply", tuned, "delta", "--out", "x"]);
    assert!(message.contains("model.safetensors") && message.contains("another base"), "{message}");
    assert!(place.fails(&["delta", base, "nowhere", "--out", "y"]).contains("nowhere"));
}
