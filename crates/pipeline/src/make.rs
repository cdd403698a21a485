//! `waterfill make-checkpoint`: random weights in a published model's layout.

use std::path::Path;

use waterfill_checkpoint::Checkpoint;
use waterfill_fixture::{FAMILIES, config_of, write_random};

use crate::error::{PipelineError, Result};

/// Writes a random checkpoint of the layout of `like` to `out`, with fewer layers when asked for; says
/// what it is.
///
/// # Errors
/// Unknown names, a directory that exists, files that cannot be written: nothing is left at `out` then.
pub fn make_checkpoint(like: &str, layers: Option<usize>, seed: u64, out: &Path) -> Result<String> {
    let bad = |reason: String| PipelineError::Config { path: "make-checkpoint".into(), reason };
    let mut config =
        config_of(like).ok_or_else(|| bad(format!("--like {like}; known layouts: {}", FAMILIES.join(", "))))?;
    let all = config["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
    match layers {
        Some(n) if n == 0 || n > all => {
            return Err(bad(format!("--layers {n}, {like} has 1 to {all}")));
        }
        Some(n) => config["num_hidden_layers"] = n.into(),
        None => {}
    }
    if out.exists() {
        return Err(bad(format!("{} exists already; choose another directory or remove it", out.display())));
    }
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| PipelineError::Io { path, source }
    };
    let parent = out.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(io(parent))?;
    let unfinished = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(parent).map_err(io(parent))?;
    let made = unfinished.path().join("checkpoint");
    write_random(&made, &config, seed)?;
    std::fs::rename(&made, out).map_err(io(out))?;
    let checkpoint = Checkpoint::open(out)?;
    let layers = layers.unwrap_or(all);
    let (weights, bytes) = (checkpoint.weights(), checkpoint.bytes());
    Ok(format!(
        "random checkpoint in the layout of {like}, {layers} of {all} layers, seed {seed}: {weights} weights, {bytes} bytes in {}",
        out.display()
    ))
}
