//! Damage to a tuned checkpoint: no flipped bit in any of its files passes, and its place is named.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Place, pipeline};
use waterfill_checkpoint::Checkpoint;

/// Flips that are tried; ten thousand take half a minute.
fn flips() -> usize {
    std::env::var("WATERFILL_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

#[test]
fn every_flipped_bit_of_a_tuned_checkpoint_is_noticed_and_its_place_is_named() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("sizes: [{bits_per_weight: 5}]"));
    let output = place.json(&["encode", "p.yaml"]);
    let dir = place.path(output["points"][0]["checkpoint"].as_str().unwrap());
    let verified = Checkpoint::open(&dir).unwrap().verify().unwrap();
    assert!(verified[0].contains("match their digests"), "{verified:?}");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    let mut state = 3u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let shard = dir.join("model.safetensors");
    let header = u64::from_le_bytes(fs::read(&shard).unwrap()[..8].try_into().unwrap()) as usize + 8;
    for n in 0..flips() {
        // A third anywhere in the shard, a third in its header, the others in the files beside it.
        let path = if n % 3 < 2 { &shard } else { &files[random(files.len())] };
        let whole = fs::read(path).unwrap();
        let bit = random(if n % 3 == 1 { header } else { whole.len() } * 8);
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(path, &damaged).unwrap();
        let result = Checkpoint::open(&dir).and_then(|c| c.verify());
        fs::write(path, &whole).unwrap();
        let message = result.map(|_| ()).expect_err(&format!("bit {bit} of {} unnoticed", path.display())).to_string();
        // A damaged quantization method is told from the mark that the shard still has, and the other way round.
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(name), "bit {bit} of {name}: {message}");
        if path == &shard && bit / 8 >= header {
            assert!(message.contains("tensor "), "bit {bit}: {message}");
        }
    }
    Checkpoint::open(&dir).unwrap().verify().unwrap();
}
