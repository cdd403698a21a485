//! Names of files in lists that come from anyone: relative paths with `/`, below one directory.

use std::collections::BTreeSet;

use crate::error::FileError;

/// Refuses a name that is no relative path below a directory.
pub(crate) fn check_name(name: &str) -> Result<(), FileError> {
    if name.contains(['\\', '\0']) {
        return Err(FileError::NameCharacter { name: name.into() });
    }
    // An empty part is a name without characters, one of the root, or a doubled slash.
    match name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        true => Err(FileError::LeavesDirectory { name: name.into() }),
        false => Ok(()),
    }
}

/// As [`check_name`], for the name of a file directly in a directory.
pub(crate) fn check_plain_name(name: &str) -> Result<(), FileError> {
    match name.contains('/') {
        true => Err(FileError::LeavesDirectory { name: name.into() }),
        false => check_name(name),
    }
}

/// Refuses a bad name among several, and a name that is a folder of another.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), FileError> {
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    for name in &names {
        check_name(name)?;
        let mut folders = name.match_indices('/').map(|(at, _)| &name[..at]);
        if let Some(file) = folders.find(|folder| names.contains(folder)) {
            return Err(FileError::FileAndFolder { file: file.into(), inside: name.to_string() });
        }
    }
    Ok(())
}

pub(crate) fn is_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_directory() {
        for name in [".gitattributes", "a/b/c", "...", "a..b", ".hidden/x", " ", "ünï/\u{7f}", "coded/x.wfd"] {
            check_name(name).unwrap();
        }
        for name in ["", ".", "..", "/etc/passwd", "a/../b", "a//b", "a/", "./a", "a/.", "\0", "a\\b", "C:\\x"] {
            let message = check_name(name).unwrap_err().to_string();
            assert!(message.contains("leaves the directory") || message.contains("backslash"), "{name:?}: {message}");
        }
        assert!(check_plain_name("model.safetensors").is_ok() && check_plain_name("a/b").is_err());
    }

    #[test]
    fn no_name_is_a_file_and_a_folder() {
        let check = |names: &[&str]| check_names(names.iter().map(|n| n.to_string()).collect::<Vec<_>>().iter());
        check(&["a", "a.b", "a-b/c", "b/c", "b/d"]).unwrap();
        let message = check(&["b/c/d", "b!", "b/c"]).unwrap_err().to_string();
        assert!(message.contains("\"b/c/d\"") && message.contains("\"b/c\""), "{message}");
    }
}
