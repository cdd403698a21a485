//! How often each tool was chosen.

use std::collections::BTreeMap;

use waterfill_codec::{Kind, Predictor, TensorPlan, TilePlan};

/// Numbers of tiles by what they use.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage(pub BTreeMap<String, u64>);

impl Usage {
    /// Counts the tiles of a plan, whose own are not looked at.
    pub fn of(tiles: &[TilePlan], plan: &TensorPlan) -> Self {
        let mut usage = Self::default();
        for tile in tiles {
            usage.count("tiles");
            if tile.format.level_range().is_none() {
                usage.count(tile.format.name());
                continue;
            }
            match tile.kind {
                Kind::Coded => {}
                Kind::Skip => usage.count("skip"),
                Kind::Palette(_) => usage.count("palette"),
                Kind::BitPlanes => usage.count("bit-planes"),
            }
            match tile.predictor {
                Predictor::None => {}
                Predictor::Left => usage.count("left"),
                Predictor::Top => usage.count("top"),
                Predictor::RowMean => usage.count("row-mean"),
                Predictor::ColMean => usage.count("col-mean"),
                Predictor::Linear => usage.count("linear"),
                Predictor::Row(_) => usage.count("row-copy"),
                Predictor::Dictionary(_) => usage.count("dictionary"),
                Predictor::Constant(_) => usage.count("constant"),
                Predictor::RankOne(..) => usage.count("rank-one"),
            }
            if !tile.transform.is_identity() {
                usage.count("transform");
                for kernel in [tile.transform.down, tile.transform.along] {
                    usage.count(&format!("{kernel:?}").to_lowercase());
                }
                if tile.transform.side < 16 {
                    usage.count("split");
                }
            }
            if tile.coarse > 0 {
                usage.count("coarse");
            }
            if plan.parameters.trellis.is_some() && tile.kind == Kind::Coded && tile.transform.is_identity() {
                usage.count("trellis");
            }
        }
        usage
    }

    fn count(&mut self, name: &str) {
        *self.0.entry(name.into()).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(name, n)| *self.0.entry(name.clone()).or_default() += n);
    }
}
