//! Files of any bytes: as a packed file, and as the shard of a checkpoint.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::pack::{pack, unpack, verify_packed};

thread_local! {
    static DIR: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir_in("/dev/shm").unwrap());
}

/// A small file and what it is packed to as inputs, where `WATERFILL_SEEDS` names a folder for them.
fn write_seeds() {
    let Ok(seeds) = std::env::var("WATERFILL_SEEDS") else { return };
    let data: Vec<u8> = (0..2400u32).map(|i| (i * i >> 5) as u8 & 0x3f).collect();
    let header = r#"{"a":{"dtype":"BF16","shape":[20,40],"data_offsets":[0,1600]},"b":{"dtype":"I32","shape":[200],"data_offsets":[1600,2400]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
    std::fs::write(&plain, &file).unwrap();
    pack(&plain, &packed, &|_| {}).unwrap();
    for kind in 1..6 {
        std::fs::write(format!("{seeds}/plain-{kind}"), [&[kind], &file[..]].concat()).unwrap();
    }
    std::fs::write(format!("{seeds}/packed"), [&[0], &std::fs::read(&packed).unwrap()[8..]].concat()).unwrap();
}

fuzz_target!(init: write_seeds(), |input: &[u8]| {
    DIR.with_borrow(|dir| {
        let Some((&kind, bytes)) = input.split_first() else { return };
        let path = dir.path().join("model.safetensors");
        let other = dir.path().join("other");
        match kind % 3 {
            0 => {
                let version = if kind & 8 == 0 { 2 } else { 1 };
                std::fs::write(&path, [b"WFPK", &[version, 0, 0, 0], bytes].concat()).unwrap();
                let _ = verify_packed(&path);
            }
            1 => {
                let tuned = r#"{"quantization_config":{"quant_method":"waterfill"}}"#;
                let config = if kind & 4 == 0 { tuned } else { "{}" };
                std::fs::write(dir.path().join("config.json"), config).unwrap();
                std::fs::write(&path, bytes).unwrap();
                if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
                    let _ = checkpoint.verify();
                }
            }
            _ => {
                // What can be packed comes back as it was.
                std::fs::write(&path, bytes).unwrap();
                if pack(&path, &other, &|_| {}).is_ok() {
                    let back = dir.path().join("back");
                    unpack(&other, &back, &|_| {}).unwrap();
                    assert_eq!(std::fs::read(&back).unwrap(), bytes);
                    std::fs::remove_file(&back).unwrap();
                    std::fs::remove_file(&other).unwrap();
                }
            }
        }
    });
});
