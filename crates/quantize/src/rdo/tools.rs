//! Coding tools by name, and the presets.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tool of the codec that the search may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// Prediction from the column to the left.
    Left,
    /// Prediction from the row above.
    Top,
    /// Prediction from row means of the tile to the left.
    RowMean,
    /// Prediction from column means of the tile above.
    ColMean,
    /// Linear prediction from left and top.
    Linear,
    /// Prediction from an earlier row.
    RowCopy,
    /// Prediction from a dictionary of rows.
    Dictionary,
    /// Constant tiles.
    Constant,
    /// Outer products.
    RankOne,
    /// Tiles that equal their prediction.
    Skip,
    /// Tiles of a few values.
    Palette,
    /// Headers shared by groups of tiles.
    Merge,
    /// DCT-II.
    Dct,
    /// DST-VII.
    Dst,
    /// Walsh-Hadamard.
    Hadamard,
    /// Transforms of 8 and 4 in a tile.
    Split,
    /// Tile spreads that follow what is coded.
    Spread,
    /// Rate-distortion optimised quantization.
    Rdoq,
    /// Reconstruction points off the middle, on a finer plane.
    Centroids,
    /// Classes refined by levels to the left.
    Neighbours,
    /// A transform learned for the tensor; experimental.
    Learned,
    /// A linear filter after decoding; experimental.
    Filter,
    /// Bit planes with significance trees; experimental.
    BitPlanes,
    /// Tiles of 8x8; experimental.
    Tile8,
    /// Tiles of 32x32; experimental.
    Tile32,
    /// Tiles of 64x64; experimental.
    Tile64,
}

impl Tool {
    /// All tools.
    pub const ALL: [Self; 26] = [
        Self::Left,
        Self::Top,
        Self::RowMean,
        Self::ColMean,
        Self::Linear,
        Self::RowCopy,
        Self::Dictionary,
        Self::Constant,
        Self::RankOne,
        Self::Skip,
        Self::Palette,
        Self::Merge,
        Self::Dct,
        Self::Dst,
        Self::Hadamard,
        Self::Split,
        Self::Spread,
        Self::Rdoq,
        Self::Centroids,
        Self::Neighbours,
        Self::Learned,
        Self::Filter,
        Self::BitPlanes,
        Self::Tile8,
        Self::Tile32,
        Self::Tile64,
    ];

    /// Tools that predict a tile.
    pub(super) const PREDICTING: [Self; 9] = [
        Self::Left,
        Self::Top,
        Self::RowMean,
        Self::ColMean,
        Self::Linear,
        Self::RowCopy,
        Self::Dictionary,
        Self::Constant,
        Self::RankOne,
    ];

    /// True for tools that exist to be measured, not to be shipped.
    pub const fn is_experimental(self) -> bool {
        self as u8 >= Self::Learned as u8
    }

    /// True for tools that spend measured quality on bits, on the models measured.
    const fn loses_quality(self) -> bool {
        matches!(self, Self::Dct | Self::Dst | Self::Hadamard | Self::Split | Self::Rdoq | Self::Centroids)
    }

    /// Name in configurations.
    pub fn name(self) -> String {
        let json = serde_json::to_string(&self).expect("a unit variant");
        json.trim_matches('"').to_string()
    }
}

/// Tools that go together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// No search: every tile is coded as it was allocated.
    Fast,
    /// Tools that pay on the models measured.
    #[default]
    Balanced,
    /// Every tool that is not experimental and does not lose measured quality: transforms,
    /// rate-distortion optimised rounding and centroids take more at equal KL than they save at equal
    /// predicted loss.
    Best,
}

impl Preset {
    /// Its tools.
    pub fn tools(self) -> BTreeSet<Tool> {
        match self {
            Self::Fast => BTreeSet::new(),
            Self::Balanced => {
                BTreeSet::from([Tool::ColMean, Tool::RowCopy, Tool::Dictionary, Tool::Skip, Tool::Merge, Tool::Spread])
            }
            Self::Best => Tool::ALL.into_iter().filter(|t| !t.is_experimental() && !t.loses_quality()).collect(),
        }
    }
}
