//! `allocate.lambdas`: a list, or a range spaced evenly by logarithms.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

/// Most lambdas of one configuration.
const MOST: usize = 10_000;

/// Both spellings, for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the schema; both spellings are parsed by hand for messages that say what is wrong")]
pub(crate) enum Lambdas {
    /// One after the other.
    List(Vec<f64>),
    /// Evenly spaced by their logarithms.
    Range(Range),
}

/// First and last lambda, and the number of lambdas with both.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    from: f64,
    to: f64,
    points: usize,
}

impl Range {
    fn values(&self) -> Result<Vec<f64>, String> {
        let Self { from, to, points } = *self;
        if !(from > 0.0 && to > 0.0) {
            return Err(format!("lambdas from {from} to {to}, expected both above 0"));
        }
        if !(2..=MOST).contains(&points) {
            return Err(format!("lambdas with points: {points}, expected 2 to {MOST}"));
        }
        let step = (to / from).ln() / (points - 1) as f64;
        // Four digits say what is meant, and are the same on every machine.
        let value = |i: usize| format!("{:.3e}", from * (step * i as f64).exp()).parse().expect("a number");
        Ok((0..points).map(value).collect())
    }
}

pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let failed = |reason: String| {
        serde::de::Error::custom(format!(
            "lambdas: {reason}; expected numbers, or {{from: 1e-8, to: 1e-12, points: 100}}"
        ))
    };
    match serde_json::Value::deserialize(deserializer)? {
        range @ serde_json::Value::Object(_) => {
            let range: Range = serde_json::from_value(range).map_err(|e| failed(e.to_string()))?;
            range.values().map_err(serde::de::Error::custom)
        }
        list => serde_json::from_value(list).map_err(|e| failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spaced_by_logarithms_and_checked() {
        let range = |from, to, points| Range { from, to, points }.values();
        assert_eq!(range(1e-8, 1e-10, 5).unwrap(), [1e-8, 3.162e-9, 1e-9, 3.162e-10, 1e-10]);
        assert_eq!(range(1e-10, 1e-8, 2).unwrap(), [1e-10, 1e-8]);
        assert!(range(0.0, 1e-8, 5).unwrap_err().contains("above 0"));
        assert!(range(1e-8, 1e-9, 1).unwrap_err().contains("points: 1"));
        let read = |text: &str| read(&mut serde_json::Deserializer::from_str(text)).map_err(|e| e.to_string());
        assert_eq!(read("[1e-8, 2]").unwrap(), [1e-8, 2.0]);
        assert!(read(r#"{"from": 1, "to": 2, "point": 3}"#).unwrap_err().contains("point"));
        assert!(read(r#""many""#).is_err());
    }
}
