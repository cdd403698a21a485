//! Files by patterns.

use std::path::{Path, PathBuf};

use globset::GlobBuilder;

/// Greatest depth of folders.
const DEPTH: usize = 6;

/// Files below `dir` that [`matching`] selects by their paths relative to `dir`, sorted.
pub fn matching_files(dir: &Path, patterns: &[String]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    list(dir, String::new(), DEPTH, &mut files);
    matching(patterns, &files).into_iter().map(|name| dir.join(name)).collect()
}

/// Selects names: the first of `patterns` that matches any of `files` decides, and all names that it matches are returned,
/// sorted. `*` stands for anything but a slash.
pub fn matching<'a>(patterns: &[String], files: &'a [String]) -> Vec<&'a str> {
    let matches = |pattern: &String| -> Vec<&'a str> {
        let Ok(glob) = GlobBuilder::new(pattern).literal_separator(true).build() else { return vec![] };
        let glob = glob.compile_matcher();
        let mut found: Vec<&str> = files.iter().map(String::as_str).filter(|f| glob.is_match(f)).collect();
        found.sort_unstable();
        found
    };
    patterns.iter().map(matches).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Names of the files below `dir`, with slashes.
fn list(dir: &Path, before: String, depth: usize, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true if depth > 0 => list(&entry.path(), format!("{name}/"), depth - 1, files),
            true => {}
            false => files.push(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_files_have_counts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["all/test-00001-of-00002.parquet", "all/test-00000-of-00002.parquet", "all/deep/test-1.parquet"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |patterns: &[&str]| -> Vec<String> {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            let files = matching_files(dir.path(), &patterns);
            files.iter().map(|f| f.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned()).collect()
        };
        let both = ["all/test-00000-of-00002.parquet", "all/test-00001-of-00002.parquet"];
        assert_eq!(found(&["data/test-*.parquet", "all/test-*.parquet", "all/deep/*"]), both);
        assert_eq!(found(&["all/deep/*"]), ["all/deep/test-1.parquet"]);
        assert!(found(&["test-*.parquet", "[", "*"]).is_empty());
    }
}
