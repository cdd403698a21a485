//! `waterfill make-checkpoint`: random weights in a published model's layout.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use waterfill_checkpoint::Checkpoint;
use waterfill_fixture::{FAMILIES, config_of, write_random};

/// Writes a random checkpoint of the layout of `like` to `out`, with fewer blocks on request; returns its description. Nothing
/// is left at `out` after an error.
pub fn make_checkpoint(like: &str, layers: Option<usize>, seed: u64, out: &Path) -> Result<String> {
    let Some(mut config) = config_of(like) else {
        bail!("make-checkpoint: --like {like}; known layouts: {}", FAMILIES.join(", "));
    };
    let all = config["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
    match layers {
        Some(n) if n == 0 || n > all => bail!("make-checkpoint: --layers {n}, {like} has 1 to {all}"),
        Some(n) => config["num_hidden_layers"] = n.into(),
        None => {}
    }
    if out.exists() {
        bail!("make-checkpoint: {} exists already; choose another directory or remove it", out.display());
    }
    let parent = out.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(parent)
        .with_context(|| parent.display().to_string())?;
    let made = unfinished.path().join("checkpoint");
    write_random(&made, &config, seed)?;
    std::fs::rename(&made, out).with_context(|| out.display().to_string())?;
    let checkpoint = Checkpoint::open(out)?;
    let layers = layers.unwrap_or(all);
    let (weights, bytes) = (checkpoint.weights(), checkpoint.bytes());
    Ok(format!(
        "random checkpoint in the layout of {like}, {layers} of {all} layers, seed {seed}: {weights} weights, {bytes} bytes in {}",
        out.display()
    ))
}
