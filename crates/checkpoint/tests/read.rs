//! Plain tensors of every type, whole and by rows, through an index of several shards.

use waterfill_checkpoint::writer::{Data, Entry, write_shards};
use waterfill_checkpoint::{Checkpoint, element_of};
use waterfill_codec::Dtype;

const ROWS: usize = 700;
const COLS: usize = 500;

fn value(n: usize) -> f32 {
    // Few bits, so that every type holds it.
    (n % 200) as f32 * 0.25 - 24.0
}

#[test]
fn every_type_is_read_whole_and_by_rows() {
    let dir = tempfile::tempdir().unwrap();
    let types = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    let mut entries = Vec::new();
    for dtype in types {
        let bytes = move || -> Vec<u8> {
            let pattern = |n| dtype.pattern_of(value(n)).to_le_bytes()[..dtype.bytes()].to_vec();
            (0..ROWS * COLS).flat_map(pattern).collect()
        };
        entries.push(Entry {
            name: format!("{dtype:?}"),
            shape: vec![ROWS, COLS],
            plain: Some(element_of(dtype)),
            bytes: (ROWS * COLS * dtype.bytes()) as u64,
            data: Data::Made(Box::new(bytes)),
        });
    }
    write_shards(dir.path(), &entries).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for dtype in types {
        let name = format!("{dtype:?}");
        let all = checkpoint.read_f32(&name, &[ROWS, COLS]).unwrap();
        assert!(all.iter().enumerate().all(|(n, &v)| v == value(n)), "{name}");
        let rows = checkpoint.rows(&name, &[ROWS, COLS]).unwrap();
        for range in [0..1, 3..9, 699..700, 0..700, 5..5] {
            assert_eq!(rows.read(range.clone()).unwrap(), all[range.start * COLS..range.end * COLS]);
        }
        let message = rows.read(699..701).unwrap_err().to_string();
        assert!(message.contains(&name) && message.contains("there are 700"), "{message}");
        let message = checkpoint.rows(&name, &[COLS, ROWS]).err().unwrap().to_string();
        assert!(message.contains("[700, 500]") && message.contains("[500, 700]"), "{message}");
    }
}
