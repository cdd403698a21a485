//! Deltas of directories with any names: whatever can be read is kept and comes back, or is refused or left out by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use waterfill_checkpoint::Element;
use waterfill_checkpoint::delta::{LeftOut, apply, delta, digest_of_files, verify};

/// A safetensors file of one matrix, `w`.
fn model(seed: u32) -> Vec<u8> {
    let value = |i: u32| ((i * 7919 + i / 100 * seed) % 977) as f32 * 1e-3;
    let values: Vec<u8> = (0..6000).flat_map(|i| value(i).to_le_bytes()).collect();
    let view = TensorView::new(Element::F32, vec![60, 100], &values).unwrap();
    safetensors::serialize([("w", view)], None).unwrap()
}

fn write(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

fn read(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(next) = left.pop() {
        let path = dir.join(&next);
        match path.is_dir() {
            true => left.extend(std::fs::read_dir(&path).unwrap().map(|e| next.join(e.unwrap().file_name()))),
            false => drop(all.insert(next.to_str().unwrap().into(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

struct Case {
    place: tempfile::TempDir,
    base: PathBuf,
    tuned: PathBuf,
    out: PathBuf,
}

fn case(base: &[(&str, &[u8])], tuned: &[(&str, &[u8])]) -> Case {
    let place = tempfile::tempdir().unwrap();
    let [b, t, out] = ["base", "tuned", "delta"].map(|name| place.path().join(name));
    write(&b, base);
    write(&t, tuned);
    Case { place, base: b, tuned: t, out }
}

impl Case {
    /// Makes, verifies and applies the delta; returns what was left out.
    fn round_trip(&self) -> Vec<LeftOut> {
        let summary = delta(&self.base, &self.tuned, &self.out, &|_| {}).unwrap();
        assert_eq!(summary.delta, read(&self.out).values().map(|b| b.len() as u64).sum::<u64>());
        assert_eq!(verify(&self.base, &self.out, &|_| {}).unwrap().fine_tune, summary.fine_tune);
        apply(&self.base, &self.out, &self.place.path().join("back"), &|_| {}).unwrap();
        summary.left_out
    }

    /// The message of a delta that is refused; nothing is left of it.
    fn refused(&self) -> String {
        let message = delta(&self.base, &self.tuned, &self.out, &|_| {}).unwrap_err().to_string();
        assert_eq!(std::fs::read_dir(self.place.path()).unwrap().count(), 2, "{message}");
        message
    }

    fn back(&self) -> BTreeMap<String, Vec<u8>> {
        read(&self.place.path().join("back"))
    }
}

#[test]
fn all_files_come_back_whatever_their_names() {
    let (first, second, third) = (model(1), model(2), model(3));
    let case = case(
        &[("model.safetensors", &first), ("original/model.safetensors", &second), ("same/a.txt", b"a")],
        &[
            ("model.safetensors", &second),
            ("original/model.safetensors", &third),
            (".gitattributes", b"*.safetensors filter=lfs"),
            (".hidden/.deeper/x", b""),
            ("same/a.txt", b"a"),
            ("onnx/config.json", b"{}"),
            ("sp ace/\u{fc}\n\u{7f}'\"", b"odd"),
            // The format's own names.
            ("delta.json", b"{}"),
            ("model.safetensors.wfd", b"WFDL"),
            ("coded/model.safetensors.wfd", b"WFDL"),
            ("coded/model.safetensors", &third),
            ("stored/delta.json", b"mine"),
            ("stored/stored/coded", b"mine"),
        ],
    );
    assert_eq!(case.round_trip(), []);
    assert_eq!(case.back(), read(&case.tuned));
    let written = read(&case.out);
    assert!(!written.contains_key("stored/same/a.txt"), "what the base has takes no room");
    // The file of the same name is compared with, not another that has the tensor too.
    let list: serde_json::Value = serde_json::from_slice(&written["delta.json"]).unwrap();
    assert_eq!(list["version"], 2);
    assert!(list["base"].as_object().unwrap().contains_key("original/model.safetensors"), "{list}");
    for name in ["model.safetensors", "original/model.safetensors", "coded/model.safetensors"] {
        assert!(written.contains_key(&format!("coded/{name}.wfd")), "{name}");
    }
}

#[test]
fn what_is_left_out_is_said() {
    let weights = model(1);
    let case = case(
        &[("model.safetensors", &weights)],
        &[
            ("model.safetensors", &weights),
            (".git/config", b"x"),
            (".cache/huggingface/download/x.lock", b""),
            (".cache/other", b"kept"),
            ("module/.git/x", b"x"),
            ("blobs/abc", b"linked"),
        ],
    );
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, case.tuned.join(name)).unwrap();
    link("blobs/abc", "config.json");
    link("blobs", "folder");
    link("nowhere", "dangling");
    link(".", "endless");
    std::fs::create_dir(case.tuned.join("empty")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(case.tuned.join("socket")).unwrap();
    let told: Vec<(String, String)> = case.round_trip().into_iter().map(|l| (l.name, l.reason)).collect();
    let expected = [
        (".cache/huggingface", "records of downloads"),
        (".git", "records of git"),
        ("dangling", "a link to nothing"),
        ("endless", "a link to a directory"),
        ("folder", "a link to a directory"),
        ("module/.git", "records of git"),
        ("socket", "neither a file nor a directory"),
    ];
    assert_eq!(told, expected.map(|(name, reason)| (name.to_string(), reason.to_string())));
    let names: Vec<String> = case.back().into_keys().collect();
    assert_eq!(names, [".cache/other", "blobs/abc", "config.json", "model.safetensors"]);
    assert_eq!(case.back()["config.json"], b"linked", "a link to a file is the file");
}

#[test]
fn names_that_no_reader_takes_are_refused_when_written() {
    use std::os::unix::ffi::OsStrExt;

    let weights = model(1);
    let files: [(&str, &[u8]); 1] = [("model.safetensors", &weights)];
    let with = |name: &[u8]| {
        let case = case(&files, &files);
        std::fs::create_dir(case.tuned.join("folder")).unwrap();
        std::fs::write(case.tuned.join("folder").join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        case
    };
    let message = with(b"a\\b").refused();
    assert!(message.contains("folder/a\\\\b") && message.contains("backslash"), "{message}");
    let message = with(b"\xff\xfe").refused();
    assert!(message.contains("tuned/folder") && message.contains("UTF-8"), "{message}");
    // The suffix makes it too long for the file system.
    let message = with(format!("{}.safetensors", "x".repeat(240)).as_bytes()).refused();
    assert!(message.contains("xxx"), "{message}");
    let case = case(&files, &[("model.safetensors", b"version https://git-lfs")]);
    assert!(case.refused().contains("tuned/model.safetensors"));
}

#[test]
fn a_delta_may_lie_in_the_directories_that_it_is_of() {
    let (first, second) = (model(1), model(2));
    let mut case = case(&[("model.safetensors", &first)], &[("model.safetensors", &second), ("a/b", b"c")]);
    let before = read(&case.tuned);
    case.out = case.tuned.join("deltas/one");
    case.round_trip();
    assert_eq!(case.back(), before);
    apply(&case.base, &case.out, &case.base.join("a/restored"), &|_| {}).unwrap();
    assert_eq!(read(&case.base.join("a/restored")), before);
}

/// Moves the files of a delta to where version 1 had them.
fn as_version_1(out: &Path, also: &[&str]) {
    for folder in ["coded", "stored"].map(|name| out.join(name)).iter().filter(|folder| folder.exists()) {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            std::fs::rename(entry.path(), out.join(entry.file_name())).unwrap();
        }
        std::fs::remove_dir(folder).unwrap();
    }
    let path = out.join("delta.json");
    let mut list: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    list["version"] = 1.into();
    for name in also {
        let digest = blake3::hash(&std::fs::read(out.parent().unwrap().join("base").join(name)).unwrap());
        list["base"][name] = digest.to_hex().as_str().into();
    }
    std::fs::write(path, list.to_string()).unwrap();
}

#[test]
fn deltas_of_version_1_are_read_also_those_that_could_not_be_applied() {
    let (first, second, third) = (model(1), model(2), model(3));
    let case = case(
        &[("a.safetensors", &third), ("model.safetensors", &first)],
        &[("model.safetensors", &second), (".gitattributes", b"x"), ("config.json", b"{}")],
    );
    delta(&case.base, &case.tuned, &case.out, &|_| {}).unwrap();
    as_version_1(&case.out, &["a.safetensors"]);
    let names: Vec<String> = read(&case.out).into_keys().collect();
    assert_eq!(names, [".gitattributes", "config.json", "delta.json", "model.safetensors.wfd"]);
    verify(&case.base, &case.out, &|_| {}).unwrap();
    apply(&case.base, &case.out, &case.place.path().join("back"), &|_| {}).unwrap();
    assert_eq!(case.back(), read(&case.tuned));
    // Of two files with a tensor the last counts, whatever their names.
    std::fs::write(case.base.join("z.safetensors"), &third).unwrap();
    as_version_1(&case.out, &["z.safetensors"]);
    assert!(verify(&case.base, &case.out, &|_| {}).is_err());
}

#[test]
fn lists_with_bad_names_are_refused() {
    let (first, second) = (model(1), model(2));
    let case = case(&[("model.safetensors", &first)], &[("model.safetensors", &second), ("config.json", b"{}")]);
    case.round_trip();
    let path = case.out.join("delta.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        std::fs::write(&path, text.replacen(&format!("\"{from}\""), &format!("\"{to}\""), 2)).unwrap();
        let back = case.place.path().join("x");
        for found in [verify(&case.base, &case.out, &|_| {}), apply(&case.base, &case.out, &back, &|_| {})] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains("delta.json") && message.contains(expected), "{to}: {message}");
        }
        assert!(!back.exists());
    };
    for name in ["", ".", "..", "../x", "/etc/x", "a/../../x", "a//x", "x/"] {
        check("config.json", name, "leaves the directory");
    }
    check("config.json", "a\\\\x", "backslash");
    check("config.json", "a\\u0000", "zero byte");
    check("config.json", "model.safetensors/x", "\"model.safetensors/x\"");
    check("model.safetensors", "../model.safetensors", "leaves the directory");
    std::fs::write(&path, text.replace("\"version\": 2", "\"version\": 3")).unwrap();
    let message = verify(&case.base, &case.out, &|_| {}).unwrap_err().to_string();
    assert!(message.contains("version 3") && message.contains("1 and 2"), "{message}");
}

#[test]
fn rights_are_the_usual_ones() {
    use std::os::unix::fs::PermissionsExt;

    let (first, second) = (model(1), model(2));
    let case = case(&[("model.safetensors", &first)], &[("model.safetensors", &second), ("a/config.json", b"{}")]);
    let usual = case.place.path().join("usual");
    std::fs::write(&usual, "").unwrap();
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode();
    std::fs::set_permissions(case.tuned.join("a/config.json"), PermissionsExt::from_mode(0o400)).unwrap();
    case.round_trip();
    let back = case.place.path().join("back");
    for name in ["coded/model.safetensors.wfd", "stored/a/config.json", "delta.json"] {
        assert_eq!(mode(case.out.join(name)), mode(usual.clone()), "{name}");
    }
    for name in ["model.safetensors", "a/config.json"] {
        assert_eq!(mode(back.join(name)), mode(usual.clone()), "{name}");
    }
    for name in ["", "stored", "stored/a"] {
        assert_eq!(mode(case.out.join(name)), mode(case.tuned.join("a")), "{name:?}");
    }
}

#[test]
fn digests_of_directories_change_with_any_file() {
    let weights = model(1);
    let case = case(&[("model.safetensors", &weights)], &[("model.safetensors", &weights), ("a/b", b"c")]);
    let before = digest_of_files(&case.tuned).unwrap();
    write(&case.tuned, &[(".git/x", b"x")]);
    assert_eq!(digest_of_files(&case.tuned).unwrap(), before);
    write(&case.tuned, &[("a/b", b"d")]);
    assert_ne!(digest_of_files(&case.tuned).unwrap(), before);
}
