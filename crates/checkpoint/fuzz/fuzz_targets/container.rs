//! Files of any bytes: as a packed file, and as the shard of a checkpoint.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::pack::{pack, unpack, verify_packed};

thread_local! {
    static DIR: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir_in("/dev/shm").unwrap());
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    DIR.with_borrow(|dir| {
        let (kind, bytes) = &input;
        let path = dir.path().join("model.safetensors");
        let other = dir.path().join("other");
        match kind % 3 {
            0 => {
                std::fs::write(&path, [b"WFPK\x01\0\0\0", &bytes[..]].concat()).unwrap();
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
                    assert_eq!(&std::fs::read(&back).unwrap(), bytes);
                    std::fs::remove_file(&back).unwrap();
                    std::fs::remove_file(&other).unwrap();
                }
            }
        }
    });
});
