//! Syntax of a slice: the headers of its tiles in raster order, then its samples column by column.

use std::ops::Range;

use crate::TILE;
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::gaussian::{LevelTables, class_of};
use crate::symbol::{BitModel, Coder, IntModel, SymbolTable};
use crate::tensor::{TensorPlan, TilePlan};

/// Adaptive models of one slice; every slice starts afresh, so that it can be decoded alone.
#[derive(Default)]
struct Models {
    /// By the format of the tile before, then by the node of the two-bit tree.
    format: [[BitModel; 3]; 4],
    step: IntModel,
    spread: IntModel,
    /// Bit tree over the exponent field of FP8 codes.
    fp8_exponent: [BitModel; 16],
}

/// Codes the rows `rows` of the plan's tiles and `samples` (column by column).
///
/// Encoders and counters leave both as they are; a decoder fills them.
///
/// # Errors
/// A lossless tile in a tensor without codebook.
pub fn code_slice<C: Coder>(
    coder: &mut C,
    plan: &mut TensorPlan,
    codebook: Option<&SymbolTable>,
    rows: Range<usize>,
    samples: &mut [i32],
) -> Result<()> {
    let mut models = Models::default();
    code_tile_headers(coder, plan, rows.clone(), &mut models);
    let tables = LevelTables::get();
    let row_class: Vec<i32> = rows.clone().map(|r| difference(&plan.row_spread, &plan.row_scale, r)).collect();
    for (col, column) in samples.chunks_exact_mut(rows.len().max(1)).enumerate() {
        let col_class = difference(&plan.col_spread, &plan.col_scale, col) + plan.spread_base;
        for (block, run) in column.chunks_mut(TILE).enumerate() {
            let tile = plan.tile_at(rows.start + block * TILE, col);
            match tile.format {
                Format::Int4 | Format::Int8 => {
                    let class = col_class + i32::from(tile.spread) - i32::from(tile.step);
                    for (sample, row) in run.iter_mut().zip(&row_class[block * TILE..]) {
                        *sample = tables.code(coder, class_of(class + row), *sample);
                    }
                }
                Format::Fp8 => run.iter_mut().for_each(|s| *s = code_fp8(coder, &mut models.fp8_exponent, *s)),
                Format::Lossless => {
                    let table = codebook.ok_or(CodecError::Field {
                        field: "codebook of a tensor with lossless tiles",
                        found: 0,
                        expected: "1 (present)",
                    })?;
                    run.iter_mut().for_each(|s| *s = code_pattern(coder, plan.dtype, table, *s));
                }
            }
        }
    }
    Ok(())
}

/// Spread index minus scale index of a row or column.
fn difference(spread: &[i8], scale: &[i8], i: usize) -> i32 {
    let entry = |vector: &[i8]| vector.get(i).map_or(0, |&v| i32::from(v));
    entry(spread) - entry(scale)
}

fn code_tile_headers<C: Coder>(coder: &mut C, plan: &mut TensorPlan, rows: Range<usize>, models: &mut Models) {
    let across = plan.tiles_across();
    let mut left = TilePlan::default();
    for tile_row in rows.start / TILE..rows.end.div_ceil(TILE) {
        for tile_col in 0..across {
            let tile = &mut plan.tiles[tile_row * across + tile_col];
            code_tile_header(coder, models, left, tile);
            left = *tile;
        }
    }
}

fn code_tile_header<C: Coder>(coder: &mut C, models: &mut Models, left: TilePlan, tile: &mut TilePlan) {
    let nodes = &mut models.format[left.format as usize];
    let high = coder.bit(&mut nodes[0], tile.format as u8 & 2 != 0);
    let low = coder.bit(&mut nodes[1 + usize::from(high)], tile.format as u8 & 1 != 0);
    tile.format = Format::from_code(u8::from(high) << 1 | u8::from(low)).expect("two bits");
    // A lossless tile has no step; it hands on its neighbour's, so that the next is predicted well.
    if tile.format == Format::Lossless {
        (tile.step, tile.spread) = (left.step, 0);
        return;
    }
    let step = i32::from(left.step) + models.step.code(coder, i32::from(tile.step) - i32::from(left.step));
    tile.step = step.clamp(i16::MIN.into(), i16::MAX.into()) as i16;
    tile.spread = match tile.format {
        Format::Fp8 => 0,
        _ => models.spread.code(coder, tile.spread.into()).clamp(-127, 127) as i16,
    };
}

fn code_fp8<C: Coder>(coder: &mut C, models: &mut [BitModel; 16], sample: i32) -> i32 {
    let exponent = sample >> 3 & 15;
    let mut node = 1;
    for bit in (0..4).rev() {
        node = node << 1 | usize::from(coder.bit(&mut models[node], exponent >> bit & 1 == 1));
    }
    let rest = coder.raw(4, (sample >> 4 & 8 | sample & 7) as u32) as i32;
    (rest & 8) << 4 | (node as i32 & 15) << 3 | rest & 7
}

fn code_pattern<C: Coder>(coder: &mut C, dtype: Dtype, table: &SymbolTable, sample: i32) -> i32 {
    let (exponent, rest) = dtype.split(sample as u32);
    let exponent = coder.symbol(table, exponent);
    dtype.join(exponent, coder.raw_wide(dtype.raw_bits(), rest)) as i32
}
