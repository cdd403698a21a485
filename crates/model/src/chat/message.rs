//! Messages of conversations, as data sets write them.

use serde::Deserialize;

/// One message of a conversation: `{"role": .., "content": ..}`, or ShareGPT's `{"from": .., "value": ..}`.
///
/// Reading one fails if neither pair is there, and for a `from` other than `human`, `gpt` and `system` (or the role
/// that each of them stands for).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Message {
    /// `system`, `user`, `assistant`, or another that the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Fields of both forms: tables have all columns, with nulls in those that a row lacks.
#[derive(Deserialize)]
struct Fields {
    role: Option<String>,
    content: Option<String>,
    from: Option<String>,
    value: Option<String>,
}

impl TryFrom<Fields> for Message {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        match fields {
            Fields { role: Some(role), content: Some(content), .. } => Ok(Self { role, content }),
            Fields { from: Some(from), value: Some(content), .. } => {
                let role = match from.as_str() {
                    "human" | "user" => "user",
                    "gpt" | "assistant" => "assistant",
                    "system" => "system",
                    _ => return Err(format!("a message is from {from:?}, expected human, gpt or system")),
                };
                Ok(Self { role: role.into(), content })
            }
            Fields { role, content, from, value } => {
                let fields = [("role", role), ("content", content), ("from", from), ("value", value)];
                let there: Vec<_> = fields.iter().filter(|(_, text)| text.is_some()).map(|(name, _)| *name).collect();
                let found =
                    if there.is_empty() { "none of these".into() } else { format!("only {}", there.join(", ")) };
                Err(format!("a message has {found}, expected texts role and content, or from and value"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let read = |text: &str| serde_json::from_str::<Message>(text).map(|m| (m.role, m.content));
        let is = |text: &str, role: &str| assert_eq!(read(text).unwrap(), (role.to_string(), "hi".to_string()));
        is(r#"{"role": "tool", "content": "hi", "name": "x"}"#, "tool");
        is(r#"{"from": "human", "value": "hi", "role": null}"#, "user");
        is(r#"{"from": "gpt", "value": "hi", "weight": 1.0}"#, "assistant");
        is(r#"{"from": "system", "value": "hi"}"#, "system");
        let fails =
            |text: &str, what: &str| assert!(read(text).is_err_and(|e| e.to_string().contains(what)), "{text}: {what}");
        fails(r#"{"role": "user", "content": null}"#, "has only role, expected texts role and content, or from and");
        fails(r#"{"text": "hi"}"#, "has none of these, expected");
        fails(r#"{"from": "bing", "value": "hi"}"#, "from \"bing\", expected human, gpt or system");
        fails(r#"{"role": "user", "content": [{"type": "image"}]}"#, "invalid type: sequence, expected a string");
    }
}
