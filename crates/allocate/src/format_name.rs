//! Number formats as configurations name them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use waterfill_codec::Format;

/// Number format of a tile, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FormatName(pub Format);

impl TryFrom<String> for FormatName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        found
            .map(Self)
            .ok_or_else(|| format!("format {name:?}, expected one of {}", Format::ALL.map(Format::name).join(", ")))
    }
}

impl From<FormatName> for String {
    fn from(name: FormatName) -> Self {
        name.0.name().into()
    }
}

impl JsonSchema for FormatName {
    fn schema_name() -> Cow<'static, str> {
        "Format".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Number format of a tile: int4 (levels -8 to 7), int8 (-127 to 127), fp8 (E4M3), fp8-e5m2, lossless \
                            (bit-exact), and experimental: int2 (-2 to 1), int3 (-4 to 3), fp4 (E2M1).",
            "type": "string",
            "enum": Format::ALL.map(Format::name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_codecs() {
        let names: Vec<FormatName> = serde_json::from_str(r#"["int4", "fp8-e5m2"]"#).unwrap();
        assert_eq!(names, [FormatName(Format::Int4), FormatName(Format::Fp8E5M2)]);
        assert_eq!(serde_json::to_string(&names).unwrap(), r#"["int4","fp8-e5m2"]"#);
        assert!(serde_json::from_str::<FormatName>(r#""int5""#).unwrap_err().to_string().contains("int8"));
    }
}
