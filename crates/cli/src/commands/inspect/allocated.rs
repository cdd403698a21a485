//! What allocation chose beside what the file has.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use waterfill_allocate::{Allocation, read_plan};
use waterfill_checkpoint::packed::{PackedFormat, PackedTensor};
use waterfill_checkpoint::{Checkpoint, Storage};
use waterfill_codec::{CodedTensor, Format};
use waterfill_model::roles::label_of;
use waterfill_store::Artifact;

/// Tiles of the matrices of one role.
#[derive(Default)]
struct Tiles {
    all: usize,
    allocated: BTreeMap<&'static str, usize>,
    held: BTreeMap<&'static str, usize>,
    /// Tiles with another format than allocated, by what they have.
    moved: BTreeMap<&'static str, usize>,
}

/// Formats of tiles as allocated and as a runtime holds them; `None` without the allocation that a checkpoint was encoded from,
/// and for checkpoints with quality layers.
///
/// # Errors
/// Damaged files.
pub fn beside(encoded: &Artifact, checkpoint: &Checkpoint) -> Result<Option<String>> {
    let Some(allocation) = allocation_of(encoded)? else { return Ok(None) };
    if checkpoint.quality_layers() > 1 {
        return Ok(None);
    }
    let mut roles: BTreeMap<String, Tiles> = BTreeMap::new();
    let mut kept = true;
    for info in checkpoint.tensors().filter(|info| info.storage == Storage::Coded) {
        let planned = read_plan(&allocation, &info.name)?;
        kept &= !planned.widths.is_empty();
        let raw = checkpoint.read_raw(&info.name)?;
        let Some(packed) = CodedTensor::parse(&raw).and_then(|coded| PackedTensor::of_coded(&coded))? else { continue };
        let role = roles.entry(label_of(&info.name).to_string()).or_default();
        let across = packed.tiles_across();
        for bucket in &packed.buckets {
            for [row, column] in bucket.places() {
                let n = row * across + column;
                let (format, width) = (planned.plan.tiles[n].format, planned.widths.get(n));
                let allocated = match width {
                    Some(&bits) if format.level_range().is_some() && packed.trellis.is_some() => {
                        PackedFormat::Trellis(bits).name()
                    }
                    Some(&bits) if format.level_range().is_some() => integers(bits.into()),
                    _ => format.name(),
                };
                let held = bucket.format.name();
                role.all += 1;
                *role.allocated.entry(allocated).or_default() += 1;
                *role.held.entry(held).or_default() += 1;
                if !is_within(bucket.format, format, width.copied()) {
                    *role.moved.entry(held).or_default() += 1;
                }
            }
        }
    }
    let mut text = String::from(match kept {
        true => {
            "tiles as allocated, and as a runtime holds them; levels may fit into fewer bits than they were given\n"
        }
        false => {
            "tiles as allocated, and as a runtime holds them; bits of the file come first, so that steps follow from lambda \
             when errors are fed back, and widths from steps\n"
        }
    });
    for (name, role) in &roles {
        let shares = |of: &BTreeMap<&str, usize>| {
            let share = |(format, n): (&&str, &usize)| format!("{format} {:.1} %", *n as f64 * 100.0 / role.all as f64);
            of.iter().map(share).collect::<Vec<_>>().join(", ")
        };
        let moved = match role.moved.is_empty() {
            true => "none exceeds its format".to_string(),
            false => format!("beyond their format: {}", shares(&role.moved)),
        };
        writeln!(text, "{name:<26}{} -> {}; {moved}", shares(&role.allocated), shares(&role.held)).expect("a string");
    }
    Ok(Some(text))
}

/// Whether a tile takes no more in memory than its allocated format does.
fn is_within(held: PackedFormat, format: Format, width: Option<u8>) -> bool {
    match (held.level_bits().or(held.code_bits()), width, format) {
        (Some(bits), Some(width), _) => bits <= width.into(),
        (Some(bits), None, Format::Int4) => bits <= 4,
        (Some(_), None, _) => true,
        (None, _, Format::Fp8 | Format::Fp8E5M2) => !matches!(held, PackedFormat::Plain(_)),
        (None, _, format) => format == Format::Lossless,
    }
}

fn integers(bits: u32) -> &'static str {
    PackedFormat::INTEGERS.iter().find(|f| f.level_bits() == Some(bits)).map_or("int8", |f| f.name())
}

/// The allocation that a checkpoint was encoded from, if it is in the same store.
fn allocation_of(encoded: &Artifact) -> Result<Option<Allocation>> {
    let Some(digest) = encoded.manifest.identity.inputs.get("allocate") else { return Ok(None) };
    let Some(all) = encoded.path("").parent().and_then(Path::parent).map(|model| model.join("allocate")) else {
        return Ok(None);
    };
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        if let Ok(artifact) = Artifact::open(&entry.path())
            && artifact.digest() == *digest
        {
            return Ok(Some(Allocation::open(&artifact.path("allocation.safetensors"))?));
        }
    }
    Ok(None)
}
