//! Names of models and datasets on the hub.

use std::fmt;
use std::str::FromStr;

/// Kind of a repository on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint.
    Model,
    /// Tables and texts.
    Dataset,
}

impl Kind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

/// `OWNER/NAME`, with `@REVISION` (a branch, tag or commit) or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    kind: Kind,
    name: String,
    revision: Option<String>,
}

impl HubId {
    /// Reads the name of a model or a dataset.
    ///
    /// # Errors
    /// A message if `text` is not `OWNER/NAME` or `OWNER/NAME@REVISION`.
    pub fn new(kind: Kind, text: &str) -> Result<Self, String> {
        Ok(Self { kind, ..text.parse()? })
    }

    /// Whether it names a model or a dataset.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `OWNER/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address of its page.
    pub(crate) fn page(&self, endpoint: &str) -> String {
        match self.kind {
            Kind::Model => format!("{endpoint}/{}", self.name),
            Kind::Dataset => format!("{endpoint}/datasets/{}", self.name),
        }
    }

    /// The revision, `main` where none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl FromStr for HubId {
    type Err = String;

    /// The name of a model.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        // Names become paths and addresses: nothing in them may lead elsewhere.
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
        };
        if name.split('/').count() > 2 || !name.split('/').all(plain) {
            return Err(format!("hub id {name:?}, expected OWNER/NAME, such as meta-llama/Meta-Llama-3-8B"));
        }
        match revision {
            Some(r) if !r.split('/').all(plain) => Err(format!("revision {r:?}, expected a branch, tag or commit")),
            _ => Ok(Self { kind: Kind::Model, name: name.into(), revision: revision.map(Into::into) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_nothing_leads_elsewhere() {
        let id: HubId = "meta-llama/Meta-Llama-3-8B@v1.0".parse().unwrap();
        assert_eq!((id.name(), id.revision()), ("meta-llama/Meta-Llama-3-8B", "v1.0"));
        assert_eq!("gpt2".parse::<HubId>().unwrap().revision(), "main");
        assert_eq!("a/b@refs/pr/1".parse::<HubId>().unwrap().to_string(), "a/b@refs/pr/1");
        for bad in ["", "a/b/c", "a/../b", "/etc", "a b/c", "a/b@../x", "a/b@", "http://x/y", "a/b?x"] {
            assert!(bad.parse::<HubId>().is_err(), "{bad}");
        }
    }
}
