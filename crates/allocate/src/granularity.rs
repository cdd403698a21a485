//! Which weights share scales and steps, by one name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_codec::TILE;

use crate::scales::ScaleVectors;
use crate::structure::Sharing;

/// Which weights share scales and steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Granularity {
    /// `tile`: steps by tile alone.
    Tile,
    /// `row-column`: row and column scales where they pay, and steps by tile.
    #[default]
    RowColumn,
    /// `tensor`: one step for a linear layer.
    Tensor,
    /// `channel`: one step for each row of a linear layer.
    Channel,
    /// `group:N`: one step for `N` columns of a row of a linear layer.
    Group(usize),
}

impl TryFrom<String> for Granularity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let group = || text.strip_prefix("group:")?.parse().ok().filter(|n: &usize| *n > 0 && n.is_multiple_of(TILE));
        match text.as_str() {
            "tile" => Ok(Self::Tile),
            "row-column" => Ok(Self::RowColumn),
            "tensor" => Ok(Self::Tensor),
            "channel" => Ok(Self::Channel),
            _ => group().map(Self::Group).ok_or_else(|| {
                format!(
                    "granularity {text:?}, expected tile, row-column, tensor, channel, or group:N where N is a multiple of \
                     {TILE}, such as group:128"
                )
            }),
        }
    }
}

impl From<Granularity> for String {
    fn from(granularity: Granularity) -> Self {
        match granularity {
            Granularity::Tile => "tile".into(),
            Granularity::RowColumn => "row-column".into(),
            Granularity::Tensor => "tensor".into(),
            Granularity::Channel => "channel".into(),
            Granularity::Group(columns) => format!("group:{columns}"),
        }
    }
}

impl Granularity {
    /// Scale vectors of linear layers, and of other matrices.
    pub fn scales(self) -> (ScaleVectors, ScaleVectors) {
        match self {
            Self::Tile => (ScaleVectors::None, ScaleVectors::None),
            Self::RowColumn => (ScaleVectors::RowColumn, ScaleVectors::RowColumn),
            Self::Tensor => (ScaleVectors::None, ScaleVectors::RowColumn),
            Self::Channel | Self::Group(_) => (ScaleVectors::Row, ScaleVectors::RowColumn),
        }
    }

    /// Which tiles of a linear layer share their step.
    pub fn sharing(self) -> Sharing {
        match self {
            Self::Tile | Self::RowColumn => Sharing::Tile,
            Self::Tensor => Sharing::Matrix,
            Self::Channel => Sharing::Columns(usize::MAX),
            Self::Group(columns) => Sharing::Columns(columns),
        }
    }
}
