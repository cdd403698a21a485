//! Deltas on the command line: the embedded model and its fine-tune.

mod common;

use std::path::Path;

use common::{Place, files};

#[test]
fn a_fine_tune_is_a_delta_of_its_base() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let [base, tuned] = ["tiny", "tiny-letters"].map(|name| root.join("calibration-data").join(name));
    let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
    let told = place.run(&["delta", base, tuned, "--out", "delta"]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("bits for each of") && told.contains("coded as differences from it"), "{told}");
    place.run(&["apply", base, "delta", "--out", "again"]);
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert_eq!(read(&place.path("again")), read(Path::new(tuned)));
    let size = |path: std::path::PathBuf| path.metadata().unwrap().len();
    let (small, large) =
        (size(place.path("delta/coded/model.safetensors.wfd")), size(place.path("again/model.safetensors")));
    assert!(small * 2 < large, "{small} of {large} bytes");
    assert!(place.ok(&["verify", "delta", "--base", base]).contains("match their digests"));
    assert!(place.fails(&["verify", "delta"]).contains("--base"));
    assert!(place.fails(&["verify", "delta", "--base", tuned]).contains("another base"));
    let message = place.fails(&["apply", tuned, "delta", "--out", "x"]);
    assert!(message.contains("model.safetensors") && message.contains("another base"), "{message}");
    assert!(place.fails(&["delta", base, "nowhere", "--out", "y"]).contains("nowhere"));
}

#[test]
fn a_delta_with_loss_is_smaller_and_says_what_it_loses() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let data = root.join("calibration-data");
    let [base, tuned] = ["tiny", "tiny-letters"].map(|name| data.join(name).to_str().unwrap().to_string());
    let text = |file: &str| data.join("world").join(file).display().to_string();
    let config = |lambdas: &str| {
        format!(
            "name: letters\nmodel: fixture:1\n\
             calibrate: {{text: {}, context: 64, sequences: 8, second_moment: full}}\n\
             allocate: {{lambdas: {lambdas}}}\nevaluate: {{text: {}, context: 64, sequences: 8}}\n",
            text("calibration.txt"),
            text("validation.txt")
        )
    };
    let mut last = (u64::MAX, 0.0);
    for lambda in ["3e-12", "1e-10"] {
        place.write("l.yaml", &config(&format!("[{lambda}]")));
        let found = place.json(&["delta", &base, &tuned, "--out", lambda, "--lossy", "l.yaml"]);
        let now = (found["bytes"].as_u64().unwrap(), found["kl"].as_f64().unwrap());
        assert!(now.0 < last.0 && now.1 > last.1 && now.1 < found["base_kl"].as_f64().unwrap(), "{found}");
        assert!(found["tensors"]["given"].as_u64().unwrap() > 20, "{found}");
        last = now;
        let restored = format!("restored-{lambda}");
        place.ok(&["apply", &base, lambda, "--out", &restored]);
        place.ok(&["evaluate", "--original", "l.yaml", "--model", &format!("path:{restored}")]);
    }
    assert!(place.fails(&["apply", &tuned, "1e-10", "--out", "x"]).contains("another base"));
    place.write("two.yaml", &config("[1e-9, 1e-8]"));
    assert!(place.fails(&["delta", &base, &tuned, "--out", "y", "--lossy", "two.yaml"]).contains("one size"));
    assert!(place.fails(&["delta", &base, &tuned, "--out", "1e-10", "--lossy", "l.yaml"]).contains("exists"));
}

/// Folders, dotfiles and the format's own names come back; what is left out is said, and only then.
#[test]
fn the_whole_directory_of_a_fine_tune_comes_back() {
    let place = Place::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../calibration-data").canonicalize().unwrap();
    let base = data.join("tiny").display().to_string();
    std::fs::create_dir_all(place.path("tuned/original/.cache")).unwrap();
    for entry in std::fs::read_dir(data.join("tiny-letters")).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(entry.path(), place.path("tuned").join(entry.file_name())).unwrap();
    }
    std::fs::copy(data.join("tiny/model.safetensors"), place.path("tuned/original/model.safetensors")).unwrap();
    place.write("tuned/.gitattributes", "*.safetensors filter=lfs");
    place.write("tuned/delta.json", "{}");
    place.write("tuned/original/.cache/x", "");
    let told = place.ok(&["delta", &base, "tuned", "--out", "plain"]);
    assert!(!told.contains("left out"), "{told}");
    let all = files(&place.path("tuned"));
    std::fs::create_dir(place.path("tuned/.git")).unwrap();
    place.write("tuned/.git/config", "x");
    std::os::unix::fs::symlink("original", place.path("tuned/link")).unwrap();
    let told = place.ok(&["delta", &base, "tuned", "--out", "told"]);
    assert!(told.contains("\nleft out: .git, ") && told.contains("\nleft out: link, a link to a directory"), "{told}");
    let found = place.json(&["delta", &base, "tuned", "--out", "tuned/inside"]);
    assert!(found["delta"].as_str().unwrap().contains("bits for each of"), "{found}");
    let names: Vec<&str> = found["left_out"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, [".git", "link"], "{found}");
    for delta in ["plain", "told", "tuned/inside"] {
        assert!(place.ok(&["verify", delta, "--base", &base]).contains("match their digests"));
        place.ok(&["apply", &base, delta, "--out", "back"]);
        assert_eq!(files(&place.path("back")), all, "{delta}");
        std::fs::remove_dir_all(place.path("back")).unwrap();
    }
    place.write("tuned/original/a\\b", "x");
    let message = place.fails(&["delta", &base, "tuned", "--out", "refused"]);
    assert!(message.contains("a\\\\b") && message.contains("backslash"), "{message}");
    place.write("plain/stored/.gitattributes", "damaged");
    let message = place.fails(&["apply", &base, "plain", "--out", "refused"]);
    assert!(message.contains("stored/.gitattributes") && message.contains("digest"), "{message}");
    let left = std::fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, ["plain", "told", "tuned"], "nothing unfinished is left");
}
