//! How often each tool was chosen.

use std::collections::BTreeMap;

use waterfill_codec::{Kernel, Predictor, TensorPlan, TileMode, TilePlan};

/// Numbers of tiles by what they use.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage(pub BTreeMap<String, u64>);

impl Usage {
    /// Counts `tiles` by tool; of `plan` only the tensor's parameters count.
    pub fn of(tiles: &[TilePlan], plan: &TensorPlan) -> Self {
        let mut usage = Self::default();
        for tile in tiles {
            usage.count("tiles");
            if tile.format.level_range().is_none() {
                usage.count(tile.format.name());
                continue;
            }
            let plain =
                plan.parameters.trellis.is_some() && tile.mode == TileMode::Coded && tile.transform.is_identity();
            let shared = [(!tile.transform.is_identity(), "transform"), (plain, "trellis")];
            let shared = shared.iter().filter_map(|&(used, name)| used.then_some(name));
            tools_of(tile).into_iter().chain(shared).for_each(|name| usage.count(name));
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
/// Names of the tools of a tile with levels.
pub fn tools_of(tile: &TilePlan) -> Vec<&'static str> {
    let mut tools = Vec::new();
    match tile.mode {
        TileMode::Coded => {}
        TileMode::Skip => tools.push("skip"),
        TileMode::Palette(_) => tools.push("palette"),
        TileMode::BitPlanes => tools.push("bit-planes"),
        TileMode::BitShift(_) => tools.push("bit-shift-trellis"),
    }
    match tile.predictor {
        Predictor::None => {}
        Predictor::Left => tools.push("left"),
        Predictor::Top => tools.push("top"),
        Predictor::RowMean => tools.push("row-mean"),
        Predictor::ColMean => tools.push("col-mean"),
        Predictor::Linear => tools.push("linear"),
        Predictor::Row(_) => tools.push("row-copy"),
        Predictor::Dictionary(_) => tools.push("dictionary"),
        Predictor::Constant(_) => tools.push("constant"),
        Predictor::RankOne(..) => tools.push("rank-one"),
    }
    if !tile.transform.is_identity() {
        tools.extend([tile.transform.down, tile.transform.along].map(|kernel| match kernel {
            Kernel::Identity => "identity",
            Kernel::Dct => "dct",
            Kernel::Dst => "dst",
            Kernel::Hadamard => "hadamard",
            Kernel::Learned => "learned",
        }));
        if tile.transform.side < 16 {
            tools.push("split");
        }
    }
    if tile.coarse > 0 {
        tools.push("coarse");
    }
    tools
}
