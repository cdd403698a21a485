//! Which weights share scales and steps, as a configuration says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_allocate as alloc;
use waterfill_codec::TILE;

/// Which weights share scales and steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Granularity {
    /// Steps by tile alone.
    Tile,
    /// Row and column scales where they pay, and steps by tile.
    #[default]
    RowColumn,
    /// One step for a linear layer.
    Tensor,
    /// One for each of its rows.
    Channel,
    /// One for so many columns of a row.
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
    /// Scales of linear layers, and of other matrices.
    pub(crate) fn scales(self) -> (alloc::ScaleVectors, alloc::ScaleVectors) {
        use alloc::ScaleVectors as Scales;
        match self {
            Self::Tile => (Scales::None, Scales::None),
            Self::RowColumn => (Scales::RowColumn, Scales::RowColumn),
            Self::Tensor => (Scales::None, Scales::RowColumn),
            Self::Channel | Self::Group(_) => (Scales::Row, Scales::RowColumn),
        }
    }

    /// Which steps tiles of linear layers share.
    pub(crate) fn sharing(self) -> alloc::Sharing {
        match self {
            Self::Tile | Self::RowColumn => alloc::Sharing::Tile,
            Self::Tensor => alloc::Sharing::Matrix,
            Self::Channel => alloc::Sharing::Columns(usize::MAX),
            Self::Group(columns) => alloc::Sharing::Columns(columns),
        }
    }
}
