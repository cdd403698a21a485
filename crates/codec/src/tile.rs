//! What is decided for a tile, and the syntax of its header (section 6 of `docs/BITSTREAM.md`).

use crate::TILE;
use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::symbol::{BitModel, Coder, IntModel, TreeModel};
use crate::tools::Tools;
use crate::transform::{Kernel, Transform};

/// What is decided for one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TilePlan {
    /// Number format of the samples. The fields below `spread` hold for integer formats only.
    pub format: Format,
    /// Step index, quarter octaves over the tensor's step base. A lossless tile has what is
    /// expected.
    pub step: i16,
    /// Deviation of the tile's spread from the row and column model, quarter octaves.
    pub spread: i16,
    /// How the plane is coded.
    pub kind: Kind,
    /// What the plane is predicted from.
    pub predictor: Predictor,
    /// The quantiser's step over the plane's, quarter octaves, 0..=31.
    pub coarse: u8,
    /// Transform of the residual; tiles cut by the tensor's edge have none.
    pub transform: Transform,
}

/// How the plane of an integer tile is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Levels of the residual.
    #[default]
    Coded,
    /// The plane is the prediction.
    Skip,
    /// Every value is one of a few.
    Palette(Palette),
    /// Levels of the residual, in bit planes with significance trees; experimental, 16x16 only.
    BitPlanes,
}

/// Two to eight values of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Palette {
    /// How many there are.
    pub len: u8,
    /// The values; zero from `len` on.
    pub values: [i16; 8],
}

impl Palette {
    /// Bits of an index.
    pub fn bits(self) -> u32 {
        u32::from(self.len.max(2) - 1).ilog2() + 1
    }
}

/// What the plane of a tile is predicted from, in units of its step. Values of neighbours are
/// rescaled from their tile's step; what lies outside the slice or belongs to a tile without a
/// plane counts as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Predictor {
    /// Zero.
    #[default]
    None,
    /// The value to the left of the tile in the same row.
    Left,
    /// The value above the tile in the same column.
    Top,
    /// The mean of the tile to the left over the same row.
    RowMean,
    /// The mean of the tile above over the same column.
    ColMean,
    /// (a left + b top + c) / 64 with the tensor's coefficients.
    Linear,
    /// The row this many rows above the tile's first.
    Row(u16),
    /// A row of the tensor's dictionary.
    Dictionary(u8),
    /// One value.
    Constant(i16),
    /// Outer product of a column and a row over 16; 16x16 only.
    RankOne([i8; TILE], [i8; TILE]),
}

impl Predictor {
    fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Left => 1,
            Self::Top => 2,
            Self::RowMean => 3,
            Self::ColMean => 4,
            Self::Linear => 5,
            Self::Row(_) => 6,
            Self::Dictionary(_) => 7,
            Self::Constant(_) => 8,
            Self::RankOne(..) => 9,
        }
    }
}

/// Largest coarseness: the quantiser's step is at most 2^7.75 of the plane's.
pub const MAX_COARSE: u8 = 31;
/// Largest magnitude of constants and palette values: planes hold no more.
pub const MAX_PLANE: i16 = 127;

/// Adaptive models of tile headers; every slice starts afresh, so that it can be decoded alone.
#[derive(Debug, Clone, Default)]
pub struct HeaderModels {
    merged: [BitModel; 2],
    /// By the format of the tile to the left.
    format: [TreeModel<8>; 8],
    /// Mean of the steps coded so far, in 16ths, and the number of them that it is over.
    mean_step: i32,
    steps: i32,
    step: IntModel,
    spread: IntModel,
    /// By whether the tile to the left is skipped.
    kind: [TreeModel<4>; 2],
    predictor: TreeModel<16>,
    /// Row distances, dictionary indices, constants.
    argument: [IntModel; 3],
    rank_one: IntModel,
    palette: IntModel,
    coarse: IntModel,
    down: TreeModel<8>,
    along: TreeModel<8>,
    split: [BitModel; 2],
    planes: crate::planes::PlaneModels,
}

impl HeaderModels {
    pub(crate) fn planes(&mut self) -> &mut crate::planes::PlaneModels {
        &mut self.planes
    }

    /// Step that is expected: the tiles of a slice are alike more than neighbours are.
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

/// What the header of a tile depends on.
#[derive(Debug, Clone, Copy)]
pub struct HeaderContext {
    /// Tools of the tensor.
    pub tools: Tools,
    /// Tile to the left in the slice.
    pub left: Option<TilePlan>,
    /// Whether all of the tile's weights exist.
    pub full: bool,
}

/// Codes the header of a tile; encoders and counters leave it as it is but for what is implied.
///
/// # Errors
/// Values that no tile has.
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
    // A refinement's spreads follow its steps.
    let expected = if tools.has(Tools::REFINEMENT) { tile.step } else { 0 };
    tile.spread = match tools.has(Tools::SPREADS) {
        true => expected + models.spread.code(coder, (tile.spread - expected).into()).clamp(-127, 127) as i16,
        false => expected,
    };
    if tile.format.level_range().is_none() {
        (tile.kind, tile.predictor, tile.coarse, tile.transform) = Default::default();
        return Ok(());
    }
    code_kind(coder, models, context, &mut tile.kind)?;
    if tools.has(Tools::PREDICTORS) {
        tile.predictor = code_predictor(coder, models, context, tile.predictor)?;
    } else {
        tile.predictor = Predictor::None;
    }
    if !matches!(tile.kind, Kind::Coded | Kind::BitPlanes) {
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

fn code_kind<C: Coder>(
    coder: &mut C,
    models: &mut HeaderModels,
    context: &HeaderContext,
    kind: &mut Kind,
) -> Result<()> {
    if !context.tools.has(Tools::KINDS) {
        *kind = Kind::Coded;
        return Ok(());
    }
    let skipped = context.left.is_some_and(|l| l.kind == Kind::Skip);
    let code = match kind {
        Kind::Coded => 0,
        Kind::Skip => 1,
        Kind::Palette(_) => 2,
        Kind::BitPlanes => 3,
    };
    *kind = match models.kind[usize::from(skipped)].code(coder, code) {
        0 => Kind::Coded,
        1 => Kind::Skip,
        2 => {
            let mut palette = if let Kind::Palette(p) = kind { *p } else { Palette::default() };
            palette.len = coder.raw(3, u32::from(palette.len.wrapping_sub(1)) & 7) as u8 + 1;
            let len = usize::from(palette.len);
            for value in &mut palette.values[..len] {
                *value = plane_value(models.palette.code(coder, (*value).into()));
            }
            palette.values[len..].fill(0);
            Kind::Palette(palette)
        }
        _ if context.full && context.tools.tile() == TILE => Kind::BitPlanes,
        _ => return Err(CodecError::Field { field: "tile kind", found: 3, expected: "0..=2 in a tile that is cut" }),
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

/// Whether two tiles have the same header, whatever a lossless tile hands on.
pub fn same_header(a: &TilePlan, b: &TilePlan) -> bool {
    a == b || a.format == Format::Lossless && b.format == Format::Lossless && a.spread == b.spread
}
