//! `calibrate.text`: one text, or several by share.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One of the texts of a calibration. What it does not say is as the section has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextEntry {
    /// A file, rows on the hub, or `fixture`.
    pub text: String,
    /// Its part of the sequences, against the other texts' shares.
    #[serde(default = "one")]
    pub share: f64,
    /// Text between two rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// Number of rows to take, from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// First and last share of its tokens to use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<[f64; 2]>,
    /// Rows are conversations (`messages` of `role` and `content`), written with the model's own chat template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
}

fn one() -> f64 {
    1.0
}

impl TextEntry {
    /// A text by itself.
    pub fn alone(text: &str) -> Self {
        Self { text: text.into(), share: 1.0, join: None, documents: None, part: None, chat: false }
    }

    fn is_plain(&self) -> bool {
        *self == Self::alone(&self.text)
    }
}

/// All spellings, for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the schema; the spellings are parsed by hand for messages that say what is wrong")]
pub(crate) enum Texts {
    /// One text.
    One(String),
    /// Several.
    Several(Vec<Entry>),
}

/// A text of a list.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the schema")]
pub(crate) enum Entry {
    /// By its name alone.
    Plain(String),
    /// With its share.
    Shared(TextEntry),
}

pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TextEntry>, D::Error> {
    use serde_json::Value;
    let failed = |reason: String| {
        serde::de::Error::custom(format!("text: {reason}; expected a name, or a list of {{text: NAME, share: 1}}"))
    };
    let entry = |value: Value| match value {
        Value::String(text) => Ok(TextEntry::alone(&text)),
        value => serde_json::from_value(value).map_err(|e| failed(e.to_string())),
    };
    match Value::deserialize(deserializer)? {
        Value::Array(list) if list.is_empty() => Err(failed("the list is empty".into())),
        Value::Array(list) => list.into_iter().map(entry).collect(),
        one => Ok(vec![entry(one)?]),
    }
}

pub(crate) fn write<S: Serializer>(texts: &[TextEntry], serializer: S) -> Result<S::Ok, S::Error> {
    match texts {
        [one] if one.is_plain() => one.text.serialize(serializer),
        several => several.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_and_several_are_read_and_written() {
        let read = |text: &str| read(&mut serde_json::Deserializer::from_str(text)).map_err(|e| e.to_string());
        let written = |texts: &[TextEntry]| {
            let mut bytes = Vec::new();
            write(texts, &mut serde_json::Serializer::new(&mut bytes)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(read(r#""a.txt""#).unwrap(), [TextEntry::alone("a.txt")]);
        assert_eq!(written(&[TextEntry::alone("a.txt")]), r#""a.txt""#);
        let several = read(r#"["a.txt", {"text": "b.jsonl", "share": 2, "chat": true, "part": [0, 0.5]}]"#).unwrap();
        assert_eq!((several[0].share, several[1].share, several[1].chat), (1.0, 2.0, true));
        assert_eq!(read(&written(&several)).unwrap(), several);
        assert!(read("[]").unwrap_err().contains("empty"));
        assert!(read(r#"[{"text": "a", "shares": 2}]"#).unwrap_err().contains("shares"));
        assert!(read("3").unwrap_err().contains("expected a name"));
    }
}
