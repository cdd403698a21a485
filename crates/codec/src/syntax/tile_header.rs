//! Syntax of tile headers (section 6 of `docs/BITSTREAM.md`).

use crate::constants::TILE;
use crate::entropy::models::{BitModel, Coder, IntModel, TreeModel};
use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::syntax::tile_plan::{Kernel, MAX_COARSE, MAX_PLANE, Palette, Predictor, TileMode, TilePlan, Transform};
use crate::syntax::tools::Tools;

/// Adaptive models of tile headers; every slice starts afresh, so that it can be decoded alone.
#[derive(Debug, Clone, Default)]
pub struct HeaderModels {
    merged: [BitModel; 2],
    /// By the format of the tile to the left.
    format: [TreeModel<8>; 8],
    /// Mean of the steps coded so far, in 16ths, and the number of steps in it.
    mean_step: i32,
    steps: i32,
    step: IntModel,
    sigma: IntModel,
    /// By whether the tile to the left is skipped.
    mode: [TreeModel<4>; 2],
    predictor: TreeModel<16>,
    /// Row distances, dictionary indices, constants.
    argument: [IntModel; 3],
    rank_one: IntModel,
    palette: IntModel,
    coarse: IntModel,
    down: TreeModel<8>,
    along: TreeModel<8>,
    split: [BitModel; 2],
    code_bits: TreeModel<8>,
    planes: crate::syntax::bit_planes::BitPlaneModels,
}

impl HeaderModels {
    pub(crate) fn planes(&mut self) -> &mut crate::syntax::bit_planes::BitPlaneModels {
        &mut self.planes
    }

    /// Expected step: the mean of the slice, to which tiles are closer than to their neighbours.
    fn expected_step(&self) -> i16 {
        ((self.mean_step + 8) >> 4) as i16
    }

    fn learn_step(&mut self, step: i16) {
        self.steps = (self.steps + 1).min(64);
        self.mean_step += (16 * i32::from(step) - self.mean_step).div_euclid(self.steps);
    }

    pub(crate) fn merged<C: Coder>(&mut self, coder: &mut C, level: usize, merged: bool) -> bool {
        coder.bit(&mut self.merged[level], merged)
    }
}

/// Context of a tile header.
#[derive(Debug, Clone, Copy)]
pub struct HeaderContext {
    /// Tools of the tensor.
    pub tools: Tools,
    /// Tile to the left in the slice.
    pub left: Option<TilePlan>,
    /// True if the tensor's edge does not cut the tile.
    pub full: bool,
}

/// Codes the header of a tile. Encoders and counters change `tile` only in fields that the syntax implies.
///
/// # Errors
/// Values that no tile may have.
pub fn code_tile<C: Coder>(
    coder: &mut C,
    models: &mut HeaderModels,
    context: &HeaderContext,
    tile: &mut TilePlan,
) -> Result<()> {
    let tools = context.tools;
    let left = context.left.unwrap_or_default();
    let format = models.format[left.format as usize].code(coder, tile.format as u32);
    tile.format = Format::from_code(format as u8).expect("three bits");
    let expected = models.expected_step();
    if tile.format == Format::Lossless || !tools.has(Tools::STEPS) {
        tile.step = expected;
    } else {
        let step = i32::from(expected) + models.step.code(coder, i32::from(tile.step) - i32::from(expected));
        tile.step = step.clamp(-2000, 2000) as i16;
        models.learn_step(tile.step);
    }
    // A refinement's sigmas follow its steps.
    let expected = if tools.has(Tools::REFINEMENT) { tile.step } else { 0 };
    tile.sigma = match tools.has(Tools::SIGMAS) {
        true => expected + models.sigma.code(coder, (tile.sigma - expected).into()).clamp(-127, 127) as i16,
        false => expected,
    };
    if tile.format.level_range().is_none() {
        (tile.mode, tile.predictor, tile.coarse, tile.transform) = Default::default();
        return Ok(());
    }
    if tools.has(Tools::BIT_SHIFT) {
        let bits = if let TileMode::BitShift(bits) = tile.mode { bits } else { 1 };
        tile.mode = TileMode::BitShift(1 + models.code_bits.code(coder, u32::from(bits) - 1) as u8);
        (tile.predictor, tile.coarse, tile.transform) = Default::default();
        return Ok(());
    }
    code_mode(coder, models, context, &mut tile.mode)?;
    if tools.has(Tools::PREDICTORS) {
        tile.predictor = code_predictor(coder, models, context, tile.predictor)?;
    } else {
        tile.predictor = Predictor::None;
    }
    if !matches!(tile.mode, TileMode::Coded | TileMode::BitPlanes) {
        (tile.coarse, tile.transform) = Default::default();
        return Ok(());
    }
    tile.coarse = match tools.has(Tools::COARSE) {
        true => models.coarse.code(coder, tile.coarse.into()).clamp(0, MAX_COARSE.into()) as u8,
        false => 0,
    };
    if tools.has(Tools::TRANSFORMS) && context.full && tools.tile() == TILE {
        code_transform(coder, models, tools, &mut tile.transform)
    } else {
        tile.transform = Transform::default();
        Ok(())
    }
}

fn code_mode<C: Coder>(
    coder: &mut C,
    models: &mut HeaderModels,
    context: &HeaderContext,
    mode: &mut TileMode,
) -> Result<()> {
    if !context.tools.has(Tools::MODES) {
        *mode = TileMode::Coded;
        return Ok(());
    }
    let skipped = context.left.is_some_and(|l| l.mode == TileMode::Skip);
    let code = match mode {
        TileMode::Coded => 0,
        TileMode::Skip => 1,
        TileMode::Palette(_) => 2,
        TileMode::BitPlanes => 3,
        // Has no mode in the bitstream.
        TileMode::BitShift(_) => 0,
    };
    *mode = match models.mode[usize::from(skipped)].code(coder, code) {
        0 => TileMode::Coded,
        1 => TileMode::Skip,
        2 => {
            let mut palette = if let TileMode::Palette(p) = mode { *p } else { Palette::default() };
            palette.len = coder.raw(3, u32::from(palette.len.wrapping_sub(1)) & 7) as u8 + 1;
            let len = usize::from(palette.len);
            for value in &mut palette.values[..len] {
                *value = plane_value(models.palette.code(coder, (*value).into()));
            }
            palette.values[len..].fill(0);
            TileMode::Palette(palette)
        }
        _ if context.full && context.tools.tile() == TILE => TileMode::BitPlanes,
        _ => return Err(CodecError::Field { field: "tile mode", found: 3, expected: "0..=2 in a tile that is cut" }),
    };
    Ok(())
}

fn plane_value(value: i32) -> i16 {
    value.clamp((-MAX_PLANE).into(), MAX_PLANE.into()) as i16
}

fn code_predictor<C: Coder>(
    coder: &mut C,
    models: &mut HeaderModels,
    context: &HeaderContext,
    predictor: Predictor,
) -> Result<Predictor> {
    Ok(match models.predictor.code(coder, predictor.code()) {
        0 => Predictor::None,
        1 => Predictor::Left,
        2 => Predictor::Top,
        3 => Predictor::RowMean,
        4 => Predictor::ColMean,
        5 => Predictor::Linear,
        6 => {
            let distance = if let Predictor::Row(d) = predictor { d.into() } else { 0 };
            Predictor::Row(models.argument[0].code(coder, distance).clamp(0, u16::MAX.into()) as u16)
        }
        7 => {
            let index = if let Predictor::Dictionary(i) = predictor { i.into() } else { 0 };
            Predictor::Dictionary(models.argument[1].code(coder, index).clamp(0, 255) as u8)
        }
        8 => {
            let value = if let Predictor::Constant(v) = predictor { v.into() } else { 0 };
            Predictor::Constant(plane_value(models.argument[2].code(coder, value)))
        }
        9 if context.tools.tile() == TILE => {
            let (mut u, mut v) = if let Predictor::RankOne(u, v) = predictor { (u, v) } else { Default::default() };
            for value in u.iter_mut().chain(&mut v) {
                *value = plane_value(models.rank_one.code(coder, (*value).into())) as i8;
            }
            Predictor::RankOne(u, v)
        }
        found => return Err(CodecError::Field { field: "predictor", found: found.into(), expected: "0..=9" }),
    })
}

fn code_transform<C: Coder>(
    coder: &mut C,
    models: &mut HeaderModels,
    tools: Tools,
    transform: &mut Transform,
) -> Result<()> {
    let wrong = |found: u32| CodecError::Field { field: "transform", found: found.into(), expected: "0..=4" };
    let down = models.down.code(coder, transform.down as u32);
    let along = models.along.code(coder, transform.along as u32);
    transform.down = Kernel::from_code(down as u8).ok_or(wrong(down))?;
    transform.along = Kernel::from_code(along as u8).ok_or(wrong(along))?;
    if transform.is_identity() {
        transform.side = 16;
        return Ok(());
    }
    let split = coder.bit(&mut models.split[0], transform.side < 16);
    transform.side = match split {
        false => 16,
        true if coder.bit(&mut models.split[1], transform.side < 8) => 4,
        true => 8,
    };
    let learned = transform.down == Kernel::Learned || transform.along == Kernel::Learned;
    if learned && (!tools.has(Tools::LEARNED) || transform.side != 16) {
        return Err(CodecError::Field { field: "transform", found: 4, expected: "0..=3 without a matrix of its own" });
    }
    Ok(())
}

/// True if two tiles have the same header: the step of a lossless tile is not in it.
pub fn same_header(a: &TilePlan, b: &TilePlan) -> bool {
    a == b || a.format == Format::Lossless && b.format == Format::Lossless && a.sigma == b.sigma
}
