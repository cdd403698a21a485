//! A matrix of a compressed checkpoint with its own codes and scales, where another format can hold them.

use waterfill_checkpoint::Element;
use waterfill_codec::scale::scale;
use waterfill_codec::{CodedTensor, Format};

use crate::scheme::Scheme;
use crate::stored::{Stored, words};

/// Numbers of columns with one scale that vLLM has kernels for.
const GROUPS: [usize; 3] = [128, 64, 32];

/// A coded matrix as codes with f32 scales, so that their products, rounded to the tensor's own type, are the
/// decoded weights bit for bit. `None` where its tiles are lossless and its weights stay as they are.
///
/// # Errors
/// The reason why the format cannot hold it, or that it is damaged.
pub fn exact(coded: &CodedTensor) -> std::result::Result<Option<Stored>, String> {
    let plan = coded.plan();
    let (rows, cols) = (plan.rows, plan.cols);
    let across = plan.tiles_across();
    let (mut codes, mut steps, mut formats) = (Vec::with_capacity(rows * cols), Vec::new(), Vec::new());
    for n in 0..coded.slices() {
        let decoded = coded.decode_planes(n).map_err(|e| e.to_string())?;
        codes.extend(decoded.plane);
        for (i, row) in coded.slice_rows(n).enumerate() {
            let tiles = &decoded.tiles[i / plan.tile * across..][..across];
            steps.extend(tiles.iter().map(|tile| plan.scale_index(tile, row, 0)));
        }
        for tile in decoded.tiles {
            if !formats.contains(&tile.format) {
                formats.push(tile.format);
            }
        }
    }
    if formats == [Format::Lossless] {
        return Ok(None);
    }
    if plan.parameters.bit_shift.is_some() {
        return Err("has codes of a trellis, which other runtimes do not know".into());
    }
    if plan.parameters.filter.is_some() {
        return Err("has values that are filtered after scaling".into());
    }
    if !plan.col_scale.is_empty() {
        return Err("has scales of columns".into());
    }
    let (bits, float) = match formats.as_slice() {
        [Format::Fp8] => (8, true),
        all if all.iter().all(|f| matches!(f, Format::Int2 | Format::Int3 | Format::Int4)) => (4, false),
        all if all.iter().all(|f| f.level_range().is_some()) => (8, false),
        all => {
            let names: Vec<&str> = all.iter().map(|f| f.name()).collect();
            return Err(format!("has tiles of {}", names.join(", ")));
        }
    };
    let whole = |columns: usize| {
        let tiles = columns.div_ceil(plan.tile);
        let same = |part: &[i32]| part.iter().all(|step| *step == part[0]);
        steps.chunks(across).all(|row| row.chunks(tiles).all(same))
    };
    let fits = |columns: &usize| columns.is_multiple_of(plan.tile) && cols.is_multiple_of(*columns) && whole(*columns);
    let group = match whole(cols) {
        true => None,
        false => Some(GROUPS.into_iter().find(fits).ok_or("has steps that change within 32 columns")?),
    };
    if float && group.is_some() {
        return Err("has FP8 scales that change within a row".into());
    }
    if !(cols * bits as usize).is_multiple_of(32) {
        return Err(format!("has rows of {cols} codes of {bits} bits, no whole words"));
    }
    let every = group.unwrap_or(cols).div_ceil(plan.tile);
    let scales = steps.chunks(across).flat_map(|row| row.iter().step_by(every));
    let codes = match float {
        true => codes.iter().map(|&code| code as u8).collect(),
        false => words(codes.iter().copied(), bits).iter().flat_map(|word| word.to_le_bytes()).collect(),
    };
    Ok(Some(Stored {
        scheme: Scheme { bits, float, group },
        shape: [rows, cols],
        codes,
        scales: scales.flat_map(|&step| scale(step).to_le_bytes()).collect(),
        scale_type: Element::F32,
    }))
}
