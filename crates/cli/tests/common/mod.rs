//! Running the built command in a directory of its own. Each test file uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A directory with a store and configurations.
pub struct Place {
    dir: tempfile::TempDir,
}

/// A small pipeline over the generated model; `allocate` is the body of that section.
pub fn pipeline(allocate: &str) -> String {
    format!(
        "name: fixture\nmodel: fixture:7\n\
         calibrate: {{text: fixture, context: 48, sequences: 24, folds: 2, hessian: block-diagonal, hessian_block: 32}}\n\
         allocate: {{{allocate}}}\n\
         evaluate: {{text: fixture, context: 48, sequences: 16, multiple_choice: {{path: fixture, questions: 24, shots: 1}}}}\n"
    )
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Runs `waterfill` with arguments, in the directory.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_waterfill")).args(arguments).current_dir(self.dir.path()).output().unwrap()
    }

    /// Starts `waterfill` in the directory; its messages go to `errors`.
    pub fn start(&self, arguments: &[&str], errors: Stdio) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waterfill"));
        command.args(arguments).current_dir(self.dir.path()).stdout(Stdio::null()).stderr(errors).spawn().unwrap()
    }

    /// As [`Place::run`], expecting success; standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "waterfill {}: {errors}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`Place::run`], expecting failure; the message.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "waterfill {}", arguments.join(" "));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!message.contains("panicked"), "{message}");
        message
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let out = self.ok(&[&["--json"], arguments].concat());
        assert_eq!(out.trim_end().lines().count(), 1, "exactly one object");
        serde_json::from_str(&out).unwrap()
    }
}

/// All files below a directory with their bytes, timings and records of runs left out; none where it is not there yet.
pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut stack: Vec<PathBuf> = dir.exists().then(|| dir.to_path_buf()).into_iter().collect();
    while let Some(next) = stack.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.extend((path.file_name().unwrap() != "runs").then_some(path));
            } else if path.file_name().unwrap() != "timings.json" {
                all.push((path.strip_prefix(dir).unwrap().to_path_buf(), std::fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}
