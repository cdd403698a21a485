//! Decodes one tensor of a checkpoint and prints what it is:
//! `cargo run --release -p waterfill-checkpoint --example decode_tensor -- [DIRECTORY [TENSOR]]`
//!
//! Without arguments it writes a small compressed checkpoint to a temporary directory first.

use std::path::Path;

use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
use waterfill_checkpoint::{Checkpoint, Control, Storage};
use waterfill_codec::{Dtype, Format, TensorPlan, TilePlan, encode_tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let made = tempfile::tempdir()?;
    let dir = match arguments.next() {
        Some(dir) => dir.into(),
        None => {
            write_example(made.path())?;
            made.path().to_path_buf()
        }
    };
    let checkpoint = Checkpoint::open(dir)?;
    let info = match arguments.next() {
        Some(name) => checkpoint.tensor(&name)?,
        None => checkpoint.tensors().find(|t| t.storage == Storage::Coded).ok_or("no coded tensor")?,
    };
    let mut bytes = vec![0; checkpoint.decoded_bytes(&info.name, Dtype::F32)?];
    checkpoint.decode(&info.name, Dtype::F32, &mut bytes, Control::default())?;
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let power: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    let rate = info.stored_bytes() as f64 * 8.0 / info.weights() as f64;
    println!("{} {:?}: {} bytes, {rate:.2} bits per weight", info.name, info.shape, info.stored_bytes());
    println!("root mean square {:.5}, first values {:?}", (power / values.len() as f64).sqrt(), &values[..4]);
    if info.shape.len() == 2 {
        for bucket in checkpoint.decode_packed(&info.name, Control::default())?.buckets {
            println!("{} tiles of {}", bucket.tiles(), bucket.format.name());
        }
    }
    Ok(())
}

/// A checkpoint of one matrix, every third tile of it in eight bits.
fn write_example(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (rows, cols) = (256, 192);
    let weights: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.731).sin() * 0.04).collect();
    let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
    (plan.step_base, plan.sigma_base) = (-56, 8);
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        tile.format = if n % 3 == 0 { Format::Int8 } else { Format::Int4 };
    }
    let bytes = encode_tensor(&plan, &weights)?;
    let original = tempfile::tempdir()?;
    std::fs::write(original.path().join("config.json"), "{}")?;
    let entry = Entry {
        name: "model.layers.0.mlp.up_proj.weight".into(),
        shape: vec![rows, cols],
        plain: None,
        bytes: bytes.len() as u64,
        data: Data::Made(Box::new(move || bytes.clone())),
    };
    Ok(write_checkpoint(original.path(), dir, &[entry], true)?)
}
