//! Bit planes with significance trees (Said & Pearlman 1996, in spirit): a research tool that codes
//! a tile's levels from the highest plane down, in the header's stream (section 6.4 of
//! `docs/BITSTREAM.md`).

use crate::entropy::models::{BitModel, Coder, TreeModel};

/// Largest number of planes: levels up to 2^14.
const MOST: usize = 15;

/// Adaptive models, by plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct BitPlaneModels {
    count: TreeModel<16>,
    /// Significance of a 4x4 block that had none so far.
    block: [BitModel; MOST],
    /// Significance of a level that had none so far, by the number of its left and upper neighbours that have some.
    level: [[BitModel; 3]; MOST],
    refine: [BitModel; MOST],
}

/// Codes 16x16 levels, row-major.
pub(crate) fn code_bit_planes<C: Coder>(coder: &mut C, models: &mut BitPlaneModels, levels: &mut [i32; 256]) {
    let largest = levels.iter().map(|l| l.unsigned_abs()).max().unwrap_or(0);
    let count = models.count.code(coder, (u32::BITS - largest.leading_zeros()).min(MOST as u32)) as usize;
    let sent = *levels;
    // Magnitudes known so far, from the highest plane down; the same on both sides.
    let mut known = [0u32; 256];
    let mut blocks = [false; 16];
    for plane in (0..count.min(MOST)).rev() {
        for (block, significant) in blocks.iter_mut().enumerate() {
            let at = |n: usize| (block / 4 * 4 + n / 4) * 16 + block % 4 * 4 + n % 4;
            if !*significant {
                let becomes = (0..16).any(|n| sent[at(n)].unsigned_abs() >> plane & 1 == 1);
                *significant = coder.bit(&mut models.block[plane], becomes);
            }
            if !*significant {
                continue;
            }
            for i in (0..16).map(at) {
                let bit = sent[i].unsigned_abs() >> plane & 1 == 1;
                if known[i] > 0 {
                    known[i] = known[i] << 1 | u32::from(coder.bit(&mut models.refine[plane], bit));
                    continue;
                }
                let left = i % 16 > 0 && known[i - 1] > 0;
                let above = i >= 16 && known[i - 16] > 0;
                let context = usize::from(left) + usize::from(above);
                if coder.bit(&mut models.level[plane][context], bit) {
                    known[i] = 1;
                    levels[i] = if coder.raw(1, u32::from(sent[i] < 0)) == 1 { -1 } else { 1 };
                }
            }
        }
        // Blocks that stayed insignificant have only zeros, which shifting keeps.
    }
    for (level, &magnitude) in levels.iter_mut().zip(&known) {
        *level = if magnitude == 0 { 0 } else { level.signum() * magnitude as i32 };
    }
}
