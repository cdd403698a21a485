//! Configurations that cannot be used.

use std::fmt;
use std::path::PathBuf;

/// Result of reading configurations.
pub type Result<T> = std::result::Result<T, ConfigError>;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The text is not YAML.
    #[error("{path}: {source}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Error of the parser, with line and column.
        source: serde_yaml::Error,
    },
    /// A number that is not finite.
    #[error("{path}: {key} is {value}, expected a finite number")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: String,
        /// The number: `.nan`, `.inf` or `-.inf`.
        value: String,
    },
    /// The top of the file is not a mapping.
    #[error("{path}: expected keys and values at the top")]
    NotAMapping {
        /// The file.
        path: PathBuf,
    },
    /// `include` is not a list of files.
    #[error("{path}: include: expected a list of files")]
    Include {
        /// The file.
        path: PathBuf,
    },
    /// Includes nest too deeply.
    #[error("{path}: includes nest deeper than {most}; does a file include itself?")]
    IncludeDepth {
        /// The file in which the chain ends.
        path: PathBuf,
        /// Deepest chain that is followed.
        most: usize,
    },
    /// A key is given under its old and its new name.
    #[error("{path}: {new} is given twice, also under its old name {old}; remove the old one")]
    GivenTwice {
        /// The file.
        path: PathBuf,
        /// Dotted key of the last version.
        old: String,
        /// Dotted key of this version.
        new: String,
    },
    /// A key that no section has.
    #[error("{}: unknown key {key}{}", .path.display(), .nearest.as_ref().map_or(String::new(), |n| format!("; did you mean {n}?")))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: String,
        /// The known key that is spelled most alike.
        nearest: Option<String>,
    },
    /// A value of the wrong type.
    #[error("{path}: {key}: {source}")]
    Type {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: String,
        /// Expected and found type.
        source: serde_json::Error,
    },
    /// Values outside their limits.
    #[error("{}: {}", .path.display(), .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Limits {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
    /// A file with a `sweep` section where one pipeline is expected.
    #[error("{path}: has a sweep section: `waterfill sweep` runs it")]
    IsSweep {
        /// The file.
        path: PathBuf,
    },
    /// A file that a configuration names does not exist.
    #[error("{path}: {key} is {file:?}, which does not exist (paths are relative to the working directory)")]
    MissingFile {
        /// The configuration.
        path: PathBuf,
        /// Dotted key.
        key: String,
        /// The missing file.
        file: String,
    },
    /// A run of a sweep cannot be used.
    #[error("{}: run {label}: {source}", .path.display())]
    Run {
        /// The sweep's file.
        path: PathBuf,
        /// Label of the run.
        label: String,
        /// Reason, without the file's name.
        source: RunError,
    },
    /// A sweep has two runs with the same label and settings.
    #[error("{path}: run {label} is there twice")]
    Twins {
        /// The sweep's file.
        path: PathBuf,
        /// Label of both.
        label: String,
    },
    /// A sweep has too many runs.
    #[error("{path}: more than {most} runs")]
    TooManyRuns {
        /// The sweep's file.
        path: PathBuf,
        /// Limit.
        most: usize,
    },
}

/// Reason why a run's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting's key leads through a value that is not a section.
    #[error("{key}: {part} is inside something that is no section")]
    NoSection {
        /// Dotted key.
        key: String,
        /// The part of the key that has no place.
        part: String,
    },
    /// The configuration with the settings in it.
    #[error("{}", without_path(.0))]
    Config(Box<ConfigError>),
}

/// The message of an error without the file's name, which the outer error gives.
fn without_path(error: &ConfigError) -> String {
    let text = error.to_string();
    match error {
        ConfigError::UnknownKey { path, .. } | ConfigError::Type { path, .. } | ConfigError::Limits { path, .. } => {
            text.strip_prefix(&format!("{}: ", path.display())).map_or(text.clone(), String::from)
        }
        _ => text,
    }
}

/// One value of a configuration that cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// A number outside its limits.
    OutOfRange {
        /// Dotted key.
        key: String,
        /// Number found.
        value: f64,
        /// Smallest number allowed.
        low: f64,
        /// Largest number allowed.
        high: f64,
    },
    /// Any other condition: key, found and expected in words.
    Unmet(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::OutOfRange { key, value, low, high } => write!(f, "{key} is {value}, expected {low} to {high}"),
            Self::Unmet(message) => f.write_str(message),
        }
    }
}
