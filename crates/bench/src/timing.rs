//! Repeated measurements, taken alternately.

use std::time::Instant;

use rayon::prelude::*;
use waterfill_codec::CodedTensor;

/// Median, and slowest and fastest, of a repeated measurement in seconds.
pub(crate) struct Timing {
    pub median: f64,
    pub slowest: f64,
    pub fastest: f64,
}

/// Runs alternately, so that what disturbs the machine disturbs all alike.
pub(crate) fn time_together(repeats: usize, work: &mut [&mut dyn FnMut()]) -> Vec<Timing> {
    let mut seconds = vec![Vec::with_capacity(repeats); work.len()];
    for round in 0..=repeats {
        for (work, seconds) in work.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            work();
            // The first round warms caches and tables up.
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let summary = |mut s: Vec<f64>| {
        s.sort_by(f64::total_cmp);
        Timing { median: s[s.len() / 2], slowest: s[s.len() - 1], fastest: s[0] }
    };
    seconds.into_iter().map(summary).collect()
}

/// Decodes a tensor [`AT_ONCE`] times on the threads of a pool.
pub(crate) fn decode_with(pool: &rayon::ThreadPool, coded: &CodedTensor, out: &mut [u8]) {
    let part = coded.bytes(coded.header().slice_rows);
    pool.install(|| {
        for _ in 0..AT_ONCE {
            out.par_chunks_mut(part).enumerate().for_each(|(n, out)| {
                coded.decode_slice(n, out).expect("what was just encoded");
            });
        }
    });
}

/// Decodes in one measurement: a thread that was asleep takes a while to get a core of its own.
pub(crate) const AT_ONCE: usize = 8;

/// A pool of `threads` threads.
pub(crate) fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
}
